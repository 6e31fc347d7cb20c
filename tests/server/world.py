"""One process of the coordinator over a run directory, an in-memory fleet and an unreliable network."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fedpeft.adapter import AdapterState
from fedpeft.config import RunConfig, parse
from fedpeft.entropy import seeded_entropy
from fedpeft.ids import BlockId, NodeId
from fedpeft.round.events import Event
from fedpeft.round.transport import Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol
from fedpeft.testing.network import CoordinatorKilled, Fault, FaultyTransport
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import GivenTrainer, LinearTrainer, one_hot, toy_plan_of, toy_spec, toy_state
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run, verify_run

SOURCE = toy_run(
    """
[train]
local_steps = 4
decay = "linear"
[rounds]
count = 3
max_failures = 2
stage_deadline_s = 10.0
""",
    clients=5,
    name="small",
)
SPEC = toy_spec({"head": 5, "bitfit": 3})
INITIAL = toy_state(SPEC)
HEAD = BlockId("head")
NODES = [NodeId(1000 + place) for place in range(5)]
ALL = frozenset({"head", "bitfit"})
BLOCKS = {"a": ALL, "b": ALL, "c": ALL, "d": frozenset({"head"}), "e": frozenset({"bitfit"})}
TRAINING = [Stage.FIT, Stage.SHARE, Stage.MASK, Stage.CONSIST, Stage.REVEAL]

Hook = Callable[[str, str], None]
"""Called with (before or after, what) around everything durable; may raise."""


def linear_fleet() -> ToyFleet:
    return enrol({name: LinearTrainer(name, SPEC, blocks) for name, blocks in BLOCKS.items()})


def one_hot_fleet() -> ToyFleet:
    return enrol({name: GivenTrainer(SPEC, {"head": one_hot(5, i)}) for i, name in enumerate("abcde")})


def nothing(_when: str, _what: str) -> None:
    pass


class World:
    """A run directory, a fleet and a network; ``train`` is one process of the coordinator."""

    def __init__(self, where: Path, fleet: ToyFleet | None = None, faults: Sequence[Fault] = (), **rounds: object):
        self.fleet = fleet or linear_fleet()
        self.clock = FakeClock()
        self.network = FaultyTransport(self.fleet.handles, self.clock, faults)
        config = parse(SOURCE, source="run.toml", simulation=True)
        changed = config.rounds.model_copy(update=rounds)
        self.config: RunConfig = config.model_copy(update={"directory": where, "rounds": changed})
        self.plan = toy_plan_of(self.config, SPEC)
        self.path: Path | None = None
        self.events: list[Event] = []

    def train(self, hook: Hook = nothing) -> AdapterState:
        run = self._run()
        self.path = run.path
        commit = run.commit

        def publish(slot: str, state: AdapterState) -> None:
            hook("before", slot)
            run.publish_adapter(slot, lambda folder: _write(folder, state))  # type: ignore[arg-type]
            hook("after", slot)

        def committing(round_id, *arguments):  # type: ignore[no-untyped-def]
            hook("before", f"commit {round_id}")
            row = commit(round_id, *arguments)
            hook("after", f"commit {round_id}")
            return row

        run.commit = committing  # type: ignore[method-assign]
        with run:
            return Federation(
                self.config,
                self.plan.model_copy(update={"run_id": run.manifest.run_id}),
                run,
                self.network,
                identity=self.fleet.coordinator,
                clock=self.clock,
                observe=self.events.append,
                publish=publish,
                entropy=self.fleet.entropy,
            ).train(INITIAL)

    def restart(self) -> None:
        """Every process starts anew; disks are kept."""
        for node in self.fleet.nodes:
            self.fleet.restart(node)
        self.network = FaultyTransport(self.fleet.handles, self.clock)

    def _run(self) -> RunDirectory:
        if self.path is not None:
            return RunDirectory.open(self.path, clock=self.clock)
        return RunDirectory.create(
            self.config,
            source=SOURCE,
            adapter=SPEC,
            base_digest="sha256:toy",
            command=("fedpeft", "simulate"),
            clock=self.clock,
            entropy=seeded_entropy(0, "run id"),
        )

    def outcome(self) -> dict[str, object]:
        """All that a run leaves but for times and bytes, which depend on when it was killed."""
        assert self.path is not None
        view = read_run(self.path)
        rows = [(row.round, row.loss, row.accuracy, row.train_loss, row.checkpoint) for row in view.rounds]
        slots = {slot: (self.path / "adapters" / slot / "state").read_bytes() for slot in ("latest", "best", "final")}
        return {"rows": rows, "problems": list(verify_run(self.path)), **slots}


def _write(folder: Path, state: AdapterState) -> None:
    (folder / "state").write_bytes(state.to_safetensors())


def raising_at(when: str, what: str, *, nth: int = 1) -> Hook:
    seen = 0

    def hook(now: str, this: str) -> None:
        nonlocal seen
        if (now, this) == (when, what):
            seen += 1
            if seen == nth:
                raise CoordinatorKilled(f"{when} {what}")

    return hook
