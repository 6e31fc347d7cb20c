"""Each encoding against a plain numpy reference, its error bound, and its bytes over thread counts."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fedpeft.base.four_bits import NF4_CODES, _midpoints, _nearest_nf4, absmax_map  # noqa: E402
from fedpeft.base.quantize import choose_encoding, dequantize, dequantize_matrix, dequantize_rows, parts_of, quantize  # noqa: E402
from fedpeft.base.residency import PackedWeight, packed_linear  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402

pytestmark = pytest.mark.torch
ENCODINGS = ("plain", "int8", "int8-g32", "nf4", "int4-g32")


def weight(rows: int = 48, columns: int = 160, scale: float = 0.05, seed: int = 0) -> "torch.Tensor":
    values = np.random.Generator(np.random.Philox(seed)).standard_t(4, (rows, columns)) * scale
    return torch.from_numpy(values.astype(np.float32))


def round_trip(matrix: "torch.Tensor", encoding: str) -> np.ndarray:
    parts = quantize(matrix, encoding)
    return dequantize(parts, encoding, tuple(matrix.shape)).numpy()


def test_int8_is_the_row_wise_reference_to_the_bit():
    matrix = weight()
    scale = np.abs(matrix.numpy()).max(axis=1, keepdims=True) / np.float32(127)
    expected = np.rint(matrix.numpy() / scale).astype(np.int8)
    parts = quantize(matrix, "int8")
    assert np.array_equal(parts["int8"].numpy(), expected)
    assert np.array_equal(round_trip(matrix, "int8"), expected.astype(np.float32) * scale)
    assert (np.abs(round_trip(matrix, "int8") - matrix.numpy()) <= scale * 0.5001).all()


def test_int4_is_the_affine_reference_to_the_bit():
    matrix = weight()
    groups = matrix.numpy().reshape(48, 5, 32)
    low = groups.min(axis=2).astype(np.float16)
    scale = ((groups.max(axis=2) - groups.min(axis=2)) / np.float32(15)).astype(np.float16)
    lows, scales = low.astype(np.float32)[..., None], scale.astype(np.float32)[..., None]
    codes = np.clip(np.rint((groups - lows) / scales), 0, 15)
    found = round_trip(matrix, "int4-g32").reshape(groups.shape)
    assert np.array_equal(found, (codes.astype(np.float32) * scales + lows))
    # Half a step, and what rounding the minimum to float16 moves the ends by.
    assert (np.abs(found - groups) <= scales * 0.5 + np.abs(lows) * 2**-10 + scales * 15 * 2**-10).all()


def test_nf4_codes_are_the_nearest_and_absmax_is_doubly_quantized_as_the_reference_says():
    matrix = weight(32, 96)
    blocks = matrix.numpy().reshape(-1, 64).astype(np.float64)
    absmax = np.abs(blocks).max(axis=1)
    nearest = np.abs((blocks / absmax[:, None])[..., None] - np.array(NF4_CODES)).argmin(axis=2)
    parts = quantize(matrix, "nf4")
    packed = parts["nf4"].numpy()
    assert np.array_equal(np.stack([packed >> 4, packed & 15], axis=1).reshape(-1, 64), nearest)

    offset = np.float32(math.fsum(absmax) / len(absmax))
    assert parts["offset"].item() == offset
    centred = absmax.astype(np.float32) - offset
    absmax2 = np.abs(centred).max()  # 48 blocks: one block of 256
    levels = absmax_map().numpy()
    nearest2 = np.abs((centred / absmax2)[:, None] - levels).argmin(axis=1)
    assert np.array_equal(parts["absmax"].numpy(), nearest2)
    restored = levels[nearest2] * absmax2 + offset
    expected = np.array(NF4_CODES, dtype=np.float32)[nearest] * restored[:, None]
    assert np.array_equal(round_trip(matrix, "nf4").reshape(-1, 64), expected)


def test_nf4_error_is_at_most_half_the_widest_gap_plus_the_error_of_absmax():
    matrix = weight(64, 256)
    blocks = matrix.numpy().reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    gap = np.diff(NF4_CODES).max() / 2
    error = np.abs(round_trip(matrix, "nf4").reshape(-1, 64) - blocks)
    spread = np.abs(absmax - absmax.mean()).max()
    assert (error <= gap * absmax + spread * np.diff(absmax_map().numpy()).max() / 2 + 1e-6).all()


def test_the_dynamic_map_has_256_distinct_sorted_values_with_zero_and_one():
    levels = absmax_map().numpy()
    assert len(np.unique(levels)) == 256
    assert (np.diff(levels) > 0).all()
    assert 0.0 in levels
    assert levels[-1] == 1.0
    # Against the published construction in float arithmetic (bitsandbytes, create_dynamic_map).
    means = [
        10.0 ** (i - 6) * m for i in range(7) for b in [np.linspace(0.1, 1, 2**i + 1)] for m in (b[1:] + b[:-1]) / 2
    ]
    assert np.allclose(levels, sorted([*means, *(-m for m in means), 0.0, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("encoding", ["int8", "int8-g32"])
def test_int8_never_clips_even_the_smallest_weights(encoding: str):
    matrix = weight(scale=1e-5)
    width = 32 if encoding == "int8-g32" else 160
    step = np.abs(matrix.numpy().reshape(48, -1, width)).max(axis=2, keepdims=True) / 127 + 2**-24
    error = np.abs(round_trip(matrix, encoding) - matrix.numpy()).reshape(48, -1, width)
    assert (error <= step * 0.5001).all()


def test_gguf_q8_0_comes_through_int8_g32_exactly():
    generator = np.random.Generator(np.random.Philox(3))
    codes = generator.integers(-126, 127, (16, 4, 32))
    codes[:, :, 0] = 127
    scales = np.abs(generator.normal(0, 1e-3, (16, 4, 1))).astype(np.float16).astype(np.float32)
    matrix = (codes.astype(np.float32) * scales).reshape(16, 128)
    assert np.array_equal(round_trip(torch.from_numpy(matrix), "int8-g32"), matrix)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packed_bytes_do_not_depend_on_the_thread_count(encoding: str):
    matrix = weight(512, 1024)
    threads = torch.get_num_threads()
    digests = set()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            parts = quantize(matrix, encoding)
            content = b"".join(parts[name].numpy().tobytes() for name in sorted(parts))
            restored = dequantize(parts, encoding, (512, 1024)).numpy().tobytes()
            digests.add(hashlib.sha256(content + restored).hexdigest())
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


KNOWN = {
    "int4-g32": "9240f078afb4d7eb",
    "int8": "966ba48d873a51ed",
    "int8-g32": "5de7e7f7d0ed8a45",
    "nf4": "b2ec9134c60911a3",
}
PRINT_DIGESTS = """
import hashlib
import numpy as np
import torch
from fedpeft.base.quantize import quantize  # noqa: E402
cubes = np.random.Generator(np.random.Philox(5)).integers(-4096, 4096, (320, 96)).astype(np.float64) ** 3
matrix = torch.from_numpy((cubes / 2.0**40).astype(np.float32))
for encoding in ("int4-g32", "int8", "int8-g32", "nf4"):
    parts = quantize(matrix, encoding)
    content = b"".join(parts[name].numpy().tobytes() for name in sorted(parts))
    print(encoding, hashlib.sha256(content).hexdigest()[:16])
"""


def test_packed_bytes_are_the_known_ones(capsys: pytest.CaptureFixture[str]):
    exec(PRINT_DIGESTS, {})  # noqa: S102
    assert dict(line.split() for line in capsys.readouterr().out.splitlines()) == KNOWN


# The processor's own set is the one in this process.
@pytest.mark.parametrize(
    "instructions", ["avx2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("default", "avx512"))]
)
def test_packed_bytes_are_the_known_ones_on_every_instruction_set(instructions: str):
    """A changed digest is a new artifact format, not a detail. torch falls back where the CPU lacks the set."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instructions, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_DIGESTS], env=environment, capture_output=True, text=True, check=True
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == KNOWN


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (7, 96), (130, 160)])
def test_parts_have_the_announced_types_and_shapes(encoding: str, shape: tuple[int, int]):
    matrix = weight(*shape)
    parts = quantize(matrix, encoding)
    announced = {part.part: (part.dtype, part.shape) for part in parts_of(encoding, shape, torch.float32)}
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == announced
    assert dequantize(parts, encoding, shape).shape == shape


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 13), (9, 33)])
def test_nf4_takes_shapes_that_fill_no_block(shape: tuple[int, int]):
    matrix = weight(*shape)
    found = round_trip(matrix, "nf4")
    assert found.shape == shape
    assert np.abs(found - matrix.numpy()).max() <= 0.2 * np.abs(matrix.numpy()).max()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_zeros_stay_zeros_beside_large_weights(encoding: str):
    matrix = weight(8, 256)
    matrix[3] = 0.0
    found = round_trip(matrix, encoding)
    assert (found[3] == 0.0).all()
    assert (round_trip(torch.zeros(4, 64), encoding) == 0.0).all()


@pytest.mark.parametrize("encoding", ["plain", "int8", "int8-g32"])
def test_single_rows_equal_the_whole_table_to_the_bit(encoding: str):
    matrix = weight()
    parts = quantize(matrix, encoding)
    rows = torch.tensor([[3, 0], [47, 3]])
    assert torch.equal(dequantize_rows(parts, encoding, rows), dequantize(parts, encoding, (48, 160))[rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_plain_keeps_the_source_type_and_its_values(dtype: "torch.dtype"):
    matrix = weight().to(dtype)
    parts = quantize(matrix, "plain")
    assert parts["value"].dtype == dtype
    assert torch.equal(dequantize(parts, "plain", (48, 160)), matrix.float())


@pytest.mark.parametrize("encoding", ["int8", "int8-g32", "nf4", "int4-g32"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(encoding: str, value: float):
    matrix = weight()
    matrix[5, 7] = value
    with pytest.raises(ConfigInvalid, match="finite"):
        quantize(matrix, encoding)


@pytest.mark.parametrize("encoding", ["int4-g32", "int8-g32"])
def test_weights_beyond_float16_are_refused_by_encodings_that_scale_in_float16(encoding: str):
    with pytest.raises(ConfigInvalid, match="float16"):
        quantize(weight() * 1e9, encoding)


@pytest.mark.parametrize(
    ("scheme", "role", "shape", "encoding"),
    [
        ("none", "linear", (64, 64), "plain"),
        ("int8", "linear", (64, 70), "int8"),
        ("int8", "embedding", (64, 64), "int8"),
        ("nf4", "linear", (64, 70), "nf4"),
        ("nf4", "embedding", (64, 64), "int8-g32"),
        ("nf4", "embedding", (64, 70), "int8"),
        ("int4-g32", "linear", (64, 64), "int4-g32"),
        ("int4-g32", "linear", (64, 70), "int8"),
        ("int4-g32", "other", (64,), "plain"),
        ("nf4", "other", (8, 64, 64), "plain"),
        ("nf4", "linear", (8, 64, 48), "nf4"),
        ("nf4", "linear", (8, 3, 40), "int8"),
        ("int4-g32", "linear", (8, 3, 64), "int4-g32"),
    ],
)
def test_roles_choose_the_encoding(scheme: str, role: str, shape: tuple[int, ...], encoding: str):
    assert choose_encoding(scheme, role, shape) == encoding


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(3, 4, 32), (5, 66, 64), (2, 700, 96)])  # small, across absmax blocks and slabs
def test_one_experts_matrix_is_read_from_all_of_them_to_the_bit(encoding: str, shape: tuple[int, int, int]):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    parts = quantize(stack, encoding)
    whole = dequantize(parts, encoding, shape)
    assert whole.shape == stack.shape
    for index in range(shape[0]):
        assert torch.equal(dequantize_matrix(parts, encoding, shape, index), whole[index])
        if encoding != "nf4":  # whose second scale spans experts
            assert torch.equal(dequantize(quantize(stack[index], encoding), encoding, shape[1:]), whole[index])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(300, 96), (7, 1600), (129, 32)])
def test_the_bytes_do_not_depend_on_where_the_slabs_are_cut(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shape: tuple[int, int]
):
    from fedpeft.base import tensors

    matrix = weight(*shape)
    whole = quantize(matrix, encoding)
    monkeypatch.setattr(tensors, "SLAB_ELEMENTS", 1000)
    slabs = quantize(matrix, encoding)
    assert all(torch.equal(slabs[part], whole[part]) for part in whole)


def test_the_nearest_nf4_code_is_the_one_that_a_search_finds_at_and_around_every_midpoint():
    middles = _midpoints(torch.tensor(NF4_CODES, dtype=torch.float32))
    near = [middles]
    for toward in (-2.0, 2.0):
        step = middles
        for _ in range(3):
            step = torch.nextafter(step, torch.tensor(toward))
            near.append(step)
    values = torch.cat([*near, torch.linspace(-1, 1, 100_001)])
    assert torch.equal(_nearest_nf4(values), torch.bucketize(values, middles).to(torch.uint8))


@pytest.mark.parametrize("encoding", ["nf4", "int4-g32", "int8"])
def test_products_in_turn_are_those_of_the_whole_weights_whatever_was_unpacked_before(encoding):
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, columns, generator=draw) for rows, columns in ((96, 64), (7, 32), (160, 96), (5, 160))]
    packed = [PackedWeight(quantize(one, encoding), encoding, tuple(one.shape)) for one in weights]
    for one in (*packed, *reversed(packed)):
        x = torch.randn(3, one.shape[1], generator=draw, requires_grad=True)
        with torch.inference_mode():
            packed_linear(x, one, None)
        y = packed_linear(x, one, None)
        assert torch.equal(y, torch.nn.functional.linear(x, one.unpack()))
        y.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(y) @ one.unpack())
