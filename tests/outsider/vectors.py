""" "Encoding of vectors" of docs/protocol.md."""

import math

import numpy as np


# ---- encoding of vectors
def levels(bits, n):
    return min((2**bits - 1) // (2 * n), 2**35)


def layout(block):
    b = block["bits"]
    count = sum(r["length"] for r in block["ranges"])
    if b in (8, 16, 32, 64):
        return b, 1, count, count
    lanes = 64 // b
    return 64, lanes, -(-count // lanes), count


def pack(block, lanes_values):
    w, _lanes, words, _count = layout(block)
    out = [0] * words
    for c, q in enumerate(lanes_values):
        out[c % words] += int(q) << (block["bits"] * (c // words))
    return np.array(out, dtype=np.uint64).astype(f"<u{w // 8}")


def unpack(block, words_arr):
    _w, _lanes, words, count = layout(block)
    mask = (1 << block["bits"]) - 1
    return [(int(words_arr[c % words]) >> (block["bits"] * (c // words))) & mask for c in range(count)]


def words_of(block, data):
    w = layout(block)[0]
    return np.frombuffer(data, dtype=f"<u{w // 8}")


def nbytes(block):
    w, _, words, _ = layout(block)
    return words * w // 8


def limits(block):
    return [(r["max_abs"], r["exact"]) for r in block["ranges"] for _ in range(r["length"])]


def decode_sum(block, n, m, arr):
    B = levels(block["bits"], n)
    out = []
    for q, (C, exact) in zip(unpack(block, arr), limits(block), strict=False):
        out.append(q - m * B if exact else (q - m * B) * C / B)
    return np.array(out, dtype=float)


def encode_vector(block, n, x, rng):
    B = levels(block["bits"], n)
    assert B >= 1
    out = []
    for v, (C, exact) in zip(x, limits(block), strict=True):
        assert math.isfinite(v)
        if exact:
            assert v == int(v)
            assert abs(v) <= C <= B
            out.append(int(v) + B)
        else:
            u = (2 * int(rng.integers(1 << 16)) + 1) / 2**17
            out.append(math.floor(B / C * min(max(v, -C), C) + u) + B)
    return pack(block, out)
