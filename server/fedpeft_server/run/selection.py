"""Whom a round asks: who can be reached, and a seeded sample of them."""

from collections.abc import Callable, Collection, Sequence

from fedpeft.config.derived import invited_devices, wanted_devices
from fedpeft.config.model import Rounds
from fedpeft.entropy import generator
from fedpeft.ids import NodeId, RoundId
from fedpeft.round.messages import Profile, ProfileRequest
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import NOWHERE, KnownPast, Member, each_once
from fedpeft.round.transport import Stage, Transport
from fedpeft.wire import WireError, decode, encode

__all__ = ["Selection"]

PROFILE_DEADLINE_S = 300.0
"""A device may have to start a process and load its libraries before it can answer at all."""
FIRST_PATIENCE_S, PATIENCE_S = 60.0, 20.0
"""For a device that has not said who it is, when there are enough without it: at the start of the run, and later."""
MOST_LOOKS_LEFT_OUT = 64
IDENTITY_SIZE = 32


class Selection:
    """The devices of one run, as they are heard of.

    Args:
        plan: of the run: its name and its seed.
        rounds: how many are asked.
        transport: how they are reached.
        record: where a profile that cannot be used is logged (``RunDirectory.record``).
    """

    def __init__(self, plan: LearningPlan, rounds: Rounds, transport: Transport, record: Callable[..., None]) -> None:
        self._plan, self._rounds, self._transport, self._record = plan, rounds, transport, record
        self._members: dict[int, Member] = {}
        self._looks = 0
        self._silent: dict[int, tuple[int, int]] = {}  # node -> looks to leave it out for, the next one that asks it

    @property
    def population(self) -> int:
        """How many devices were heard of since the coordinator started."""
        return len(self._members)

    def select(self, round_id: RoundId, excluded: Collection[str]) -> tuple[list[Member], int]:
        """A seeded sample of those that are there, in order of their names, and how many of it make the round."""
        eligible = [member for member in each_once(self._present()) if member.profile.device not in excluded]
        here, there = len(eligible), len(eligible) + self._transport.elsewhere()
        invited = min(here, invited_devices(self._rounds, there))
        chosen = generator(self._plan.seed, "select", round_id).choice(here, invited, False)
        return [eligible[index] for index in sorted(chosen)], min(here, wanted_devices(self._rounds, there))

    def found_again(self, profiles: Sequence[Profile]) -> list[Member]:
        """These devices in this order, each where it can be reached now, or ``NOWHERE``; known by their keys."""
        present = {member.profile.identity: member for member in self._present()}
        return [
            Member(node=here.node if (here := present.get(profile.identity)) else NOWHERE, profile=profile)
            for profile in profiles
        ]

    def _present(self) -> list[Member]:
        """Every reachable device whose profile is known, in the order they were heard of; strangers are asked first."""
        nodes = self._transport.nodes()
        self._looks += 1
        strangers = {node for node in nodes if node not in self._members}
        if not self._are_few(nodes):
            strangers = {node for node in strangers if self._looks >= self._silent.get(node, (0, 0))[1]}
        patience_s, waited_s = FIRST_PATIENCE_S if self._looks == 1 else PATIENCE_S, 0.0
        while strangers and (waited_s == 0.0 or (self._are_few(nodes) and waited_s < PROFILE_DEADLINE_S)):
            strangers -= self._asked(sorted(strangers), patience_s)
            waited_s += patience_s
        for node in strangers:  # whoever does not say who it is holds no round up again and again
            leave_out = min(2 * self._silent.get(node, (1, 0))[0], MOST_LOOKS_LEFT_OUT)
            self._silent[node] = (leave_out, self._looks + leave_out)
        return [member for node, member in self._members.items() if node in nodes]

    def _are_few(self, nodes: Collection[int]) -> bool:
        """Whether a round needs more devices than those of these nodes that are known."""
        return sum(node in self._members for node in nodes) < self._rounds.min_devices

    def _asked(self, strangers: Sequence[NodeId], deadline_s: float) -> set[NodeId]:
        """Asks who they are; those that answered, or are gone."""
        answered = set[NodeId]()
        request = encode(ProfileRequest(run_id=self._plan.run_id))
        for reply in self._transport.exchange(Stage.PROFILE, dict.fromkeys(strangers, request), deadline_s=deadline_s):
            answered.add(reply.node)
            if reply.payload is None:
                self._record("profile.failed", detail={"node": str(reply.node), "error": reply.error})
                continue
            try:
                profile = decode(reply.payload, Profile)
            except WireError as error:
                self._record("profile.refused", detail={"node": str(reply.node), "error": str(error)})
                continue
            if len(profile.identity) != IDENTITY_SIZE:
                refused = f"Expected an identity of {IDENTITY_SIZE} bytes, found {len(profile.identity)}."
                self._record("profile.refused", detail={"node": str(reply.node), "error": refused})
                continue
            held = {entry.block_id: entry.sha256 for entry in profile.held}
            self._members[reply.node] = Member(
                node=reply.node, profile=profile, held=held, known=KnownPast(profile.after)
            )
        return answered
