"""What comes out is the plain sum: exact on the ring, over blocks with any owners, small and large rosters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.entropy import seeded_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import Aborted, Mode, Reason, Summed, SummedBlock
from fedpeft.secagg.masks import rounding_bits
from fedpeft.secagg.spec import block_encoding
from fedpeft.testing.secagg import Op, Round, run_round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec


@pytest.mark.e2e
@settings(deadline=None, max_examples=20)
@given(
    devices=st.integers(5, 9),
    bits=st.sampled_from([8, 12, 16, 21, 32, 64]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dropped=st.sets(st.integers(1, 9), max_size=1),
    owner_seed=st.integers(0, 2**31),
)
def test_the_secure_sum_equals_the_plain_sum_of_encoded_vectors_word_for_word(
    devices: int, bits: int, lengths: list[int], dropped: set[int], owner_seed: int
) -> None:
    """Differential: the same encodings added in the clear, decoded the same way, give the very same floats."""
    fleet, rng = make_fleet(devices), np.random.default_rng(owner_seed)
    blocks = [
        SummedBlock(
            block_id=BlockId(f"b{i}"),
            bits=bits,
            ranges=(SumRange(length=length, max_abs=0.5), SumRange(length=2, max_abs=3.0)),
        )
        for i, length in enumerate(lengths)
    ]
    spec = make_spec(fleet, blocks)
    members = [ParticipantId(i) for i in range(1, devices + 1)]
    owns = {
        m: frozenset(b.block_id for b in blocks if rng.random() < 0.7) or frozenset({blocks[0].block_id})
        for m in members
    }
    inputs = {m: {b.block_id: rng.normal(0, 0.5, b.length).astype(np.float32) for b in blocks} for m in members}
    ops = [Op(kind="drop", stage="mask", member=ParticipantId(m)) for m in dropped]
    a = Round(fleet=fleet, spec=spec, owns=owns, inputs=inputs, ops=ops)
    rounding = _recorded_rounding(a)
    outcome = a.run()
    if isinstance(outcome, Aborted):
        assert outcome.reason in (Reason.TOO_FEW_DEVICES, Reason.COHORT_TOO_SMALL)
        return
    for block in blocks:
        owners = [m for m in members if block.block_id in owns[m] and m in outcome.survivors]
        assert (block.block_id in outcome.sums) == (len(owners) >= 3)
        if block.block_id in outcome.sums:
            encoding = block_encoding(spec, block)
            plain = encoding.zeros()
            for m in owners:
                key = rounding[m][[b.block_id for b in blocks if b.block_id in owns[m]].index(block.block_id)]
                plain += encoding.encode(inputs[m][block.block_id], rounding_bits(key))
            assert np.array_equal(outcome.sums[block.block_id].values, encoding.decode(plain, len(owners)))
            assert outcome.sums[block.block_id].owners == len(owners)


def _recorded_rounding(a: Round) -> dict[ParticipantId, list[bytes]]:
    """Gives each device its own seeded rounding, and remembers the keys in the order of its blocks."""
    keys: dict[ParticipantId, list[bytes]] = {}
    for member, session in a.fleet.sessions.items():
        source, drawn, original = seeded_entropy(7, "rounding", member), keys.setdefault(member, []), session.answer

        def draw(size: int, source=source, drawn=drawn) -> bytes:
            drawn.append(source(size))
            return drawn[-1]

        def answer(run_id, request, *, inputs=None, rounding=None, original=original, draw=draw):
            return original(run_id, request, inputs=inputs, rounding=draw)

        session.answer = answer  # type: ignore[method-assign]
    return keys


@pytest.mark.e2e
@pytest.mark.parametrize("mode", list(Mode))
def test_a_roster_above_128_sums_on_circulant_graphs_with_dropouts(mode: Mode) -> None:
    """132 devices; a block of all, masked on a circle or complete, and one of 22, masked by all its owners."""
    fleet = make_fleet(132)
    blocks = [
        SummedBlock(block_id=BlockId(name), ranges=(SumRange(length=132, max_abs=1.0, exact=True),))
        for name in ("all", "few")
    ]
    owns = {
        ParticipantId(i): frozenset({BlockId("all"), BlockId("few")} if i % 6 == 0 else {BlockId("all")})
        for i in range(1, 133)
    }
    gone = {8, 30, 31, 32, 100}
    ops = [Op(kind="drop", stage="mask", member=ParticipantId(i)) for i in gone]
    outcome = run_round(fleet, make_spec(fleet, blocks, mode=mode), owns=owns, ops=ops)
    assert isinstance(outcome, Summed), outcome
    alive = np.array([float(i not in gone) for i in range(1, 133)])
    assert np.array_equal(outcome.sums[BlockId("all")].values, alive)
    few = np.array([float(i % 6 == 0) for i in range(1, 133)])
    assert np.array_equal(outcome.sums[BlockId("few")].values, alive * few)


def test_an_upload_is_exactly_its_own_blocks_and_little_more() -> None:
    """4.0 bytes a parameter at 32 bits, 2.0 at 16; at most 200 bytes a neighbour and 1 KiB on top; no masked zeros."""
    fleet, length = make_fleet(9), 5000
    for bits in (16, 32):
        blocks = [
            SummedBlock(block_id=BlockId(name), bits=bits, ranges=(SumRange(length=length, max_abs=1.0),))
            for name in ("mine", "others")
        ]
        owns = {
            ParticipantId(i): frozenset({BlockId("mine")} if i == 1 else {BlockId("mine"), BlockId("others")})
            for i in range(1, 10)
        }
        spec = make_spec(fleet, blocks, run_id=f"run-{bits}")
        zeros = {
            ParticipantId(i): dict.fromkeys(("mine", "others"), np.zeros(length, np.float32)) for i in range(1, 10)
        }
        a = Round(fleet=fleet, spec=spec, owns=owns, inputs=zeros)
        assert isinstance(a.run(), Summed)
        upload = sum(len(reply) for (member, _), reply in a.replies.items() if member == 1)
        assert upload <= length * bits // 8 + 200 * 8 + 1024


def test_a_block_that_nobody_owns_is_reported_as_skipped() -> None:
    fleet = make_fleet(5)
    blocks = [
        SummedBlock(block_id=BlockId(name), ranges=(SumRange(length=5, max_abs=1.0, exact=True),)) for name in "bc"
    ]
    owns = {ParticipantId(i): frozenset({BlockId("b")}) for i in range(1, 6)}
    outcome = run_round(fleet, make_spec(fleet, blocks), owns=owns)
    assert isinstance(outcome, Summed)
    assert outcome.skipped == {"c": "expected 3 organisations, found 0 (0 of 0 owners survived)"}


@pytest.mark.parametrize("devices", [3, 4])
def test_three_or_four_devices_sum_but_bear_no_dropout(devices: int) -> None:
    fleet = make_fleet(devices)
    assert isinstance(run_round(fleet, make_spec(fleet)), Summed)
    fleet = make_fleet(devices)
    outcome = run_round(fleet, make_spec(fleet), ops=[Op(kind="drop", stage="mask", member=ParticipantId(1))])
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.TOO_FEW_DEVICES
    assert outcome.restartable


def test_fewer_devices_than_the_fractions_need_abort_at_once() -> None:
    fleet = make_fleet(5)
    ops = [Op(kind="drop", stage="fit", member=ParticipantId(i)) for i in (1, 2, 3)]
    outcome = run_round(fleet, make_spec(fleet), ops=ops)
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.TOO_FEW_DEVICES
    assert set(outcome.rejected) == {1, 2, 3}
