"""What a device remembers of its runs, from one round to the next: what each run is, and the state it last received."""

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.round.bound import Bound
from fedpeft.round.history import Forked, Lacking, Standing, followed, genesis, read_history
from fedpeft.round.local import DeviceStore, ForkSeen, HeldBlocks, RunPin, SeenLinks, kept
from fedpeft.round.messages import BlockDigest, BlockPayload, FitRequest, Link
from fedpeft.round.work import last_round, state_digest
from fedpeft.secagg import Mark
from fedpeft.wire import encode

__all__ = ["HELD", "advance", "follow", "fork_seen", "held_digests", "known_links", "receive"]

Vector = npt.NDArray[np.float32]
HELD = "held-blocks"

LARGEST_PLACE = 2.0**24
"""Up to here float32 holds every whole number: what FISH names a weight by, in a block that the coordinator writes."""

LINKS_KEPT = 256
"""Of each run, to show beside another history."""


def follow(
    store: DeviceStore, bound: Bound, request: FitRequest, *, coordinator: bytes, mark: Mark | None
) -> RunPin | Lacking:
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
    run_id, plan, round_id = bound.plan.run_id, bound.work.plan, bound.terms.round_id
    pin = kept(store, _key(run_id), RunPin)
    if pin is not None and (pin.run_id, pin.plan) != (run_id, plan):
        raise SpecMismatch(f"Expected the plan with which run {run_id} began on this device, found a changed one.")
    if pin is not None and pin.round_id == round_id and pin.work != bound.terms.work:
        raise SpecMismatch(f"Expected the work that round {round_id} asked for before, found other work.")
    if not 1 <= round_id <= last_round(bound.plan):
        raise SpecMismatch(f"Expected a round of 1..{last_round(bound.plan)}, found {round_id}.")
    history = read_history(request.history, round_id)
    found = pin or RunPin(run_id=run_id, plan=plan, first=history.first)
    try:
        if history.first != found.first:
            raise Forked(f"Expected run {run_id} to begin with the state that this device knows.", history.links)
        standing = Standing(
            genesis=genesis(run_id, plan, found.first, coordinator),
            mark=mark,
            whole=pin is not None,
            before=(found.round_id, found.state),
        )
        lacking = followed(history, standing, round_id=round_id, head=bound.terms.history, state=bound.work.state)
    except Forked as fork:
        _keep_fork(store, fork, bound, request.offer)
        raise
    if lacking is not None:
        return lacking
    if pin is None:
        store.write(_key(run_id), encode(found))
    _keep_links(store, run_id, history.links, request.offer)
    return found


def advance(store: DeviceStore, pin: RunPin, bound: Bound) -> None:
    """Keeps, durably, that the device takes part in this round, from which state, and under which clip norm."""
    noise = bound.terms.noise
    moved = replace(
        pin,
        round_id=bound.terms.round_id,
        clip=noise.l2_clip_norm if noise else 0.0,
        state=bound.work.state,
        work=bound.terms.work,
    )
    if moved != pin:
        store.write(_key(pin.run_id), encode(moved))


def _keep_links(store: DeviceStore, run_id: str, links: tuple[Link, ...], offer: bytes) -> None:
    seen = kept(store, _key(run_id, "links"), SeenLinks)
    by_round = {link.round_id: link for link in (*(seen.links if seen else ()), *links)}
    latest = tuple(by_round[number] for number in sorted(by_round)[-LINKS_KEPT:])
    store.write(_key(run_id, "links"), encode(SeenLinks(links=latest, offer=offer)))


def _keep_fork(store: DeviceStore, fork: Forked, bound: Bound, offer: bytes) -> None:
    """The first fork of a run, for the site: two lists of links and two signatures that cannot both be honest."""
    run_id, key = bound.plan.run_id, _key(bound.plan.run_id, "fork")
    if store.read(key) is not None:
        return
    own = kept(store, _key(run_id, "links"), SeenLinks) or SeenLinks(links=(), offer=b"")
    seen = ForkSeen(
        run_id=run_id, round_id=bound.terms.round_id, own=own, theirs=fork.theirs[-LINKS_KEPT:], offer=offer
    )
    store.write(key, encode(seen))


def _key(run_id: str, kind: str = "run") -> str:
    return f"{kind}-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


def fork_seen(store: DeviceStore, run_id: str) -> ForkSeen | None:
    """The first fork of a run that this device has refused."""
    return kept(store, _key(run_id, "fork"), ForkSeen)


def held_digests(store: DeviceStore, run_id: str) -> tuple[BlockDigest, ...]:
    """The blocks of this run's state that are held here; all of it is public."""
    held = kept(store, HELD, HeldBlocks)
    return held.digests if held is not None and held.run_id == run_id else ()


def known_links(store: DeviceStore, run_id: str, mark: Mark | None) -> int:
    """The last round of a run whose link this device has; 0: none, or not from the beginning."""
    whole = kept(store, _key(run_id), RunPin) is not None
    return mark.round_id - 1 if whole and mark is not None and mark.history else 0


def _check_range(block: BlockSpec, values: Vector, limit: float) -> None:
    """Finite and within the plan's limit; whole numbers of a block that nobody trains may be as large as a place."""
    sizes = np.abs(values)
    if not block.trainable:
        sizes = sizes[(sizes > LARGEST_PLACE) | (values != np.rint(values))]  # NaN is no whole number
    if not (largest := float(sizes.max(initial=0.0))) <= limit:
        raise SpecMismatch(f"{block.block_id}: expected finite values of at most {limit:g}, found {largest:g}.")


def receive(
    store: DeviceStore, spec: AdapterSpec, bound: Bound, payloads: tuple[BlockPayload, ...]
) -> AdapterState | None:
    """The global state from what was sent and what is held; None when that is not the state of the signed terms.

    Raises:
        SpecMismatch: it is, and it is no state of this adapter: of another length, not finite, or out of range.
    """
    held = kept(store, HELD, HeldBlocks)
    blocks = {part.block_id: part.values for part in (held.blocks if held else ())}
    blocks |= {part.block_id: part.values for part in payloads}
    names = [block.block_id for block in spec.blocks]
    if not blocks.keys() >= set(names):
        return None
    digests = {block_id: hashlib.sha256(blocks[block_id]).hexdigest() for block_id in names}
    if state_digest(digests) != bound.work.state:
        return None
    vectors: dict[BlockId, Vector] = {}
    for block in spec.blocks:
        values = blocks[block.block_id]
        if len(values) != 4 * block.size:
            raise SpecMismatch(f"{block.block_id}: expected {4 * block.size} bytes, found {len(values)}.")
        vectors[block.block_id] = np.frombuffer(values, "<f4").astype(np.float32)
        _check_range(block, vectors[block.block_id], bound.plan.max_state)
    record = HeldBlocks(
        run_id=bound.plan.run_id,
        digests=tuple(BlockDigest(block_id=block_id, sha256=digests[block_id]) for block_id in names),
        blocks=tuple(BlockPayload(block_id=block_id, values=blocks[block_id]) for block_id in names),
    )
    store.write(HELD, encode(record))
    return AdapterState(spec, vectors)
