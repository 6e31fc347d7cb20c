"""A submitted run on the coordinator, with the real queue, registry, run directory and rounds; devices in memory."""

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from fedpeft.ids import NodeId
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_state
from fedpeft_server.enrolment.active_devices import ActiveDevices
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, Status
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.device_turns import DeviceTurns
from fedpeft_server.jobs.disk_space import DiskFull
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState
from fedpeft_server.jobs.job_runner import Interrupted, JobContext, JobRunner
from fedpeft_server.run import run_directory
from fedpeft_server.service.prometheus import Meters

TOY = Path(__file__).parent.parent / "e2e" / "toy"
sys.path.insert(0, str(TOY))
from federation import RUN  # noqa: E402  the toy processes import each other by these names
from toy_spec import DEVICES, SPEC  # noqa: E402


@dataclass
class Bench:
    """A coordinator's home with four devices that answer at once."""

    path: Path
    stop: Callable[[Job], None] = lambda job: None
    told: list[str] = field(default_factory=list)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.home, self.clock = CoordinatorHome(self.path), FakeClock(step_s=5.0)
        self.home.runs.mkdir()
        self.fleet: ToyFleet = enrol(
            {name: GivenTrainer(SPEC, {"lora.B.t4": one_hot(4, place)}) for place, name in enumerate(DEVICES)}
        )
        self.home.pki.mkdir()
        self.home.identity_seed.write_bytes(self.fleet.coordinator.secret_bytes())
        self.home.settings_file.write_text(
            '{"hosts": ["h"], "bind": "::1", "fleet_port": 1, "service_port": 2, "enrol_port": 3, "metrics_port": 5}'
        )
        self.registry, self.queue = Registry(self.home.registry), JobQueue(self.path / "queue")
        nodes = {name.encode(): node for node, name in self.fleet.names.items()}
        for name, node in zip(DEVICES, self.fleet.nodes, strict=True):
            self.registry.put(self.enrolled(name, node))
        self.audit = AuditLog(self.home.audit, self.clock)
        self.engine = JobRunner(
            JobContext(
                home=self.home,
                queue=self.queue,
                members=ActiveDevices(
                    self.registry, enrol=lambda key, name: nodes[key], expel=lambda key: None, clock=self.clock
                ),
                transport=InMemoryTransport(self.fleet.handles, self.clock),
                clock=self.clock,
                meters=Meters(),
                audit=self.audit,
                interrupted=self._interrupted,
                stopping=lambda: self.stopping,
                tell=self.told.append,
                turns=DeviceTurns(self.clock),
                model_process="toy_model_process",
            )
        )

    def enrolled(self, name: str, node: NodeId) -> EnrolledDevice:
        return EnrolledDevice(
            name=name, organisation=name, status=Status.ACTIVE, identity=self.fleet.keys[name].public,
            node_key=name.encode(), csr=b"", serial=None, certificate=b"", profile="", code="", token_id="",
            reason="", node_id=node, since="",
        )  # fmt: skip

    def _interrupted(self, job: Job) -> None:
        self.stop(job)

    def interrupt_after_a_round(self, job: Job) -> None:
        if job.run and self.rows(job):
            raise Interrupted("stopped")

    def work(self, rounds: int = 2, least: int = 3) -> Job:
        return self.engine.work(
            self.queue.submit(RUN.format(base="0" * 64, rounds=rounds, least=least, more=""), source="x")
        )

    def work_without(self, *names: str) -> Job:
        text = RUN.format(base="0" * 64, rounds=1, least=3, more="")
        return self.engine.work(self.queue.submit(text, source="x", without=names))

    def rows(self, job: Job) -> list[str]:
        rows = self.home.runs / job.run / "metrics.jsonl"
        return rows.read_text().splitlines() if rows.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_run_goes_from_the_queue_to_its_adapter_and_the_audit_log_tells(bench: Bench) -> None:
    job = bench.work()
    assert (job.state, job.reason) == (JobState.FINISHED, "")
    assert bench.queue.job("1") == job
    assert len(bench.rows(job)) == 3
    assert (bench.home.runs / job.run / "adapters" / "final" / "state.safetensors").exists()
    events = [record.event.value for record in bench.audit.records()]
    assert events == ["run-started", *["round-committed"] * 3, "run-ended"]


def test_a_run_without_a_device_never_asks_it(bench: Bench) -> None:
    name, *_ = sorted(bench.fleet.names.values())
    job = bench.work_without(name)
    assert (job.state, job.without) == (JobState.FINISHED, (name,))
    assert bench.queue.job("1") == job
    asked = {one["client"] for row in bench.rows(job) for one in json.loads(row)["clients"]}
    assert asked == {*bench.fleet.names.values()} - {name}


def test_a_deployed_run_says_the_rates_that_it_trains_with(bench: Bench) -> None:
    job = bench.work(rounds=1)
    assert any(line.startswith("run 1: learning rates: lora.B ") for line in bench.told)
    events = (bench.home.runs / job.run / "events.jsonl").read_text()
    assert "learning rates: lora.B " in events


def test_a_stopped_run_keeps_what_is_committed_and_goes_on_from_there(bench: Bench) -> None:
    bench.stop = bench.interrupt_after_a_round
    stopped = bench.work()
    assert stopped.state is JobState.STOPPED
    assert len(bench.rows(stopped)) == 1
    first = bench.rows(stopped)[0]
    bench.stop = lambda job: None
    done = bench.engine.work(bench.queue.resume(stopped))
    assert (done.state, done.run) == (JobState.FINISHED, stopped.run)
    assert bench.rows(done)[0] == first
    assert len(bench.rows(done)) == 3


def test_a_disk_that_is_full_as_a_run_goes_on_leaves_the_run_to_the_next_try(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a run that was opened and left was this process's for good: "held by another process", by itself."""
    bench.stop = bench.interrupt_after_a_round
    stopped = bench.work()
    bench.stop = lambda job: None
    kept = bench.home.runs / stopped.run / "adapter.json"
    kept.write_bytes(b"{")

    def full(path: Path, payload: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as disk:
        disk.setattr(run_directory, "write_file", full)
        with pytest.raises(DiskFull, match="No space left"):  # which makes the coordinator wait for room
            bench.engine.work(bench.queue.resume(stopped))
    assert bench.engine.work(bench.queue.current(stopped)).state is JobState.FINISHED


def test_a_coordinator_that_goes_down_leaves_the_run_to_the_next_one(bench: Bench) -> None:
    def down(job: Job) -> None:
        raise Interrupted("running")

    bench.stop = down
    assert bench.work().state is JobState.RUNNING
    assert bench.queue.next() is not None


def test_no_round_begins_once_the_coordinator_goes_down(bench: Bench) -> None:
    def after_one_round(job: Job) -> None:
        bench.stopping = bool(job.run and bench.rows(job))

    bench.stop = after_one_round
    paused = bench.work()
    assert paused.state is JobState.RUNNING
    assert len(bench.rows(paused)) == 1


def test_a_run_that_waits_for_devices_is_stopped_at_once(bench: Bench) -> None:
    for name in DEVICES:
        bench.registry.put(replace(bench.registry.device(name), status=Status.REVOKED, reason="lost"))

    def when_it_waits(job: Job) -> None:
        if any("devices are here" in line for line in bench.told):
            raise Interrupted("stopped")

    bench.stop = when_it_waits
    assert bench.work().state is JobState.STOPPED
    assert sum("devices are here" in line for line in bench.told) == 1


def test_a_run_without_enough_devices_says_whom_it_waited_for_and_fails(bench: Bench) -> None:
    for name in DEVICES[:2]:
        bench.registry.put(replace(bench.registry.device(name), status=Status.REVOKED, reason="lost"))
    job = bench.work()
    assert job.state is JobState.FAILED
    assert "2 devices available, 3 needed" in job.reason
    assert any("2 of 3 devices are here (ward-c, ward-d)" in line for line in bench.told)


def test_a_device_that_says_it_is_another_is_left_out(bench: Bench) -> None:
    impostor = replace(bench.registry.device("ward-a"), identity=b"x" * 32)
    bench.registry.put(impostor)
    job = bench.work(rounds=1)
    assert job.state is JobState.FINISHED
    assert all('"devices_survived":3' in row.replace(" ", "") for row in bench.rows(job))
    events = (bench.home.runs / job.run / "events.jsonl").read_text()
    assert "found another's" in events


def test_the_mean_over_two_rounds_is_exact(bench: Bench) -> None:
    job = bench.work()
    tensors = load((bench.home.runs / job.run / "adapters" / "final" / "state.safetensors").read_bytes())
    key = next(name for name in tensors if "lora.B" in name)
    before = next(vector for name, vector in toy_state(SPEC).items() if name.startswith("lora.B"))
    np.testing.assert_allclose(tensors[key].ravel() - before, np.full(4, 0.5), atol=1e-5)
