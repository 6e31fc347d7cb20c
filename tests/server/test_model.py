"""A federation in every order of things: enrolments, revocations, rounds under faults, kills, restarts, old backups.

Every device adds one to its own coordinate. Whatever happened, the global state must be what the committed rows say:
the mean over those that were in each sum, and nothing for a burnt round. A coordinate too far is a replay, one that
lags is a loss. And a round that was committed stays, unless an operator puts an old backup back.
"""

import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedpeft.adapter import AdapterState
from fedpeft.errors import FedpeftError
from fedpeft.round.transport import Stage
from fedpeft.testing.network import CoordinatorKilled, Fault, FaultyTransport
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_view import read_run

sys.path.insert(0, str(Path(__file__).parent))
from world import HEAD, INITIAL, NODES, SPEC, World, one_hot_fleet, raising_at

PLACES = {name: place for place, name in enumerate("abcde")}
STAGES = [Stage.PROFILE, Stage.FIT, Stage.SHARE, Stage.MASK, Stage.CONSIST, Stage.REVEAL]
KINDS = ["lose-request", "lose-reply", "delay", "repeat-request", "repeat-reply", "corrupt-reply", "reverse"]
FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(KINDS),
    stage=st.sampled_from(STAGES),
    node=st.sampled_from(NODES),
    after=st.integers(0, 1),
    times=st.sampled_from([1, 2, None]),
    at=st.floats(0, 0.99),
)


class FederationMachine(RuleBasedStateMachine):
    """One step of a rule is one process of the coordinator, or one deed of an operator or device."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedpeft-model-"))
        self.world = World(self.folder / "runs", one_hot_fleet(), count=60, max_failures=2)
        self.enrolled = set(NODES)
        self.backup: tuple[Path, int] | None = None
        self.committed: tuple[RoundMetrics, ...] = ()

    @rule(faults=st.lists(FAULTS, max_size=4))
    def train_a_round(self, faults: list[Fault]) -> None:
        """The coordinator's process ends right after its first commit, if it gets that far."""
        self._run(faults, "after", f"commit {len(self.committed) + 1}")

    @rule(
        faults=st.lists(FAULTS, max_size=2),
        when=st.sampled_from(["before", "after"]),
        what=st.sampled_from(["best", "latest"]),
    )
    def be_killed_while_publishing(self, faults: list[Fault], when: str, what: str) -> None:
        self._run(faults, when, what)

    @rule(faults=st.lists(FAULTS, max_size=2))
    def be_killed_before_a_commit(self, faults: list[Fault]) -> None:
        self._run(faults, "before", f"commit {len(self.committed) + 1}")

    @rule(faults=st.lists(FAULTS, max_size=2), stage=st.sampled_from(STAGES))
    def be_killed_before_an_exchange(self, faults: list[Fault], stage: Stage) -> None:
        self._run([*faults, Fault(kind="kill", stage=stage)], "after", f"commit {len(self.committed) + 1}")

    @rule(node=st.sampled_from(NODES))
    def restart_a_device(self, node) -> None:
        self.world.fleet.restart(node)

    @rule(node=st.sampled_from(NODES))
    def revoke(self, node) -> None:
        self.enrolled.discard(node)

    @rule(node=st.sampled_from(NODES))
    def enrol_anew(self, node) -> None:
        """It comes back with nothing but its key."""
        self.world.fleet.restart(node, wiped=True)
        self.enrolled.add(node)

    @precondition(lambda self: self.world.path is not None)
    @rule()
    def back_up(self) -> None:
        copy = self.folder / "backup"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.world.path, copy)
        self.backup = copy, len(self.committed)

    @precondition(lambda self: self.backup is not None)
    @rule()
    def restore_the_backup(self) -> None:
        copy, rounds = self.backup
        shutil.rmtree(self.world.path)
        shutil.copytree(copy, self.world.path)
        self.committed = self.committed[:rounds]

    @invariant()
    def the_state_is_what_the_rows_say(self) -> None:
        if not hasattr(self, "world") or self.world.path is None:
            return
        rows = read_run(self.world.path).rounds
        assert rows[: len(self.committed)] == self.committed, "a committed round is gone or has changed"
        assert len(rows) <= len(self.committed) + 1, "one process committed more than the one round it had"
        self.committed = rows
        expected = INITIAL[HEAD].astype(np.float64)
        for row in rows:
            summed = [PLACES[client.client] for client in row.clients if client.state == "summed"]
            if row.burnt:  # the number is used up, and nothing was added
                assert not summed
                continue
            assert len(summed) == row.devices_survived >= 3
            expected[summed] += 1 / len(summed)
        if rows:
            path = self.world.path / "checkpoints" / f"r{rows[-1].round:04d}" / "global.safetensors"
            state = AdapterState.from_safetensors(SPEC, path.read_bytes())
            np.testing.assert_allclose(state[HEAD], expected, atol=1e-5)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def _run(self, faults: list[Fault], when: str, what: str) -> None:
        handles = self.world.fleet.handles
        there = {node: handles[node] for node in sorted(self.enrolled)}
        self.world.network = FaultyTransport(there, self.world.clock, faults)
        wanted, bound = raising_at(when, what), raising_at("before", f"commit {len(self.committed) + 2}")

        def hook(now: str, this: str) -> None:
            wanted(now, this)
            bound(now, this)  # "best" may not come in this round

        with suppress(CoordinatorKilled, FedpeftError):  # too few devices, or too many failures: said, and nothing lost
            self.world.train(hook)


TestFederationMachine = FederationMachine.TestCase
TestFederationMachine.settings = settings(
    max_examples=18, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
