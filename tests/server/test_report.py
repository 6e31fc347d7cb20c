"""The report: self-contained, escaped, and complete for runs of every shape."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.config import parse
from fedpeft.ids import RoundId
from fedpeft.privacy import Budget, ExampleStatement, PrivacyLedger, Release, opinions
from fedpeft_server.report import page as page_module
from fedpeft_server.report.budget import spent_of
from fedpeft_server.report.page import write_report
from fedpeft_server.run.privacy_statements import STATED, client_statement, detail_of
from fedpeft_server.run.records import ClientRound, Comparison, RoundMetrics, Summary
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run

HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}"
SOURCE = """
[run]
name = "small"
[base]
model = "pypi:some-model"
[task]
kind = "classify"
[data]
source = "x.jsonl"
map = {text = "<b>note</b>"}
partition = {by = "column", column = "site"}
[adapter]
lora = {rank = 4}
[[device]]
clients = ["*"]
methods = ["lora"]
"""


class Page(HTMLParser):
    """What a browser would load or run, and what it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.shown = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [f"{name}={value}" for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        self.loaded += [name for name, _ in attrs if name.startswith("on")]
        if tag not in {"meta", "i", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"line", "polyline", "circle"}:
            return
        while self.open and self.open[-1] in {"line", "polyline", "circle"}:
            self.open.pop()
        if tag != "i":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.shown += data


def create(parent: Path) -> RunDirectory:
    config = parse(SOURCE, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    command = ("fedpeft", "simulate", "my run.toml")
    return RunDirectory.create(
        config, source=SOURCE, adapter=AdapterSpec(blocks=()), base_digest="sha256:b", command=command
    )


def client(name: str, *, state: str = "summed", reason: str = "", methods: str = "lora r4") -> ClientRound:
    return ClientRound(
        client=name,
        methods=methods,
        state=state,  # type: ignore[arg-type]
        reason=reason,
        bytes_up=1000,
        bytes_down=2000,
        seconds=2.0,
    )


def row(
    round_id: int, *, loss: float | None, clients: tuple[ClientRound, ...] = (), skipped: dict[str, str] | None = None
) -> RoundMetrics:
    return RoundMetrics(
        round=round_id,
        loss=loss,
        accuracy=None if loss is None else 1 - loss,
        evaluators=0 if loss is None else 40,
        devices_invited=3,
        devices_ready=3,
        devices_survived=2,
        bytes_up=2_000_000,
        bytes_down=3_000_000,
        seconds=1.0,
        skipped=skipped or {},
        rejected={HOSTILE: HOSTILE} if skipped else {},
        clients=clients,
    )


def page_of(run: RunDirectory) -> Page:
    with run:
        return Page(write_report(run.path).read_text())


def test_a_run_without_a_round_has_a_report(tmp_path: Path) -> None:
    page = page_of(create(tmp_path))
    assert "Nothing was recorded" in page.shown
    assert "0 of 8 rounds" in " ".join(page.shown.split())


def test_the_report_loads_and_runs_nothing(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.commit(RoundId(1), b"", {}, row(1, loss=0.5, clients=(client("a"),)))
    text = write_report(run.path).read_text()
    page = page_of(run)
    assert page.loaded == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(|//[a-z]", text)
    assert "default-src 'none'" in text


def test_whatever_a_client_or_a_file_says_is_shown_and_not_run(tmp_path: Path) -> None:
    run = create(tmp_path)
    lost = client(HOSTILE, state="dropped", reason=HOSTILE, methods=HOSTILE)
    run.commit(RoundId(1), b"", {}, row(1, loss=0.5, clients=(lost,), skipped={HOSTILE: HOSTILE}))
    run.record("round.aborted", round_id=RoundId(2), detail={"detail": HOSTILE})
    compared = (Comparison(client=HOSTILE, examples=1, alone=0.1, federated=0.2, centralised=0.3),)
    run.write_summary(
        Summary(outcome="failed", reason=HOSTILE, rounds=1, seconds=1.0, bytes_up=1, bytes_down=1, comparison=compared)
    )
    page = page_of(run)
    assert "script" not in page.tags
    assert page.shown.count(HOSTILE) >= 10
    assert 'text = "<b>note</b>"' in page.shown


def test_the_comparison_says_how_much_of_the_gap_was_closed(tmp_path: Path) -> None:
    run = create(tmp_path)
    compared = (
        Comparison(client="united", examples=10, alone=0.7, federated=0.8, centralised=None),
        Comparison(client="all", examples=20, alone=0.75, federated=0.83, centralised=0.85),
    )
    run.write_summary(Summary(outcome="finished", rounds=0, seconds=1.0, bytes_up=1, bytes_down=1, comparison=compared))
    shown = page_of(run).shown
    assert "80 %" in shown
    assert "70.0 %" in shown
    assert "–" in shown


def test_perplexities_close_a_gap_downwards(tmp_path: Path) -> None:
    run = create(tmp_path)
    compared = (
        Comparison(client="north", examples=10, alone=30.0, everywhere=50.0, federated=26.0, centralised=25.5),
        Comparison(client="all", examples=20, alone=50.0, everywhere=50.0, federated=30.0, centralised=25.0),
    )
    run.write_summary(
        Summary(
            outcome="finished",
            rounds=0,
            seconds=1.0,
            bytes_up=1,
            bytes_down=1,
            metric="perplexity",
            comparison=compared,
        )
    )
    shown = page_of(run).shown
    assert "80 %" in shown
    assert "Tokens" in shown
    assert "2600.0 %" not in shown


def test_a_planned_device_is_shown_with_its_reason_and_a_run_without_plans_has_no_such_part(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert "Planned devices" not in Page(write_report(run.path).read_text()).shown
    run.record("device.planned", client="s1", detail={"plan": "Trains bitfit, because lora needs <b>more</b>."})
    shown = Page(write_report(run.path).read_text()).shown
    assert "Planned devices" in shown
    assert "because lora needs <b>more</b>." in shown


def test_a_baseline_that_is_no_better_gives_no_gap(tmp_path: Path) -> None:
    run = create(tmp_path)
    compared = (Comparison(client="all", examples=20, alone=0.8, federated=0.83, centralised=0.8),)
    run.write_summary(Summary(outcome="finished", rounds=0, seconds=1.0, bytes_up=1, bytes_down=1, comparison=compared))
    assert "of the gap" not in page_of(run).shown


def test_totals_methods_and_losses_add_up(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number in (1, 2):
        state = "dropped" if number == 2 else "summed"
        clients = (client("a"), client("b", methods="ia3"), client("c", state=state, reason="deadline"))
        run.commit(RoundId(number), b"", {}, row(number, loss=0.5, clients=clients))
    run.write_summary(
        Summary(outcome="finished", rounds=2, seconds=65.0, bytes_up=1, bytes_down=1, bytes_full_parameters=10**9)
    )
    shown = " ".join(page_of(run).shown.split())
    assert "10 MB" in shown
    assert "moved: 4 MB up, 6 MB down" in shown
    assert "100×" in shown
    assert "1 min 05 s" in shown
    assert "2of 6 device rounds lost" in shown  # two elements
    assert "3 of 4" in shown
    assert "deadline" in shown
    assert "fedpeft simulate 'my run.toml'" in shown


def test_rounds_that_were_not_evaluated_leave_a_gap_and_no_number(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number, loss in ((1, 0.5), (2, None), (3, 0.25)):
        run.commit(RoundId(number), b"", {}, row(number, loss=loss))
    text = write_report(run.path).read_text()
    assert text.count('<polyline class="line s1"') == 2 + 2 + 1  # loss and accuracy in two pieces, bytes in one
    assert "nan" not in page_of(run).shown.lower()


def test_the_report_says_what_the_secure_sum_left_open(tmp_path: Path) -> None:
    for mode, expected in (("off", "in the clear"), ("fast", "consistency round"), ("full", "collude")):
        config = parse(SOURCE, source="x", overrides=[f"secagg.mode={mode}"], simulation=True)
        run = RunDirectory.create(
            config.model_copy(update={"directory": tmp_path / mode}),
            source=SOURCE,
            adapter=AdapterSpec(blocks=()),
            base_digest="b",
            command=("fedpeft", "simulate"),
        )
        run.commit(RoundId(1), b"", {}, row(1, loss=0.5, clients=(client("a"),)))
        shown = page_of(run).shown
        assert expected in shown
        assert ("It never learnt" in shown) == (mode != "off")


@pytest.mark.parametrize("rounds", [1, 70])
def test_few_and_many_rounds_fit(tmp_path: Path, rounds: int) -> None:
    run = create(tmp_path)
    for number in range(1, rounds + 1):
        run.commit(RoundId(number), b"", {}, row(number, loss=1 / number))
    assert page_of(run).shown.count("Held-out loss") >= 1


def test_above_a_hundred_clients_come_a_histogram_and_the_ten_worst_and_the_others_are_folded_away(
    tmp_path: Path,
) -> None:
    for count in (99, 120):
        run = create(tmp_path / str(count))
        names = [f"site-{i}" for i in range(count)]
        run.commit(RoundId(1), b"", {}, row(1, loss=0.5, clients=tuple(client(name) for name in names)))
        rows = tuple(
            Comparison(
                client=name, examples=8, alone=0.5, federated=0.2 + (9 if 9 < i < 13 else i) / 200, centralised=None
            )
            for i, name in enumerate(reversed(names))
        )
        every = Comparison(client="all", examples=900, alone=0.5, federated=0.01, centralised=0.8)
        run.write_summary(
            Summary(outcome="finished", rounds=1, seconds=1.0, bytes_up=1, bytes_down=1, comparison=(*rows, every))
        )
        shown = " ".join(page_of(run).shown.split())
        assert ("The ten worst clients" in shown) == (count == 120)
        assert (f"All {count} clients" in shown) == (count == 120)
        assert ("3 more are as bad as the last of these" in shown) == (count == 120)
    worst = shown.split("The ten worst clients")[1].split("Every client")[0]
    assert re.findall(r"site-(\d{3})", worst) == [str(number) for number in range(119, 109, -1)]


def private(parent: Path, privacy: str) -> RunDirectory:
    config = parse(SOURCE + privacy, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    return RunDirectory.create(
        config,
        source=SOURCE + privacy,
        adapter=AdapterSpec(blocks=()),
        base_digest="sha256:b",
        command=("fedpeft", "simulate"),
    )


def test_a_private_run_shows_what_it_spent_by_round_and_says_that_losses_are_withheld(tmp_path: Path) -> None:
    run = private(
        tmp_path,
        '[privacy]\nunit = "example"\nepsilon = 9.0\ndelta = 1e-5\nl2_clip_norm = 1.0\nnoise_multiplier = 1.0\n',
    )
    for number in (1, 2):
        for name, q in (("a", 0.01), ("b", 0.05)):
            statement = ExampleStatement(
                epsilon=float(number) * q,
                delta=1e-5,
                noise_multiplier=1.0,
                l2_clip_norm=1.0,
                sampling_rate=q,
                steps=8 * number,
            )
            run.record(STATED, round_id=RoundId(number), client=name, detail=detail_of(statement))
        run.commit(RoundId(number), b"", {}, row(number, loss=None, clients=(client("a"), client("b"))))
    text = write_report(run.path).read_text()
    shown = " ".join(page_of(run).shown.split())
    assert "Privacy spent" in shown
    assert "Withheld: private" in shown
    assert "Nothing was recorded" not in shown
    tile = re.search(r"ε ([\d.]+)spent at delta 1e-05, of one example of the device with the largest", shown)
    assert tile is not None
    assert float(tile[1]) == pytest.approx(statement.opinions().charged, rel=0.01)
    assert "round 1: 0.05" in text
    assert "round 2: 0.1" in text
    assert "NOT COVERED" not in shown
    run.commit(RoundId(3), b"", {}, row(3, loss=None, clients=(client("a"), client("c"))))
    shown = " ".join(page_of(run).shown.split())
    tile = re.search(r"of the device with the largest; NOT COVERED: (\d+) devices summed without a statement", shown)
    assert tile is not None, "b said all it owed; a and c did not"
    assert tile[1] == "2"


def test_a_run_by_clients_has_one_figure_on_its_page_which_is_what_is_charged(tmp_path: Path) -> None:
    run = private(
        tmp_path,
        '[aggregate]\nweight = "uniform"\n[secagg]\nmin_cohort = 3\n'
        '[privacy]\nunit = "client"\nepsilon = 20.0\ndelta = 0.01\n',
    )
    made = [
        Release(noise_multiplier=2.5, shares=shares, share_sigma=1e5, parameters=4, devices=50) for shares in (2, 3)
    ]
    with PrivacyLedger(
        run.path / "privacy" / "ledger.jsonl", witness=tmp_path / "w", budget=Budget(epsilon=20.0, delta=0.01)
    ) as ledger:
        for place, release in enumerate(made):
            ledger.charge(f"round {place + 1}", release)
    run.commit(RoundId(1), b"", {}, row(1, loss=None))
    view, text = read_run(run.path), write_report(run.path).read_text()
    statement, spent = client_statement(view), spent_of(view)
    assert statement is not None
    assert spent is not None
    assert spent.epsilon == statement.opinions.charged == opinions(made, 0.01).charged
    assert spent.curve[-1] == (2, statement.opinions.ours)
    assert "release 2: " in text
    assert "Epsilon over the releases" in text


def test_every_text_of_the_report_has_the_contrast_of_wcag_aa() -> None:
    """4.5 to 1 on the page and on cards, by day and by night; lines of charts 3 to 1."""
    style = (Path(page_module.__file__).parent / "report.html").read_text()
    day, night = style.split("prefers-color-scheme: dark", 1)
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in (day, night)]
    for theme in themes:
        for ground in ("page", "card"):
            for text in ("ink", "soft", "faint", "good", "bad"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
            for line in ("series-1", "series-2"):
                assert contrast(theme[line], theme[ground]) >= 4.5, (line, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
