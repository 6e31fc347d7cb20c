"""What a device remembers of its runs, from one round to the next: what each run is, and the state it last received."""

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.round.bound import Bound
from fedpeft.round.local import DeviceStore, HeldBlocks, RunPin
from fedpeft.round.messages import BlockDigest, BlockPayload
from fedpeft.round.work import state_digest
from fedpeft.wire import decode, encode

__all__ = ["HELD", "advance", "follow", "held_digests", "receive"]

Vector = npt.NDArray[np.float32]
HELD = "held-blocks"


def follow(store: DeviceStore, bound: Bound) -> RunPin:
    """This run as the device has known it, or, at first sight, as it is to know it from now on; kept durably.

    Raises:
        SpecMismatch: the run has another plan than in the first round that this device saw of it.
    """
    run_id, plan = bound.plan.run_id, bound.work.plan
    kept = store.read(_key(run_id))
    if kept is None:
        pin = RunPin(run_id=run_id, plan=plan)
        store.write(_key(run_id), encode(pin))
        return pin
    pin = decode(kept, RunPin)
    if (pin.run_id, pin.plan) != (run_id, plan):
        raise SpecMismatch(f"Expected the plan with which run {run_id} began on this device, found a changed one.")
    return pin


def advance(store: DeviceStore, pin: RunPin, bound: Bound) -> None:
    """Keeps, durably, that the device takes part in this round, and under which clip norm."""
    noise = bound.terms.noise
    moved = replace(pin, round_id=bound.terms.round_id, clip=noise.l2_clip_norm if noise else 0.0)
    if moved != pin:
        store.write(_key(pin.run_id), encode(moved))


def _key(run_id: str) -> str:
    return f"run-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


def held_digests(store: DeviceStore, run_id: str) -> tuple[BlockDigest, ...]:
    """The blocks of this run's state that are held here; all of it is public."""
    kept = store.read(HELD)
    held = decode(kept, HeldBlocks) if kept else None
    return held.digests if held is not None and held.run_id == run_id else ()


def receive(
    store: DeviceStore, spec: AdapterSpec, bound: Bound, payloads: tuple[BlockPayload, ...]
) -> AdapterState | None:
    """The global state from what was sent and what is held; None when that is not the state of the signed terms.

    Raises:
        SpecMismatch: it is, and it is no state of this adapter: of another length, not finite, or out of range.
    """
    kept = store.read(HELD)
    blocks = {part.block_id: part.values for part in (decode(kept, HeldBlocks).blocks if kept else ())}
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
        largest, limit = float(np.abs(vectors[block.block_id]).max(initial=0.0)), bound.plan.max_state
        if not largest <= limit:
            raise SpecMismatch(f"{block.block_id}: expected finite values of at most {limit:g}, found {largest:g}.")
    record = HeldBlocks(
        run_id=bound.plan.run_id,
        digests=tuple(BlockDigest(block_id=block_id, sha256=digests[block_id]) for block_id in names),
        blocks=tuple(BlockPayload(block_id=block_id, values=blocks[block_id]) for block_id in names),
    )
    store.write(HELD, encode(record))
    return AdapterState(spec, vectors)
