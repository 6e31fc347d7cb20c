"""Trackers read back by their own readers, and a plug-in of another package, installed for real."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.config import parse
from fedpeft.errors import ConfigInvalid, ResourceMissing
from fedpeft.ids import RoundId
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.track import Tracking, expect_trackers

SOURCE = """
[run]
name = "small"
[base]
model = "./model"
[task]
kind = "classify"
labels = ["no", "yes"]
[data]
source = "notes.jsonl"
partition = { by = "iid", clients = 3 }
[adapter]
bitfit = {}
[track]
to = [TO]
[[device]]
clients = ["*"]
methods = ["bitfit"]
"""


def row(number: int) -> RoundMetrics:
    return RoundMetrics(
        round=number,
        loss=1.0 / 3 / number,
        accuracy=None if number == 2 else 0.1 * number,
        evaluators=10,
        metrics={"macro_f1": 0.7 / number, "f1/Grüße & co [x]": 0.3},
        devices_invited=3,
        devices_ready=3,
        devices_survived=3,
        bytes_up=100,
        bytes_down=2**33 + number,
        seconds=1.5,
    )


def source(*trackers: str) -> str:
    return SOURCE.replace("TO", ", ".join(json.dumps(name) for name in trackers))


def tracked(parent: Path, *trackers: str, rounds: int = 3, stopped_after: int = 0) -> tuple[Path, list[str]]:
    """A run of so many rounds; and what was said."""
    text, said = source(*trackers), list[str]()
    config = parse(text, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    run = RunDirectory.create(
        config, source=text, adapter=AdapterSpec(blocks=()), base_digest="sha256:b", command=("fedpeft",)
    )
    with run:
        for first, last in (((1, stopped_after),) if stopped_after else ()) + ((stopped_after + 1, rounds),):
            with Tracking(config, run, said.append) as tracking:
                for number in range(first, last + 1):
                    run.commit(RoundId(number), b"", {}, row(number))
                    tracking.then()(row(number))
        return run.path, said


def expected(allowed: str = "f1/Grüße & co [x]") -> dict[tuple[str, int], float]:
    """Every number of metrics.jsonl, by the name that a tracker gives it and round."""
    found: dict[tuple[str, int], float] = {}
    for one in map(row, (1, 2, 3)):
        own = ("loss", "accuracy", "devices_survived", "bytes_up", "bytes_down", "seconds")
        values = {name: getattr(one, name) for name in own} | {"macro_f1": one.metrics["macro_f1"], allowed: 0.3}
        found |= {(name, one.round): value for name, value in values.items() if value is not None}
    return found


@pytest.mark.parametrize("stopped_after", [0, 2])
def test_tensorboard_reads_the_numbers_of_metrics_jsonl(tmp_path: Path, stopped_after: int) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, said = tracked(tmp_path, "tensorboard", stopped_after=stopped_after)
    events = reader.EventAccumulator(str(run / "track" / "tensorboard"))
    events.Reload()
    read = {(tag, one.step): one.value for tag in events.Tags()["scalars"] for one in events.Scalars(tag)}
    assert read == pytest.approx(expected(), rel=1e-6)  # it keeps single precision
    assert not said


def test_mlflow_reads_the_numbers_of_metrics_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_of = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, said = tracked(tmp_path, "mlflow", stopped_after=1)
    assert not said
    client = client_of(tracking_uri=f"sqlite:///{run / 'track' / 'mlflow' / 'mlflow.db'}")
    (kept,) = client.search_runs([client.get_experiment_by_name("fedpeft").experiment_id])
    read = {
        (name, one.step): one.value
        for name in kept.data.metrics
        for one in client.get_metric_history(kept.info.run_id, name)
    }
    assert read == expected("f1/Gr__e _ co _x_")
    assert kept.data.params["train.local_steps"] == "12"
    assert (kept.info.run_name, kept.info.status) == (run.name, "FINISHED")


def test_weights_and_biases_keeps_the_numbers_of_metrics_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run, said = tracked(tmp_path, "wandb")
    assert not said
    (log,) = (run / "track" / "wandb").glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 20.0  # its service writes on after the run is closed
    while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(log.read_bytes())):
        assert time.monotonic() < end
        time.sleep(0.1)
    read: dict[tuple[str, int], float] = {}
    for record in wandb_records(log.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            read |= {(name, items["_step"]): value for name, value in items.items() if not name.startswith("_")}
    assert read == expected()


def wandb_records(content: bytes) -> list:
    """The records of a log: after seven bytes blocks of 32 KiB as LevelDB's, each record whole or in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, parts, at = [], b"", 7
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def test_a_tracker_without_its_package_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceMissing, match=r"fedpeft\[mlflow\]"):
        expect_trackers(("mlflow",))


def test_an_unknown_tracker_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        parse(source("tensorbored"), source="run.toml", simulation=True)
    assert "tensorboard, mlflow, wandb" in str(refused.value)
    assert "tensorbored" in str(refused.value)


def test_a_plug_in_tracks_and_one_that_fails_ends_neither_run_nor_the_others(plugin_lab: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from test_track import tracked\n"
        "run, said = tracked(Path(sys.argv[1]), 'fragile', 'csv')\n"
        "print(run); print(*said, sep='\\n')"
    )
    known = os.pathsep.join([str(plugin_lab), *(entry for entry in sys.path if entry)])
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": known}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run, failed = done.stdout.splitlines()
    assert failed == "the tracker fragile failed and is told no more: ConnectionError: no such server"
    lines = (Path(run) / "track" / "csv" / "rounds.csv").read_text().splitlines()
    assert lines[0].endswith(", 12 steps")
    read = {(name, int(number)): float(value) for number, name, value in (line.split(",") for line in lines[2:])}
    assert read == expected()
    events = [json.loads(line) for line in (Path(run) / "events.jsonl").read_text().splitlines()]
    assert {event["detail"]["source"] for event in events if event["kind"] == "track.plugin"} == {"fedpeft-lab 0.3"}
    assert [event["detail"]["tracker"] for event in events if event["kind"] == "track.failed"] == ["fragile"]
