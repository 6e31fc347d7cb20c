"""How many must agree, and how many must be in a block, before anything of it is opened (docs/protocol.md, "Cohorts").

Everybody computes the same from the same roster. ``c`` devices of a roster of n are assumed to collude with the
coordinator, c = ceil(corrupt_fraction * n):
- a quorum is more than (n + c) / 2 devices, so two quorums share an honest one, and an honest one signs once;
- a block is opened for enough organisations only, and only if at least two of them stay honest whichever c of the
  devices collude: counted in devices outside the largest organisation, c + 1 at least.
"""

from collections import Counter
from collections.abc import Collection

from fedpeft.cohorts import effective_cohort, of_members
from fedpeft.ids import ParticipantId
from fedpeft.secagg.roster import Roster
from fedpeft.secagg.spec import RoundSpec

__all__ = ["cohort_problem", "colluders", "quorum"]


def colluders(spec: RoundSpec, members: int) -> int:
    """c: how many of the round's members are assumed to work with the coordinator."""
    return of_members(spec.corrupt_fraction, members)


def quorum(roster: Roster) -> int:
    """How many members must sign one survivor set before anybody reveals anything for it.

    Two quorums of one roster have more than c members in common (Bonawitz et al. 2017, section 6.2, with the c of the
    terms); never fewer than a block needs.
    """
    members = len(roster.members)
    majority = (members + colluders(roster.spec, members)) // 2 + 1
    return max(majority, effective_cohort(roster.spec.min_cohort, roster.spec.corrupt_fraction, members))


def cohort_problem(
    roster: Roster,
    block: int,
    survivors: Collection[ParticipantId],
    witnesses: Collection[ParticipantId],
    *,
    min_cohort: int = 0,
    min_colluders: int = 0,
) -> str | None:
    """Why a block must stay masked, in words; None if it may be opened.

    Args:
        roster: of the round.
        block: its place in the terms.
        survivors: U3.
        witnesses: those of U3 whose presence is proved to whoever asks: only they count in the cohort.
        min_cohort, min_colluders: a site's own floors.
    """
    people, owners = roster.spec.participants, roster.owner_sets[block]
    alive = owners.intersection(witnesses)
    sizes = Counter(people[owner - 1].organisation for owner in alive)
    needed = max(roster.spec.min_cohort, min_cohort)
    if len(sizes) < needed:
        return f"expected {needed} organisations, found {len(sizes)} ({len(alive)} of {len(owners)} owners survived)"
    outside = len(alive) - max(sizes.values(), default=0)
    needed = max(colluders(roster.spec, len(roster.members)), min_colluders) + 1
    if outside < needed:
        return (
            f"expected {needed} owners beside the largest organisation, so that two honest organisations remain, "
            f"found {outside} ({len(alive)} of {len(owners)} owners survived)"
        )
    if not roster.enough_survive(block, survivors):
        return "expected enough surviving neighbours beside every survivor, found a device that too few are left around"
    return None
