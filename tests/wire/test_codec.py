"""The codec: one encoding a message, and nothing else decodes."""

import enum
import math
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.ids import BlockId
from fedpeft.wire import WireError, decode, encode, message


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: BlockId
    size: int


@message(0xFF01)
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    number: int
    flag: bool
    ratio: float
    text: str
    blob: bytes
    colour: Colour
    inner: tuple[Inner, ...]
    maybe: int | None


@message(0xFF02)
@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    number: int


inners = st.builds(Inner, name=st.text(max_size=5).map(BlockId), size=st.integers(0, 9))
samples = st.builds(
    Sample,
    number=st.integers(0, 2**64 - 1),
    flag=st.booleans(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(max_size=20),
    blob=st.binary(max_size=40),
    colour=st.sampled_from(Colour),
    inner=st.lists(st.builds(Inner, name=st.text(max_size=5).map(BlockId), size=st.integers(0, 9)), max_size=3).map(
        tuple
    ),
    maybe=st.none() | st.integers(0, 5),
)


@given(samples)
def test_decoding_an_encoded_message_gives_it_back(sample: Sample) -> None:
    assert decode(encode(sample), Sample) == sample


@given(samples, st.data())
def test_a_truncated_or_extended_message_never_decodes(sample: Sample, data: st.DataObject) -> None:
    payload = encode(sample)
    cut = data.draw(st.integers(0, len(payload) - 1))
    for broken in (payload[:cut], payload + b"\0"):
        with pytest.raises(WireError):
            decode(broken, Sample)


@given(samples, st.data())
def test_bytes_that_decode_are_the_one_encoding_of_what_they_decode_to(sample: Sample, data: st.DataObject) -> None:
    payload = bytearray(encode(sample))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode(bytes(payload), Sample)
    except WireError:
        return
    assert encode(decoded) == bytes(payload)


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    sample = Sample(number=1, flag=True, ratio=0.5, text="abc", blob=b"", colour=Colour.RED, inner=(), maybe=None)
    with pytest.raises(WireError, match="Expected UTF-8"):
        decode(encode(sample).replace(b"abc", b"a\xffc"), Sample)


def test_another_message_is_refused_by_name() -> None:
    with pytest.raises(WireError, match="Expected Sample, found Other"):
        decode(encode(Other(number=1)), Sample)


def test_a_huge_declared_length_is_refused_before_anything_is_allocated() -> None:
    payload = bytearray(encode(Other(number=1)))
    for declared in (2**63, 2**40):
        payload[5:13] = declared.to_bytes(8, "big")
        with pytest.raises(WireError, match="Expected a body of"):
            decode(bytes(payload), Other)


def test_negative_numbers_and_nan_cannot_be_encoded() -> None:
    with pytest.raises(WireError, match=r"Other\.number"):
        encode(Other(number=-1))
    sample = Sample(number=0, flag=True, ratio=float("nan"), text="", blob=b"", colour=Colour.RED, inner=(), maybe=None)
    with pytest.raises(WireError, match="finite"):
        encode(sample)


@pytest.mark.parametrize("hostile", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_no_message(hostile: float) -> None:
    """A peer need not have encoded it with this codec; a comparison with NaN is false, so it would pass a limit."""
    good = encode(Sample(number=0, flag=True, ratio=0.5, text="", blob=b"", colour=Colour.RED, inner=(), maybe=None))
    assert good.count(struct.pack(">d", 0.5)) == 1
    with pytest.raises(WireError, match="finite"):
        decode(good.replace(struct.pack(">d", 0.5), struct.pack(">d", hostile)), Sample)


def test_a_module_that_is_loaded_again_has_its_messages_as_before() -> None:
    def loaded() -> type:
        @message(0xFF03)
        @dataclass(frozen=True, slots=True, kw_only=True)
        class Again:
            number: int

        return Again

    loaded()
    made = loaded()
    assert decode(encode(made(number=7)), made) == made(number=7)


def test_a_tag_can_be_taken_once() -> None:
    with pytest.raises(TypeError, match="taken by"):

        @message(0xFF02)
        @dataclass(frozen=True)
        class Third:
            number: int
