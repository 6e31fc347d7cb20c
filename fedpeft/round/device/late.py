"""Work that came too late for its round, and goes into a later one: at most one sum, with a weight that all can see.

A round that wants fewer devices than it invites is closed without those that are still training. Under
``rounds.max_staleness`` such a device keeps what it trained and adds it to the next round that it is ready for, within
so many rounds; it declares a smaller size class for it (``fedpeft.round.size_class.discounted``). Source: Nguyen et al.
2022 (FedBuff), whose buffer is a cohort here. Invariants (docs/adr/0064-late-work.md): a result is in the sums of one
round only, which is noted before its masked input leaves; it is used in no round whose state or rule gives it another
meaning.
"""

from collections.abc import Set
from dataclasses import dataclass, replace

from fedpeft.adapter import AdapterSpec
from fedpeft.aggregate.rules import STEPS
from fedpeft.config.rules import RULES
from fedpeft.ids import BlockId
from fedpeft.round.device.records import KeptResult, kept, run_key
from fedpeft.round.local import DeviceStore
from fedpeft.round.plan import LearningPlan
from fedpeft.round.transition import is_exact
from fedpeft.round.work import Work
from fedpeft.wire import encode, message

__all__ = ["Carried", "LastTrained", "keep_trained", "last_trained", "note_masked"]

_KIND = "trained"


@message(0x018C, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class LastTrained:
    """Store record: what a device trained last in a run that takes late work.

    Args:
        run_id, round_id: which round it was trained in, from the state that this began with.
        masked: the round whose sum it was masked for; 0: none.
        result: what came of it.
    """

    run_id: str
    round_id: int
    masked: int
    result: KeptResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What goes into a round's sum without training again.

    Args:
        result: None: nothing does.
        late: how many rounds before this one it was trained.
    """

    result: KeptResult | None = None
    late: int = 0


def last_trained(
    store: DeviceStore, plan: LearningPlan, adapter: AdapterSpec, work: Work, trains: Set[BlockId]
) -> Carried:
    """What was trained in this round or before and may go into its sum.

    Args:
        adapter: as the plan makes it.
        work: of the round.
        trains: the blocks that the device trains in this run.
    """
    if not work.train or not _takes_late_work(plan):
        return Carried()
    record = kept(store, run_key(plan.run_id, _KIND), LastTrained)
    if record is None or record.run_id != plan.run_id or record.masked not in (0, work.round_id):
        return Carried()
    fits = {part.block_id for part in record.result.deltas} == set(trains) & set(work.blocks)
    # Between exact steps a delta is a difference of the same coordinates; means of a head or a folded factor are not.
    alike = all(is_exact(plan, adapter, number) for number in (record.round_id, work.round_id))
    late = work.round_id - record.round_id
    if fits and 0 <= late <= plan.rounds.max_staleness and (alike or not late):
        return Carried(result=record.result, late=late)
    return Carried()


def _takes_late_work(plan: LearningPlan) -> bool:
    """Whether a delta means the same in another round, and is told apart by its weight; without noise of any kind.

    The coordinator may have checked nothing.
    """
    rule = plan.aggregate
    return (
        plan.rounds.max_staleness > 0
        and rule.weight == "examples"
        and plan.privacy is None
        and plan.client_privacy is None
        and not plan.train.scaffold
        and STEPS[rule.rule].before_sum is None
        and not RULES[rule.rule].own_weight
    )


def keep_trained(store: DeviceStore, plan: LearningPlan, round_id: int, result: KeptResult | None) -> None:
    """Remembers, durably, what was trained in this round, in place of what was before; None: nothing was."""
    if plan.rounds.max_staleness and result is not None:
        record = LastTrained(run_id=plan.run_id, round_id=round_id, masked=0, result=result)
        store.write(run_key(plan.run_id, _KIND), encode(record))


def note_masked(store: DeviceStore, run_id: str, round_id: int) -> None:
    """Remembers, durably, that it goes into this round's sum: from here on into no other round's.

    Once for good: a later round that this device is in with something else, or with zeros, does not give it back.
    """
    record = kept(store, run_key(run_id, _KIND), LastTrained)
    if record is not None and not record.masked:
        store.write(run_key(run_id, _KIND), encode(replace(record, masked=round_id)))
