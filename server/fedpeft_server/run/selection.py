"""Whom a round asks: who can be reached, and a seeded sample of them."""

from collections.abc import Callable, Collection, Sequence

from fedpeft.config.derived import invited_devices, wanted_devices
from fedpeft.config.model import Rounds
from fedpeft.entropy import generator
from fedpeft.ids import RoundId
from fedpeft.round.messages import Profile, ProfileRequest
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import NOWHERE, KnownPast, Member, each_once
from fedpeft.round.transport import Stage, Transport
from fedpeft.wire import WireError, decode, encode

__all__ = ["Selection"]

PROFILE_DEADLINE_S = 300.0
"""A device may have to start a process and load its libraries before it can answer at all."""
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

    @property
    def population(self) -> int:
        """How many devices were heard of since the coordinator started."""
        return len(self._members)

    def select(self, round_id: RoundId, excluded: Collection[str]) -> tuple[list[Member], int]:
        """A seeded sample of those that are there, in order of their names, and how many of it make the round."""
        eligible = [member for member in each_once(self._present()) if member.profile.device not in excluded]
        there = len(eligible)
        chosen = generator(self._plan.seed, "select", round_id).choice(
            there, invited_devices(self._rounds, there), False
        )
        return [eligible[index] for index in sorted(chosen)], wanted_devices(self._rounds, there)

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
        strangers = [node for node in nodes if node not in self._members]
        request = encode(ProfileRequest(run_id=self._plan.run_id))
        ask = dict.fromkeys(strangers, request)
        for reply in self._transport.exchange(Stage.PROFILE, ask, deadline_s=PROFILE_DEADLINE_S) if ask else ():
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
        return [member for node, member in self._members.items() if node in nodes]
