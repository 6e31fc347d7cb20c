"""A sum whose survivors are fixed, dumped and loaded: the same questions, the same sum, and nothing else accepted."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import FedpeftError, IntegrityFailed
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg import Mode, Open, Summed, SummedBlock, SumRange, close_stage, dump_pending, load_pending
from fedpeft.secagg.pending import _PendingSum
from fedpeft.testing.secagg import Op, Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec
from fedpeft.wire import decode, encode

B, C = BlockId("b"), BlockId("c")
N = 11
LOST = [Op(kind="drop", stage=stage, member=ParticipantId(i)) for i, stage in ((1, "fit"), (2, "share"), (3, "mask"))]


def opening(mode: Mode) -> tuple[Round, Open]:
    """A round in which three fell out, when its survivors are fixed; not everybody owns every block."""
    fleet = make_fleet(N)
    blocks = [SummedBlock(block_id=b, ranges=(SumRange(length=N, max_abs=1.0, exact=True),)) for b in (B, C)]
    owns = {ParticipantId(i): frozenset({B} if i % 2 else {B, C}) for i in range(1, N + 1)}
    a = Round(fleet=fleet, spec=make_spec(fleet, blocks, mode=mode, dropout_fraction=0.4), ops=LOST, owns=owns)
    return a, a.reach("consist" if mode is Mode.FULL else "reveal")


def finished(a: Round, state: Open) -> Summed:
    now = a.finish_stage(state)
    while isinstance(now, Open):
        now = a.finish_stage(now)
    assert isinstance(now, Summed), now
    return now


@pytest.mark.parametrize("mode", list(Mode))
def test_a_loaded_sum_goes_on_as_the_dumped_one(mode: Mode) -> None:
    a, state = opening(mode)
    dumped = dump_pending(state)
    loaded = load_pending(dumped)
    assert loaded.requests == state.requests
    assert (loaded.terms, loaded.rejected, loaded.waiting) == (state.terms, state.rejected, state.waiting)
    assert dump_pending(loaded) == dumped
    assert finished(a, loaded).survivors == set(range(4, N + 1))


@pytest.mark.parametrize("mode", list(Mode))
def test_devices_that_have_answered_answer_the_loaded_sum_the_same(mode: Mode) -> None:
    a, state = opening(mode)
    dumped = dump_pending(state)
    first, again = finished(a, state), finished(a, load_pending(dumped)) if mode is Mode.FAST else None
    np.testing.assert_array_equal(first.sums[B].values, [0] * 3 + [1] * 8)
    if again is not None:
        np.testing.assert_array_equal(again.sums[B].values, first.sums[B].values)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_stage_that_is_closed_again_gives_the_same_sum(mode: Mode) -> None:
    """A coordinator asks once more when too few shares came; removing the masks must not use the masked sums up."""
    a, state = opening(mode)
    now: object = state
    while isinstance(now, Open) and now.stage != "reveal":
        now = a.finish_stage(now)
    assert isinstance(now, Open)
    full = a.exchange_all(now)
    first, second = close_stage(full), close_stage(full)
    assert isinstance(first, Summed)
    assert isinstance(second, Summed)
    for block in (B, C):
        np.testing.assert_array_equal(first.sums[block].values, second.sums[block].values)


def test_a_sum_is_pending_only_when_its_survivors_are_fixed() -> None:
    fleet = make_fleet(N)
    for stage in ("fit", "share", "mask"):
        with pytest.raises(ValueError, match=stage):
            dump_pending(Round(fleet=make_fleet(N), spec=make_spec(fleet)).reach(stage))


@pytest.mark.parametrize("place", [0, 3, 0.1, 0.5, 0.9])
def test_other_bytes_are_refused(place: float) -> None:
    """Cut anywhere, or one byte too many; a changed byte is the file system's to notice, as in a checkpoint."""
    dumped = dump_pending(opening(Mode.FULL)[1])
    with pytest.raises(FedpeftError):
        load_pending(dumped[: int(place * len(dumped)) if place < 1 else int(place)])
    with pytest.raises(FedpeftError):
        load_pending(dumped + b"0")


def test_a_pending_sum_shows_no_secret() -> None:
    _, state = opening(Mode.FULL)
    assert state.terms.channel_seed.value.hex() not in repr(state)
    assert str(state.terms.channel_seed.value) not in repr(load_pending(dump_pending(state)))


@pytest.mark.parametrize(
    "changed",
    [
        {"survivors": b""},
        {"survivors": b"\xff\xff"},
        {"adverts": ()},
        {"sums": (b"", b"")},
        {"sums": (bytes(4 * N),)},
    ],
)
def test_parts_that_contradict_each_other_are_refused(changed: dict[str, object]) -> None:
    _, state = opening(Mode.FULL)
    kept = decode(dump_pending(state), _PendingSum)
    with pytest.raises(IntegrityFailed, match="one advert per member and one sum per block"):
        load_pending(encode(replace(kept, **changed)))  # type: ignore[arg-type]
