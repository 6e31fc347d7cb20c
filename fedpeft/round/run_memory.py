"""What a device remembers of its runs, from one round to the next: what each run is, and the state it last received."""

import hashlib
from dataclasses import replace
from itertools import accumulate

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate import ServerState
from fedpeft.errors import SpecMismatch
from fedpeft.round.device.agreed import expect_agreed
from fedpeft.round.device.held import held_state, hold
from fedpeft.round.device.pins import FORMS, pinned
from fedpeft.round.device.received import expect_only_head_moved, expect_range, measured_only, state_of
from fedpeft.round.device.records import ForkSeen, HeldBlocks, RunPin, SeenLinks, kept, run_key
from fedpeft.round.history import BURNT, Forked, KnownHistory, MissingLinks, followed, genesis, linked, read_history
from fedpeft.round.linking import sums_digest
from fedpeft.round.local import DeviceStore
from fedpeft.round.messages import BlockDigest, BlockPayload, FailureReason, FitRequest, Link
from fedpeft.round.noise import expect_clip
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.signed_request import SignedRequest
from fedpeft.round.transition import is_exact, keeps_memory, next_state
from fedpeft.round.work import controls_digest, last_round, state_digest
from fedpeft.secagg import HighWaterMark
from fedpeft.wire import encode

__all__ = [
    "advance",
    "earlier_heads",
    "follow",
    "fork_seen",
    "held_digests",
    "known_links",
    "receive",
]

HEAD_SIZE = len(BURNT)

NOTHING_OPENED = sums_digest({})
"""Of a round whose blocks all stayed masked: its link has no words to send, and its step is one without sums."""
LINKS_KEPT = 256
"""Of each run, to show beside another history."""

HEADS_KEPT = 4096
"""Digests of a run's pasts: what is kept on a device goes by them. A memory of longer ago begins anew."""


def follow(
    store: DeviceStore, signed: SignedRequest, request: FitRequest, *, coordinator: bytes, mark: HighWaterMark | None
) -> RunPin | MissingLinks:
    """This run as the device has known it, or, at first sight, as it is to know it from now on; kept durably.

    Args:
        request: with the history that leads to these terms.
        coordinator: its public key.
        mark: how far this device has gone in the run.

    Returns:
        The pin; or which links are missing, and then nothing was kept.

    Raises:
        SpecMismatch: the run has another plan, or another history, than this device knows; of a fork both sides are
            kept for the site.
    """
    run_id, plan, round_id = signed.plan.run_id, signed.work.plan, signed.terms.round_id
    pin = pinned(store, run_id)
    if pin is not None and (pin.run_id, pin.plan) != (run_id, plan):
        raise SpecMismatch(f"Expected the plan with which run {run_id} began on this device, found a changed one.")
    if pin is not None and pin.round_id == round_id and pin.work != signed.terms.work:
        raise SpecMismatch(f"Expected the work that round {round_id} asked for before, found other work.")
    if not 1 <= round_id <= last_round(signed.plan):
        raise SpecMismatch(f"Expected a round of 1..{last_round(signed.plan)}, found {round_id}.")
    history = read_history(request.history, round_id)
    found = pin or RunPin(run_id=run_id, plan=plan, first=history.first, forms=FORMS)
    try:
        if history.first != found.first:
            raise Forked(f"Expected run {run_id} to begin with the state that this device knows.", history.links)
        known_history = KnownHistory(
            genesis=genesis(run_id, plan, found.first, coordinator),
            mark=mark,
            whole=pin is not None,
            before=(found.round_id, found.state),
        )
        proved = followed(history, known_history, round_id=round_id, head=signed.terms.history, state=signed.work.state)
    except Forked as fork:
        _keep_fork(store, fork, signed, request.offer)
        raise
    if isinstance(proved, MissingLinks):
        return proved
    for link in proved:
        expect_agreed(store, signed.plan, link)
        if link.outcome != BURNT:
            there = pin is not None and pin.round_id == link.round_id
            expect_clip(signed.plan, link.clip, round_id=link.round_id, signed=found.clip if there else None)
    if pin is None:
        store.write(run_key(run_id), encode(found))
    known = mark.history if mark is not None and mark.history else known_history.genesis
    start = signed.terms.history if not proved else known_history.genesis if proved[0].round_id == 1 else known
    _keep_links(store, run_id, proved, request.offer, start)
    return found


def earlier_heads(store: DeviceStore, run_id: str) -> frozenset[bytes]:
    """Digests of every past of this run that led to the one that was followed last, that one too."""
    seen = kept(store, run_key(run_id, "links"), SeenLinks)
    heads = seen.heads if seen else b""
    return frozenset(heads[at : at + HEAD_SIZE] for at in range(0, len(heads), HEAD_SIZE))


def advance(store: DeviceStore, pin: RunPin, signed: SignedRequest) -> None:
    """Keeps, durably, that the device takes part in this round, from which state, and under which clip norm."""
    noise = signed.terms.noise
    moved = replace(
        pin,
        round_id=signed.terms.round_id,
        clip=noise.l2_clip_norm if noise else 0.0,
        state=signed.work.state,
        work=signed.terms.work,
        scale=signed.work.learning_rate_scale or pin.scale,
    )
    if moved != pin:
        store.write(run_key(pin.run_id), encode(moved))


def _keep_links(store: DeviceStore, run_id: str, links: tuple[Link, ...], offer: bytes, start: bytes) -> None:
    """Adds links that lead on from the past ``start``."""
    seen = kept(store, run_key(run_id, "links"), SeenLinks)
    by_round = {link.round_id: link for link in (*(seen.links if seen else ()), *links)}
    latest = tuple(by_round[number] for number in sorted(by_round)[-LINKS_KEPT:])
    heads = seen.heads if seen else b""
    known = {heads[at : at + HEAD_SIZE] for at in range(0, len(heads), HEAD_SIZE)}
    for head in accumulate(links, linked, initial=start):
        heads += head if head not in known else b""
    record = SeenLinks(links=latest, offer=offer, heads=heads[-HEADS_KEPT * HEAD_SIZE :])
    store.write(run_key(run_id, "links"), encode(record))


def _keep_fork(store: DeviceStore, fork: Forked, signed: SignedRequest, offer: bytes) -> None:
    """The first fork of a run, for the site: two lists of links and two signatures that cannot both be honest."""
    run_id, key = signed.plan.run_id, run_key(signed.plan.run_id, "fork")
    if store.read(key) is not None:
        return
    own = kept(store, run_key(run_id, "links"), SeenLinks) or SeenLinks(links=(), offer=b"")
    seen = ForkSeen(
        run_id=run_id, round_id=signed.terms.round_id, own=own, theirs=fork.theirs[-LINKS_KEPT:], offer=offer
    )
    store.write(key, encode(seen))


def fork_seen(store: DeviceStore, run_id: str) -> ForkSeen | None:
    """The first fork of a run that this device has refused."""
    return kept(store, run_key(run_id, "fork"), ForkSeen)


def held_digests(store: DeviceStore, run_id: str) -> tuple[BlockDigest, ...]:
    """The blocks of this run's state that are held here; all of it is public."""
    held = held_state(store, run_id)
    return () if held is None else held.digests


def known_links(store: DeviceStore, run_id: str, mark: HighWaterMark | None) -> int:
    """The last round of a run whose link this device has; 0: none, or not from the beginning."""
    whole = kept(store, run_key(run_id), RunPin) is not None
    return mark.round_id - 1 if whole and mark is not None and mark.history else 0


def receive(
    store: DeviceStore, spec: AdapterSpec, signed: SignedRequest, request: FitRequest
) -> AdapterState | FailureReason:
    """The state that the round begins with: held, or computed from the one before, or as it was sent.

    Whoever holds the state before, and all that the next one follows from, takes none that it did not compute itself.

    Returns:
        The state of the signed terms; or what is missing for it.

    Raises:
        SpecMismatch: it does not follow, or is no state of this adapter: of another length, not finite, out of range.
    """
    held = held_state(store, signed.plan.run_id)
    round_id, memory = signed.terms.round_id, None
    if held is not None and _digest_of(held) == signed.work.state and _unmoved(store, held, round_id):
        state, memory = state_of(spec, signed.plan, {part.block_id: part.values for part in held.blocks}), held.server
    elif held is not None and (link := _step_to_follow(store, spec, signed.plan, held, round_id)) is not None:
        if not request.sums and link.sums != NOTHING_OPENED:
            return FailureReason.MISSING_HISTORY
        state, memory = _stepped(store, spec, signed, held, link, request.sums)
    else:
        blocks = {part.block_id: part.values for part in (held.blocks if held else ())}
        blocks |= {part.block_id: part.values for part in request.payloads}
        names = [block.block_id for block in spec.blocks]
        if not blocks.keys() >= set(names):
            return FailureReason.MISSING_STATE
        digests = {block_id: hashlib.sha256(blocks[block_id]).hexdigest() for block_id in names}
        if state_digest(digests) != signed.work.state:
            return FailureReason.MISSING_STATE
        state = state_of(spec, signed.plan, blocks)
        between = None if held is None else _links_from(store, held.run_id, held.round_id, round_id)
        if held is not None and between is not None and measured_only(signed.plan, spec, between):
            expect_only_head_moved({entry.block_id: entry.sha256 for entry in held.digests}, state)
            memory = held.server  # no step along a gradient: moments and controls stay
        if round_id == 1 or not keeps_memory(signed.plan):
            memory = ServerState().to_safetensors()
    _expect_controls(signed, request, memory)
    _hold(store, signed, state, memory)
    return state


def _digest_of(held: HeldBlocks) -> bytes:
    return state_digest({entry.block_id: entry.sha256 for entry in held.digests})


def _links_from(store: DeviceStore, run_id: str, first: int, stop: int) -> list[Link] | None:
    """The links of these rounds, as this device has accepted them; None: it does not have them all."""
    seen = kept(store, run_key(run_id, "links"), SeenLinks)
    by_round = {link.round_id: link for link in (seen.links if seen else ())}
    rounds = range(first, stop)
    return [by_round[number] for number in rounds] if by_round.keys() >= set(rounds) else None


def _unmoved(store: DeviceStore, held: HeldBlocks, round_id: int) -> bool:
    """Whether nothing but burnt rounds lies between the held state and this round: state and memory are the same."""
    between = _links_from(store, held.run_id, held.round_id, round_id)
    return between is not None and all(link.outcome == BURNT for link in between)


def _step_to_follow(
    store: DeviceStore, spec: AdapterSpec, plan: LearningPlan, held: HeldBlocks, round_id: int
) -> Link | None:
    """The last round's link, if this device can make its state itself."""
    links = _links_from(store, held.run_id, held.round_id, round_id)
    if not links or held.server is None or links[-1].outcome == BURNT or not is_exact(plan, spec, round_id - 1):
        return None
    return links[-1] if all(link.outcome == BURNT for link in links[:-1]) else None


def _stepped(
    store: DeviceStore,
    spec: AdapterSpec,
    signed: SignedRequest,
    held: HeldBlocks,
    link: Link,
    sums: tuple[BlockPayload, ...],
) -> tuple[AdapterState, bytes]:
    before = state_of(spec, signed.plan, {part.block_id: part.values for part in held.blocks})
    factor = held.learning_rate_factor
    if held.round_id != link.round_id:  # burnt rounds lie between; the schedule went on
        factor = learning_rate_factor(signed.plan.train, signed.plan.rounds, link.round_id)
    expect_agreed(store, signed.plan, link, tuple(part.block_id for part in sums))
    memory = ServerState.from_safetensors(held.server or b"")
    state, server = next_state(signed.plan, before, memory, link, sums, learning_rate_factor=factor)
    if state_digest(state.digests) != signed.work.state:
        raise SpecMismatch(
            f"Expected the state that follows from the sums of round {link.round_id}, found another in the terms: "
            "its coordinator changed it, or computes otherwise."
        )
    expect_range(signed.plan, state)
    return state, server.to_safetensors()


def _expect_controls(signed: SignedRequest, request: FitRequest, memory: bytes | None) -> None:
    """SCAFFOLD's controls follow from the sums like the state, for whoever has followed them."""
    if not signed.plan.train.scaffold or not signed.work.train or memory is None:
        return
    own = ServerState.from_safetensors(memory).control
    payloads = [BlockPayload(block_id=name, values=own[name].astype("<f4").tobytes()) for name in own]
    if controls_digest(payloads) != signed.work.controls:
        raise SpecMismatch("Expected the controls that follow from the sums so far, found others.")


def _hold(store: DeviceStore, signed: SignedRequest, state: AdapterState, memory: bytes | None) -> None:
    record = HeldBlocks(
        run_id=signed.plan.run_id,
        digests=tuple(BlockDigest(block_id=block_id, sha256=state.digests[block_id]) for block_id in state),
        blocks=tuple(
            BlockPayload(block_id=block_id, values=state[block_id].astype("<f4", copy=False).tobytes())
            for block_id in state
        ),
        round_id=signed.terms.round_id,
        learning_rate_factor=signed.work.learning_rate_factor,
        server=memory,
    )
    hold(store, record)
