"""ROUGE-L against rouge-score's values, exact match, and their lanes."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedpeft.config.task import Task
from fedpeft.tasks import TASKS
from fedpeft.tasks.generated import GENERATED, Generated, exact_match, rouge_l, words_in

VECTORS = Path(__file__).parents[1] / "vectors" / "rouge_l.json"  # made by generate_rouge.py


def test_rouge_l_is_that_of_rouge_score() -> None:
    cases = json.loads(VECTORS.read_text())["cases"]
    assert len(cases) == 200
    assert len({score for *_, score in cases}) > 50
    for reference, answer, score in cases:
        assert rouge_l(reference, answer) == pytest.approx(score, abs=1e-12), (reference, answer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ωμέγα-3 Åse", ["ωμέγα", "3", "åse"]),  # rouge-score: 3, se
        ("cafe\u0301", ["café"]),  # composed or not, it is one word
        ("東京に行くABC", ["東", "京", "に", "行", "く", "abc"]),
        ("ไป", ["ไ", "ป"]),
        ("a_b", ["a", "b"]),
    ],
)
def test_the_words_of_every_script_count(text: str, words: list[str]) -> None:
    assert words_in(text) == words
    assert rouge_l(text, text) == 1.0


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("so it is", " so  it\nis ", True),
        ("so it is", "So it is", False),
        ("so it is", "so it is.", False),
        ("", " ", True),
        ("a", "the", False),
    ],
)
def test_exact_match_ignores_white_space_alone(reference: str, answer: str, same: bool) -> None:
    assert exact_match(reference, answer) is same


def test_devices_that_generate_nothing_do_not_lower_the_means() -> None:
    scores = np.array([[0.5, 0.0], [1.0, 1.0]], np.float32)
    one = Generated().tally(scores, scores, [0, 1]) / 2
    whole = (one + np.zeros(3)) / 2
    assert Generated().metrics(whole) == {"rouge_l": 0.75, "exact_match": 0.5}
    assert Generated().metrics(np.zeros(3)) == {}


def test_a_task_that_generates_nothing_is_written_as_before() -> None:
    """Plans of earlier versions keep their text, and so their digest."""
    before = '{"kind":"causal-lm","labels":[],"max_length":128,"beta":0.1,"scale":20.0,"range":null}'
    assert Task(kind="causal-lm").model_dump_json() == before
    asked = Task(kind="causal-lm", generate=8, max_new_tokens=5)
    assert Task.model_validate_json(asked.model_dump_json()) == asked != Task.model_validate_json(before)


def test_only_tasks_that_write_can_be_chosen_by_it() -> None:
    assert [record.name for record in TASKS.values() if record.generates] == ["causal-lm", "seq2seq"]
    for record in TASKS.values():
        assert record.generates == ({*GENERATED} <= {*record.metrics})
        assert not (record.generates and record.measure(("a", "b"), (0, 1)))
