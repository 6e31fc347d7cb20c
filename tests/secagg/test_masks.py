"""The mask kernel: exact, reversible, the same bytes on every path, and not distinguishable from random."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

import fedpeft.secagg.masks as kernel
from fedpeft.secagg.masks import Mask, apply_masks, noise_bytes, rounding_bits
from fedpeft.secagg.primitives import Secret, expand

DTYPES = st.sampled_from(["<u1", "<u2", "<u4", "<u8"])


def masks(count: int) -> list[Mask]:
    return [Mask(Secret(bytes([i]) * 32), add=bool(i % 2)) for i in range(count)]


@settings(deadline=None)
@given(dtype=DTYPES, length=st.integers(0, 20_000), count=st.integers(0, 5))
def test_masking_and_unmasking_is_the_identity(dtype: str, length: int, count: int) -> None:
    words = np.arange(length).astype(dtype)
    masked = words.copy()
    apply_masks(masked, masks(count))
    apply_masks(masked, [Mask(mask.key, add=not mask.add) for mask in masks(count)])
    assert np.array_equal(words, masked)


@settings(deadline=None, max_examples=20)
@given(dtype=DTYPES, length=st.integers(1, 9000), piece=st.sampled_from([64, 1024, 4096]), batch=st.integers(1, 4))
def test_both_back_ends_and_every_piece_size_give_the_same_words(
    dtype: str, length: int, piece: int, batch: int
) -> None:
    plain = np.zeros(length, dtype)
    apply_masks(plain, masks(5), backend="ctr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "PIECE_BYTES", piece)
        patch.setattr(kernel, "SEGMENT_BYTES", 4 * kernel.SEGMENT_BYTES)  # one segment either way
        patch.setattr(kernel, "BATCH", batch)
        kernel._zeros.cache_clear()
        for backend in ("ctr", "gcm"):
            other = np.zeros(length, dtype)
            apply_masks(other, masks(5), backend=backend)
            assert np.array_equal(plain, other)
    kernel._zeros.cache_clear()


def test_a_mask_is_plain_aes_ctr_cut_into_segments() -> None:
    words = np.zeros(kernel.SEGMENT_BYTES // 4 + 10, np.uint32)
    apply_masks(words, [Mask(Secret(b"k" * 32), add=True)])
    first = expand(b"k" * 32, 32 + 40)[32:]  # counter block 2 of prefix 0
    assert words[:10].tobytes() == first[:40]
    second = modes.CTR((1).to_bytes(12, "big") + b"\0\0\0\2")
    assert words[-10:].tobytes() == Cipher(algorithms.AES(b"k" * 32), second).encryptor().update(bytes(40))


@pytest.mark.parametrize("size", [0, 1, 15, 64, 65, 1000])
def test_noise_is_drawn_from_plain_aes_ctr_and_each_byte_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that stays zero, or comes twice, would be noise that is not there."""
    monkeypatch.setattr(kernel, "PIECE_BYTES", 64)
    kernel._zeros.cache_clear()
    draw = noise_bytes(b"k" * 32)
    plain = Cipher(algorithms.AES(b"k" * 32), modes.CTR(bytes(12) + b"\0\0\0\2")).encryptor().update(bytes(size + 64))
    assert draw(size) == plain[:size]
    assert draw(16) == plain[size : size + 16] or size % 16, "the next draw goes on where this one ended"
    kernel._zeros.cache_clear()


def test_the_order_of_masks_does_not_matter() -> None:
    one, other = np.zeros(999, np.uint16), np.zeros(999, np.uint16)
    apply_masks(one, masks(7))
    apply_masks(other, masks(7)[::-1])
    assert np.array_equal(one, other)


def test_masked_zeros_pass_chi_square_and_serial_correlation() -> None:
    words = np.zeros(1 << 18, np.uint32)
    apply_masks(words, [Mask(Secret(os.urandom(32)), add=True), Mask(Secret(os.urandom(32)), add=False)])
    observed = np.bincount(words.view(np.uint8), minlength=256)
    expected = words.nbytes / 256
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert 130 < statistic < 430  # 255 degrees of freedom: eight standard deviations
    stream = words.view(np.uint8).astype(np.float64) - 127.5
    correlation = float((stream[1:] * stream[:-1]).mean() / stream.var())
    assert abs(correlation) < 8 / np.sqrt(len(stream))


def test_the_low_bits_of_masked_zeros_have_full_linear_complexity() -> None:
    """Catches generators that are linear over bits: Mersenne Twister stops at 19,937 however long the stream is."""
    bits = 42_000
    words = np.zeros(bits, np.uint32)
    apply_masks(words, [Mask(Secret(os.urandom(32)), add=True), Mask(Secret(os.urandom(32)), add=True)])
    assert abs(linear_complexity((words & 1).astype(np.uint8)) - bits // 2) < 60


def test_the_linear_complexity_test_would_catch_a_mersenne_twister() -> None:
    twister = np.random.Generator(np.random.MT19937(1))
    low_bits = (twister.integers(0, 1 << 32, 42_000, dtype=np.uint32) & 1).astype(np.uint8)
    assert linear_complexity(low_bits) <= 19_937


def test_rounding_bits_are_uniform_and_go_on() -> None:
    draw = rounding_bits(b"r" * 32)
    first, second = draw(1000).copy(), draw(1000).copy()
    assert not np.array_equal(first, second)
    assert 25_000 < np.concatenate([first, second]).mean() < 40_000


def linear_complexity(bits: np.ndarray) -> int:
    """Berlekamp-Massey over GF(2), on Python integers as bit vectors."""
    connection, previous = 1, 1
    length, shift = 0, 1
    history = 0
    for n, bit in enumerate(bits.tolist()):
        history = history << 1 | bit
        if (connection & history).bit_count() & 1:
            if 2 * length <= n:
                connection, previous = connection ^ previous << shift, connection
                length, shift = n + 1 - length, 1
            else:
                connection ^= previous << shift
                shift += 1
        else:
            shift += 1
    return length


def test_every_sixteen_mebibytes_the_keystream_begins_anew_under_the_next_nonce() -> None:
    """docs/protocol.md, "Masks": peers with other segments would not cancel each other's masks."""
    key, segment = bytes(range(32)), 1 << 24
    words = np.zeros(segment + 64, np.uint8)
    apply_masks(words, [Mask(Secret(key), add=True)])
    for number, start in enumerate((0, segment)):
        block = number.to_bytes(12, "big") + b"\0\0\0\2"
        expected = Cipher(algorithms.AES(key), modes.CTR(block)).encryptor().update(bytes(64))
        assert words[start : start + 64].tobytes() == expected
