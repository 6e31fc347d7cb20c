"""The claims about how little is trained, on SmolLM2-135M and MiniLM-L6 (counts are exact: test_work.py)."""

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Ia3, LayerNorm, Lora
from fedpeft.planner.placement import spec_of
from fedpeft.testing.shapes import DECODER, MINILM


def share(shape, adapter):
    """Trained coordinates over the base's, the class head aside."""
    return sum(block.size for block in spec_of(shape, adapter, classes=0).blocks if block.trainable) / shape.parameters


def test_a_checkpoint_of_lora_on_q_and_v_at_rank_4_is_500_times_smaller_than_the_models():
    # Hu 2021, section 4.2, has 10,000 times for GPT-3, whose matrices are 12,288 wide.
    spec = spec_of(DECODER, Adapter(lora=Lora(rank=4, tiers=(4,), targets=("q", "v"))), classes=0)
    state = AdapterState(spec, {block.block_id: np.zeros(block.size, np.float32) for block in spec.blocks})
    assert DECODER.dense_bytes / len(state.to_safetensors()) > 500
    sent = sum(4 * block.size for block in spec.blocks if block.trainable)
    assert DECODER.dense_bytes / sent > 1400


@pytest.mark.parametrize("shape", [DECODER, MINILM])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_bottleneck_adapters_are_half_a_percent_to_eight_percent(shape, width):
    adapter = Adapter(bottleneck=Bottleneck(width=width), layernorm=LayerNorm())
    assert 0.005 < share(shape, adapter) < 0.08


@pytest.mark.parametrize("shape", [DECODER, MINILM])
def test_ia3_is_below_a_fifth_of_a_percent(shape):
    assert 0 < share(shape, Adapter(ia3=Ia3())) < 0.002


def test_bitfit_is_below_a_fifth_of_a_percent():
    assert 0 < share(MINILM, Adapter(bitfit=BitFit())) < 0.002
