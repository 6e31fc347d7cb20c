"""Cost grows as it should: masked inputs one by one into one accumulator, work linear in the vector."""

import tracemalloc
from dataclasses import replace

import numpy as np

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import Open, SummedBlock, receive
from fedpeft.secagg.masks import Mask, apply_masks
from fedpeft.secagg.primitives import Secret
from fedpeft.testing.secagg import Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

LENGTH = 200_000
# What these tests look for is an upload kept or copied. A worker process of pytest has other threads (a fork server's
# reader, a logger), and what they allocate meanwhile, up to 150 kB seen, is counted too.
HALF_AN_UPLOAD = LENGTH * 4 // 2


def masking(devices: int) -> tuple[Round, Open]:
    fleet = make_fleet(devices)
    block = SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=LENGTH, max_abs=1.0),))
    zeros = {ParticipantId(i): {BlockId("b"): np.zeros(LENGTH, np.float32)} for i in range(1, devices + 1)}
    a = Round(fleet=fleet, spec=make_spec(fleet, [block]), inputs=zeros)
    return a, a.reach("mask")


def test_the_coordinator_keeps_one_vector_a_block_however_many_devices_upload() -> None:
    kept = {}
    for devices in (4, 12):
        a, state = masking(devices)
        replies = {member: a.ask(member, request) for member, request in state.requests.items()}
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for member, reply in replies.items():
            state = receive(state, member, reply)
        kept[devices] = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert state.answered == replies.keys()
    assert max(kept.values()) < HALF_AN_UPLOAD, "the accumulator was there before; nothing of an upload stays"


def test_an_oversized_upload_is_refused_without_growing_anything() -> None:
    a, state = masking(4)
    one = ParticipantId(1)
    reply = replace(a.ask(one, state.requests[one]), vectors=(bytes(LENGTH * 40),))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    state = receive(state, one, reply)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert one in state.rejected
    assert peak - before < HALF_AN_UPLOAD
    assert after - before < HALF_AN_UPLOAD


def test_masking_calls_the_cipher_once_a_piece_and_mask() -> None:
    """Linear in masks and in length, counted rather than timed: a clock would only measure the neighbours."""
    import fedpeft.secagg.masks as kernel

    calls = []
    original = kernel.stream

    def counted(key, segment, backend):
        fill = original(key, segment, backend)

        def update(source, out):
            calls.append(len(source))
            return fill(source, out)

        return update

    kernel.stream = counted
    try:
        for masks in (1, 2, 4):
            for pieces in (1, 2, 4):
                calls.clear()
                words = np.zeros(pieces * kernel.PIECE_BYTES // 4, np.uint32)
                apply_masks(words, [Mask(Secret(bytes(32)), add=True)] * masks)
                assert len(calls) == masks * pieces
                assert sum(calls) == masks * words.nbytes
    finally:
        kernel.stream = original
