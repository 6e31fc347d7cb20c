"""Each task in what is kept of a run, and at a site that fetched it. See ``test_asked``."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
from fedpeft.cli import main
from fedpeft.tasks import TASKS
from fedpeft_server.run.run_view import read_run
from tests.using.every_task.plain import TOKENS, Plain
from tests.using.every_task.rows import ROWS, Made
from tests.using.every_task.test_asked import close, plain

__all__ = ["plain"]
pytestmark = [pytest.mark.torch, pytest.mark.e2e]
cell = pytest.mark.drawn(2)
every_row = pytest.mark.parametrize("name", ROWS)
Given = Callable[[str], Made]
Capture = pytest.CaptureFixture[str]


@cell
@every_row
def test_report(name: str, made: Given, capsys: Capture) -> None:
    one, record = made(name), TASKS[ROWS[name].kind]  # type: ignore[index]
    assert main(["runs", "report", str(one.run)]) == 0
    page = Path(capsys.readouterr().out.strip().splitlines()[-1]).read_text()
    words = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    row = read_run(one.run).rounds[-1]
    measured = {"accuracy": row.accuracy, **row.metrics}
    for metric in {record.best, record.compared} & measured.keys():
        assert measured[metric] is not None
    assert record.best.partition("/")[0].replace("_", " ").split()[0] in words.lower()
    if record.counted == "tokens":
        assert "tokens" in words
        assert "Accuracy on held-out examples" not in words


@cell
@every_row
def test_compare(name: str, made: Given, capsys: Capture) -> None:
    one = made(name)
    capsys.readouterr()
    assert main(["runs", "compare", str(one.run), str(one.run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["runs"]
    record, rounds = TASKS[ROWS[name].kind], read_run(one.run).rounds  # type: ignore[index]
    assert figures[0] == figures[1]
    assert figures[0]["loss"] in {row.loss for row in rounds}
    assert figures[0]["rounds"] == 1, "the final evaluation is no round"
    assert main(["runs", "ls", str(one.run.parent)]) == 0
    assert "    1 round " in capsys.readouterr().out
    for command in (["runs", "show"], ["privacy", "report"]):
        assert main([*command, str(one.run)]) == 0
        said = capsys.readouterr().out
        assert "1 round committed" in said
        assert "round    2" not in said
    kept = next(row for row in rounds if row.loss == figures[0]["loss"])
    for metric, value in kept.metrics.items():
        assert figures[0][metric] == value
    assert (record.best in figures[0]) or record.best == "loss"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[Path, Path]]":
    """Where a coordinator keeps runs, and the home of a device that it knows."""
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft.planner import REFERENCE
    from fedpeft_client.enrolment.join import JoinOptions, join
    from fedpeft_client.home import DeviceHome
    from tests.deployment.conftest import start_coordinator

    running, home = start_coordinator(tmp_path_factory.mktemp("coordinator")), DeviceHome(tmp_path_factory.mktemp("d"))
    options = JoinOptions(
        token=running.token(), device="client-1", organisation="", bases="", profile=REFERENCE.to_json()
    )
    join(
        home, options, clock=SystemClock(), entropy=os_entropy, wait_s=0.0, pause=lambda seconds: None,
        on_waiting=lambda code: None,
    )  # fmt: skip
    running.home.runs.mkdir(parents=True, exist_ok=True)
    yield running.home.runs, home.path
    running.service.stop()
    running.registry.close()


@pytest.mark.drawn(2, always=lambda name, **_: name == "seq2seq")  # its metrics were once another model's
@every_row
def test_pull(name: str, made: Given, plain: Callable[[str], Plain], site: tuple[Path, Path], capsys: Capture) -> None:
    one, (runs, home) = made(name), site
    shutil.copytree(one.run, runs / one.run.name, dirs_exist_ok=True)
    if not (home / "bases").is_symlink():
        (home / "bases").symlink_to(one.store)  # as if it had trained
    at = ["--home", str(home)]
    capsys.readouterr()
    assert main(["client", "adapter", "ls", *at]) == 0
    assert f"{one.run.name}  final after 1 round " in capsys.readouterr().out
    assert main(["client", "adapter", "pull", one.run.name, *at]) == 0
    capsys.readouterr()
    line = ["client", "adapter", "predict", one.run.name, "--file", one.file, "--probabilities", "--max-tokens", TOKENS]
    assert main([*map(str, line), *at]) == 0
    for said, row in zip(map(json.loads, capsys.readouterr().out.splitlines()), one.asked, strict=True):
        close(said, plain(name).answer(row))
    scores = []
    for command in (
        ["client", "adapter", "eval", one.run.name, *at],
        ["adapter", "eval", str(one.run), "--store", str(one.store)],
    ):
        assert main([*command, "--data", str(one.file), "--json"]) == 0
        scores.append({key: value for key, value in json.loads(capsys.readouterr().out).items() if key != "run"})
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-5)
