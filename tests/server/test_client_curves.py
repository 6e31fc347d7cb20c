"""What a simulation knows of single clients: kept whole, drawn as it is, and counted right."""

import re
from pathlib import Path

import pytest

from fedpeft.config import RunConfig, parse
from fedpeft.errors import IntegrityFailed
from fedpeft_server.report.client_curves import client_curves
from fedpeft_server.report.confusion import mixups_of
from fedpeft_server.run.client_scores import ClientScores, read_client_scores, scores_folder
from fedpeft_server.run.records import ClientScore, RoundMetrics

SOURCE = """
[base]
model = "pypi:some-model"
[task]
kind = "KIND"
[data]
source = "x.jsonl"
partition = {by = "column", column = "site"}
[adapter]
lora = {rank = 4}
[rounds]
count = 3
eval_examples = 4
"""


def config(kind: str = "classify") -> RunConfig:
    return parse(SOURCE.replace("KIND", kind), source="run.toml", simulation=True)


def score(round_id: int, accuracy: float | None, *, loss: float | None = 0.5, examples: int = 4) -> ClientScore:
    return ClientScore(round=round_id, loss=loss, accuracy=accuracy, examples=examples)


def rows(*numbers: int) -> list[RoundMetrics]:
    return [
        RoundMetrics(
            round=number, loss=0.5, accuracy=0.5, evaluators=3, devices_invited=3, devices_ready=3, devices_survived=3,
            bytes_up=1, bytes_down=1, seconds=1.0,
        )
        for number in numbers
    ]  # fmt: skip


def test_of_a_round_that_was_attempted_again_the_last_score_counts_and_a_torn_line_harms_none(tmp_path: Path) -> None:
    folder = scores_folder(tmp_path)
    ClientScores(folder, "a").add(score(1, 0.25))
    ClientScores(folder, "a").add(score(2, 0.5))
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"round":3,"lo')  # killed here
    again = ClientScores(folder, "a")
    again.add(score(2, 0.75))
    again.add(score(3, None, loss=float("nan")))
    assert read_client_scores(tmp_path) == {"a": (score(1, 0.25), score(2, 0.75), score(3, None, loss=None))}
    assert read_client_scores(tmp_path / "elsewhere") == {}


def test_a_damaged_score_is_named(tmp_path: Path) -> None:
    ClientScores(scores_folder(tmp_path), "a").add(score(1, 0.25))
    (scores_folder(tmp_path) / "a.jsonl").write_text('{"round": "one"}\n{}\n')
    with pytest.raises(IntegrityFailed, match=r"a\.jsonl:1"):
        read_client_scores(tmp_path)


def test_a_few_clients_have_a_chart_each_of_committed_rounds_and_of_one_set_of_examples() -> None:
    scores = {
        "a": (score(1, 0.25), score(2, 0.5), score(4, 0.9, examples=40)),  # the last evaluation took more examples
        "b": (score(1, 0.0), score(2, 0.75), score(3, 1.0), score(4, 0.5, examples=3)),
        "c": (),
    }
    curves = client_curves(scores, rows(1, 2, 4), config())  # nothing came of round 3
    assert curves is not None
    assert [(title, note) for title, note, _ in curves.charts] == [("a", "25 % to 50 %"), ("b", "0 % to 50 %")]
    tips = [re.findall(r"<title>round (\d): (.*?)</title>", svg) for _, _, svg in curves.charts]
    assert tips == [[("0", "25 %"), ("1", "50 %")], [("0", "0 %"), ("1", "75 %"), ("3", "50 %")]]
    assert client_curves({"a": ()}, rows(1), config()) is None
    assert client_curves(scores, (), config()) is None


def test_many_clients_are_lines_in_one_chart_and_hundreds_are_two_bands() -> None:
    for count in (13, 99, 500):
        scores = {f"c{i}": tuple(score(r, i / count) for r in (1, 2)) for i in range(count)}
        curves = client_curves(scores, rows(1, 2), config())
        assert curves is not None
        ((title, note, svg),) = curves.charts
        assert title == f"{count} clients and their median"
        assert "worst at the end: c0 0 %" in note
        assert f"best at the end: c{count - 1} " in note
        assert svg.count('class="thin"') == (count if count < 100 else 0)
        assert svg.count('class="band"') == (2 if count == 500 else 0)
        bands = re.findall(r'class="band" points="([^"]*)"', svg)
        heights = [[float(point.split(",")[1]) for point in band.split()] for band in bands]
        spans = [max(ys) - min(ys) for ys in heights]
        assert count < 500 or spans[1] == pytest.approx(0.8 * spans[0], rel=0.01), "eight in ten of an even spread"
        middle = re.search(r"median, round 1: ([\d.]+) %", svg)
        assert middle is not None
        assert float(middle[1]) == pytest.approx(100 * (count - 1) / 2 / count, abs=0.05)


def test_a_language_model_has_perplexities_of_which_the_largest_is_the_worst() -> None:
    scores = {f"c{i}": (score(1, 0.1, loss=i / 10),) for i in range(20)}
    curves = client_curves(scores, rows(1), config("causal-lm"))
    assert curves is not None
    assert curves.metric == "perplexity"
    assert "worst at the end: c19 6.686; best at the end: c0 1" in curves.charts[0][1]  # e^1.9


def test_the_matrix_says_what_can_be_counted_by_hand() -> None:
    found = mixups_of([[8, 2, 0], [1, 4, 0], [0, 0, 0]], ["cat", "dog", "owl"])
    assert found is not None
    cat, dog, owl = found.rows
    assert (cat.examples, cat.recall, cat.precision, cat.f1) == (10, "80.0 %", "88.9 %", "84.2 %")
    assert (dog.examples, dog.recall, dog.precision, dog.f1) == (5, "80.0 %", "66.7 %", "72.7 %")
    assert (owl.examples, owl.recall, owl.precision, owl.f1) == (0, "–", "–", "–")
    assert dog.cells == ((1, 0.2), (4, 0.8), (0, 0.0))
    assert [(one.truth, one.answer, one.count) for one in found.commonest] == [("cat", "dog", 2), ("dog", "cat", 1)]


@pytest.mark.parametrize("matrix", [(), ((1,),), ((1, 2), (3,)), ((1, 2), (3, 4), (5, 6))])
def test_a_matrix_of_other_classes_is_not_shown(matrix: tuple[tuple[int, ...], ...]) -> None:
    assert mixups_of(matrix, ["a", "b"]) is None
    assert mixups_of(matrix, []) is None
