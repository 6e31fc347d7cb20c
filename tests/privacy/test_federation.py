"""Whole private runs over the real secure sum, without torch: the ledger before each opening, crashes, restores.

Noise is the operating system's; nothing here depends on its values but for bounds of 1 in 10^8.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedpeft.errors import ConfigInvalid, IntegrityFailed, QuorumMissed
from fedpeft.ids import NodeId
from fedpeft.privacy import Budget, PrivacyLedger
from fedpeft.round.device.records import OpenRound
from fedpeft.round.transport import Reply, Stage
from fedpeft.secagg import RevealRequest
from fedpeft.testing.network import CoordinatorKilled, Fault
from fedpeft.testing.trainers import toy_plan
from fedpeft.wire import decode, encode
from fedpeft_server.privacy.client_level import LEDGER, ClientPrivacy
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.privacy_statements import privacy_lines
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run

sys.path.insert(0, str(Path(__file__).parent))
from private_world import BITFIT, HEAD, INITIAL, SPEC, Watched, World


def test_a_private_run_spends_its_budget_and_no_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train()
    with world.ledger() as ledger:
        assert len(ledger.entries) == 3
        assert 0.98 * 8.0 < ledger.spent() <= 8.0


def test_the_step_is_the_clipped_noisy_sum_over_a_fixed_denominator(tmp_path: Path) -> None:
    """Deltas of norm 800 move the state by at most C and the noise: nothing else got through."""
    world = World(tmp_path, "rounds.count=1")
    state = world.train()
    with world.ledger() as ledger:
        release = ledger.entries[0].release
    assert release.parameters == 64
    assert release.shares == 3
    step = np.concatenate([state[block] - INITIAL[block] for block in (HEAD, BITFIT)])
    most_noise = release.noise_multiplier * np.sqrt(6 / 3) * np.sqrt(64) / 6
    assert np.linalg.norm(step) < 1.0 + 2.0 * most_noise


def test_nothing_is_measured(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train()
    assert world.path is not None
    with RunDirectory.open(world.path) as run:
        assert [row.round for row in run.rounds] == [1, 2, 3], "no round for an evaluation"
        for row in run.rounds:
            assert (row.loss, row.accuracy, row.train_loss, row.evaluators) == (None, None, None, 0)
    for store in world.fleet.stores.values():
        opened = decode(store.values["open-round"], OpenRound)
        assert {part.block_id for part in opened.inputs} == {HEAD, BITFIT}


def test_every_opening_was_charged_before_it_was_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train()
    openings = [charged for stage, charged in world.network.charged if stage is Stage.REVEAL]
    assert openings == [1, 2, 3]
    assert [charged for stage, charged in world.network.charged if stage is Stage.MASK] == [0, 1, 2]


def test_two_runs_of_one_seed_differ_by_their_noise(tmp_path: Path) -> None:
    states = [World(tmp_path / name).train() for name in "xy"]
    assert np.abs(states[0][HEAD] - states[1][HEAD]).min() > 0


@pytest.mark.parametrize(("stage", "charges"), [(Stage.FIT, 1), (Stage.MASK, 1), (Stage.CONSIST, 2), (Stage.REVEAL, 2)])
def test_a_kill_never_resets_what_is_spent_and_never_charges_a_round_twice(
    tmp_path: Path, stage: Stage, charges: int
) -> None:
    """Killed in round 2: charged once its survivors were fixed; the sum of those is the one that is paid for."""
    world = World(
        tmp_path, "rounds.count=3", "privacy.noise_multiplier=4.0", faults=(Fault(kind="kill", stage=stage, after=1),)
    )
    with pytest.raises(CoordinatorKilled):
        world.train()
    with world.ledger() as ledger:
        assert len(ledger.entries) == charges
    world.restart()
    world.train()
    with world.ledger() as ledger:
        assert [entry.label.rpartition(" round ")[2] for entry in ledger.entries] == ["1", "2", "3"]


def test_a_burnt_round_is_charged_and_never_paid_for_again(tmp_path: Path) -> None:
    """Round 2 is charged, its shares never arrive: the calibrated budget holds for the two sums and the lost one."""
    world = World(tmp_path, faults=(Fault(kind="lose-request", stage=Stage.REVEAL, after=1, times=2),))
    world.train()
    assert world.path is not None
    assert [bool(row.burnt) for row in read_run(world.path).rounds] == [False, True, False]
    assert [charged for stage, charged in world.network.charged if stage is Stage.CONSIST] == [1, 2, 3]
    with world.ledger() as ledger:
        assert len(ledger.entries) == 3
        assert ledger.spent() <= 8.0
    assert any("1 of the releases were lost" in line for line in privacy_lines(read_run(world.path)))


@pytest.mark.parametrize("kill", [False, True])
def test_a_round_whose_masked_inputs_are_lost_is_burnt_under_noise_and_the_next_one_is_summed(
    tmp_path: Path, kill: bool
) -> None:
    """Devices mask once a round: the same inputs under a second draw of noise are never asked for, nor given."""
    lost = Fault(kind="lose-reply", stage=Stage.MASK, after=1)
    world = World(tmp_path, faults=(lost,))
    if kill:  # by the deadline of that stage, as if nothing had come back
        world.network.exchange = _killed_after_masking(world.network)  # type: ignore[method-assign]
        with pytest.raises(CoordinatorKilled):
            world.train()
        world.restart()
    world.train()
    assert world.path is not None
    assert [bool(row.burnt) for row in read_run(world.path).rounds] == [False, True, False]
    with world.ledger() as ledger:
        assert len(ledger.entries) == 2, "nothing of the burnt round can be opened by us"


def _killed_after_masking(network: Watched) -> Callable[..., Iterator[Reply]]:
    """The exchange of a coordinator that dies once all devices have masked in round 2."""
    exchange, stages = network.exchange, list[Stage]()

    def dying(stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        stages.append(stage)
        yield from exchange(stage, requests, deadline_s=deadline_s)
        if stages.count(Stage.MASK) == 2:
            raise CoordinatorKilled("after the masked inputs had left")

    return dying


def test_a_charge_that_the_disk_lost_is_made_before_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the pending round and its charge."""
    world = World(tmp_path)
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise CoordinatorKilled("before the charge")

        patch.setattr(ClientPrivacy, "charge", killed)
        with pytest.raises(CoordinatorKilled):
            world.train()
    with world.ledger() as ledger:
        assert ledger.entries == ()
    world.restart()
    world.train()
    assert [charged for stage, charged in world.network.charged if stage is Stage.CONSIST] == [1, 2, 3]


def test_a_restored_old_ledger_is_refused(tmp_path: Path) -> None:
    kill = Fault(kind="kill", stage=Stage.FIT, after=1)
    world = World(tmp_path, faults=(kill,))
    with pytest.raises(CoordinatorKilled):
        world.train()
    assert world.path is not None
    ledger = world.path / LEDGER
    shutil.copy(ledger, tmp_path / "backup")
    world.restart(kill)
    with pytest.raises(CoordinatorKilled):
        world.train()
    shutil.copy(tmp_path / "backup", ledger)
    world.restart()
    with pytest.raises(IntegrityFailed, match="older or another copy"):
        world.train()


def test_too_few_devices_open_nothing_and_cost_nothing(tmp_path: Path) -> None:
    gone = [Fault(kind="lose-request", stage=Stage.MASK, node=NodeId(1000 + i), times=None) for i in range(3)]
    world = World(tmp_path, faults=tuple(gone))
    with pytest.raises(QuorumMissed):
        world.train()
    with world.ledger() as ledger:
        assert ledger.entries == ()


def site_ledger(where: Path, epsilon: float) -> PrivacyLedger:
    return PrivacyLedger(
        where / "site.jsonl", witness=where / "w" / "witness", budget=Budget(epsilon=epsilon, delta=0.01)
    )


def test_a_device_charges_its_own_ledger_and_refuses_past_its_budget(tmp_path: Path) -> None:
    world = World(tmp_path)
    device = world.fleet.devices[NodeId(1000)]
    with site_ledger(tmp_path, epsilon=6.0) as budget:
        device._budget, told = budget, []
        device._tell = told.append
        world.train()
        assert len(budget.entries) == 1 or len(budget.entries) == 2
        assert budget.spent() <= 6.0
        assert budget.would_exceed(budget.entries[0].release)
    failures = [event.detail for event in world.events if event.device == "a" and "refused" in event.detail]
    assert set(failures) == {"refused"}
    assert any("this device's own" in trouble.cause for trouble in told)


def test_a_device_pays_when_it_masks_and_a_liar_cannot_make_it_pay(tmp_path: Path) -> None:
    """Once a round, however often it is asked; nothing for requests that it refuses."""
    world = World(tmp_path, "rounds.count=1")
    device = world.fleet.devices[NodeId(1000)]
    lie = encode(RevealRequest(context=bytes(32), survivors=b"\xff", signers=b"\xff", signatures=b"", masked=b""))
    with site_ledger(tmp_path, epsilon=60.0) as budget:
        device._budget, paid = budget, []
        handle = device.handle

        def asked(stage: Stage, payload: bytes) -> bytes:
            paid.append((stage, len(budget.entries)))
            if stage is not Stage.PROFILE and stage is not Stage.FIT:
                handle(Stage.REVEAL, lie)
                assert len(budget.entries) == paid[-1][1], f"a false request before {stage} was charged"
            replies = {handle(stage, payload) for _ in range(2)}
            return replies.pop()

        world.network.devices[NodeId(1000)] = asked
        world.train()
        assert [count for stage, count in paid if stage in (Stage.MASK, Stage.CONSIST, Stage.REVEAL)] == [0, 1, 1]
        assert [entry.label.rpartition(" round ")[2] for entry in budget.entries] == ["1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("privacy.noise_multiplier=0.5",), "at most . rounds"),
        (("privacy.epsilon=1e-7", "privacy.delta=1e-12"), "some noise reaches"),
    ],
)
def test_a_budget_that_the_rounds_do_not_fit_into_is_refused_at_the_start(
    tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    world = World(tmp_path, *overrides)
    with pytest.raises(ConfigInvalid, match=words):
        world.train()
    assert world.network.charged == []


def test_a_federation_without_its_ledger_does_not_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world._run() as run, pytest.raises(TypeError, match="ClientPrivacy"):
        Federation(
            world.config,
            toy_plan(SPEC),
            run,
            world.network,
            identity=world.fleet.coordinator,
            clock=world.clock,
            observe=world.events.append,
            publish=lambda slot, state: None,
        )
