"""The history of a run: one link per round, chained by digests in the signed terms (docs/protocol.md, "History").

    h_0 = H("genesis"; run id, plan, state of round 1, coordinator's key)      h_r = H("link"; h_{r-1}, encode(Link_r))

The terms of round r hold h_{r-1}. So two devices of one sum have the same past, and a coordinator that shows two of
them different ones has two disjoint sets of devices for ever: a fork never heals, and the first device that sees both
refuses. Pure; nothing is stored here.
"""

from dataclasses import dataclass, replace

from fedpeft.errors import SpecMismatch
from fedpeft.round.messages import History, Link
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import plan_digest
from fedpeft.secagg.device_state import HighWaterMark
from fedpeft.secagg.primitives import digest
from fedpeft.secagg.spec import MAX_PARTICIPANTS
from fedpeft.wire import decode, encode

__all__ = ["BURNT", "Forked", "KnownHistory", "MissingLinks", "Past", "followed", "genesis", "linked", "read_history"]

BURNT = bytes(32)
"""Outcome, and sums, of a round that has no sum."""

LARGEST_LINK = 1 << 16
"""Bytes that a link may take: thousands of blocks. An honest one takes about 0.3 KB."""
MAX_NUMBER = 2**32 - 1
"""Of attempts at a round, and of devices that a coordinator has heard of."""
ENVELOPE = 128
"""Bytes of a history without links, at most."""


def genesis(run_id: str, plan: bytes, first: bytes, coordinator: bytes) -> bytes:
    """h_0.

    Args:
        plan: digest of the learning plan.
        first: digest of the state of round 1.
        coordinator: its public key, as enrolled.
    """
    return digest("genesis", run_id.encode(), plan, first, coordinator)


def linked(before: bytes, link: Link) -> bytes:
    """h_r, from h_{r-1} and the link of round r."""
    return digest("link", before, encode(link))


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A run so far, as its coordinator has it.

    Args:
        first: digest of the state of round 1.
        head: digest of everything before the next round.
        links: of all rounds that are over.
    """

    first: bytes
    head: bytes
    links: tuple[Link, ...] = ()

    @classmethod
    def begun(cls, plan: LearningPlan, first: bytes, coordinator: bytes) -> "Past":
        """The past of a run before its first round; arguments as of ``genesis``."""
        return cls(first=first, head=genesis(plan.run_id, plan_digest(plan.to_json()), first, coordinator))

    def then(self, link: Link) -> "Past":
        """With one round more."""
        return replace(self, head=linked(self.head, link), links=(*self.links, link))

    def since(self, after: int) -> History:
        """The links of the rounds after this one."""
        return History(first=self.first, links=self.links[after:])


class Forked(SpecMismatch):
    """Two histories of one run.

    Args:
        theirs: the links that were shown.
    """

    def __init__(self, text: str, theirs: tuple[Link, ...]) -> None:
        super().__init__(text)
        self.theirs = theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingLinks:
    """Links are missing; the last one that the device has is that of round ``after``."""

    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHistory:
    """What a device knows of a run's past before it sees a request.

    Args:
        genesis: h_0; with a first state that it takes from the request, if it never saw the run.
        mark: of its last round: how far it had come, and what it signed there; None: it never took part.
        whole: whether it has seen where the run began; else the links from round 1 on are needed.
        before: the round whose state it knows, and that state's digest.
    """

    genesis: bytes
    mark: HighWaterMark | None
    whole: bool
    before: tuple[int, bytes]


def read_history(payload: bytes, round_id: int) -> History:
    """The history that comes with a request for this round; no longer than its rounds can need.

    Raises:
        SpecMismatch: it is too long, its links are not those of consecutive rounds up to this one, or one has numbers
            that no round has.
        WireError: it is none.
    """
    limit = ENVELOPE + max(0, round_id - 1) * LARGEST_LINK
    if len(payload) > limit:
        raise SpecMismatch(f"Expected {limit} bytes of history or fewer before round {round_id}, found {len(payload)}.")
    history = decode(payload, History)
    rounds = [link.round_id for link in history.links]
    if rounds != list(range(round_id - len(rounds), round_id)) or (rounds and rounds[0] < 1):
        raise SpecMismatch(f"Expected links of the rounds before {round_id}, found those of {_named(rounds)}.")
    digests = [history.first, *(part for link in history.links for part in (link.state, link.outcome, link.sums))]
    if any(len(part) != len(BURNT) for part in digests):
        raise SpecMismatch("Expected digests of 32 bytes in the history, found others.")
    for link in history.links:
        if wrong := _impossible(link):
            raise SpecMismatch(f"Expected possible numbers in the link of round {link.round_id}, found its {wrong}.")
    return history


def _impossible(link: Link) -> str:
    """The first number of a link that no round of any run has, by its name and value; empty: there is none."""
    burnt = link.outcome == BURNT
    holds = {
        "attempt": 1 <= link.attempt <= MAX_NUMBER,
        "sums": not burnt or link.sums == BURNT,
        "devices": (not burnt) <= link.devices <= MAX_PARTICIPANTS,
        "population": (not burnt) <= link.population <= MAX_NUMBER,
        "survivors": not (link.survivors if burnt else len(link.survivors) % 4),
        "weight": not (burnt and link.weight),
        "owners": not (link.owners if burnt else len(link.owners) % 4),
        "weights": not (link.weights if burnt else len(link.weights) % 8),
        "clip": link.clip >= 0,
    }
    wrong = next((name for name, possible in holds.items() if not possible), "")
    return wrong and f"{wrong}={getattr(link, wrong)!r:.40}"


def followed(
    history: History, known_history: KnownHistory, *, round_id: int, head: bytes, state: bytes
) -> tuple[Link, ...] | MissingLinks:
    """The links that lead from where the device stands to the past that the terms name; or what it lacks for that.

    Args:
        history: as read for this round.
        round_id, head: of the terms: the round, and ``history``.
        state: of the work: what the round begins with.

    Raises:
        Forked: there is another past.
        SpecMismatch: the links contradict themselves or the state.
    """
    links, mark = history.links, known_history.mark
    known = mark.round_id - 1 if mark is not None and mark.history else 0
    first = links[0].round_id if links else round_id
    if first > (known + 1 if known_history.whole else 1):
        return MissingLinks(after=known if known_history.whole else 0)
    at = {known: mark.history} if known and mark is not None else {}
    reached = known_history.genesis if first == 1 else at[known]
    proved = links if first == 1 else links[known + 1 - first :]
    for link in proved:
        _expect(at.get(link.round_id - 1, reached), reached, link.round_id - 1, links)
        reached = linked(reached, link)
    _expect(at.get(round_id - 1, reached), reached, round_id - 1, links)
    _expect(head, reached, round_id - 1, links)
    for link in proved:
        if mark is not None and link.round_id == mark.round_id and mark.signed:
            outcomes = {mark.signed, BURNT}  # it may be burnt although this device has revealed: others had not
            if link.outcome not in outcomes:
                text = f"Expected of round {link.round_id} the survivors that this device signed, or none."
                raise Forked(text, links)
            if link.outcome == mark.signed and link.attempt != mark.attempt:
                text = f"Expected of round {link.round_id} the attempt that this device signed for, {mark.attempt}."
                raise Forked(text, links)
    _expect_states({1: history.first, known_history.before[0]: known_history.before[1]}, proved, round_id, state)
    return proved


def _expect_states(states: dict[int, bytes], links: tuple[Link, ...], round_id: int, state: bytes) -> None:
    """A burnt round leaves the state as it was, and this round begins with what the last one left.

    Args:
        states: digests of states that rounds are known to have begun with.
    """
    for link in links:
        if link.outcome == BURNT and states.get(link.round_id, link.state) != link.state:
            raise SpecMismatch(f"Expected the state of before in burnt round {link.round_id}, found another.")
        if states.setdefault(link.round_id + 1, link.state) != link.state:
            raise SpecMismatch(f"Expected round {link.round_id + 1} to begin with the state that this device saw.")
    if states.get(round_id, state) != state:
        raise SpecMismatch(f"Expected round {round_id} to begin with the state that its history ends with.")


def _expect(expected: bytes, found: bytes, round_id: int, theirs: tuple[Link, ...]) -> None:
    if expected != found:
        raise Forked(
            f"Expected one history of this run, found two up to round {round_id}: {expected.hex()[:16]} and "
            f"{found.hex()[:16]}. The coordinator tells different devices different things, or was restored from a "
            "backup.",
            theirs,
        )


def _named(rounds: list[int]) -> str:
    return f"{rounds[0]}..{rounds[-1]}" if rounds else "none"
