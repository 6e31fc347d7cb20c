"""Which blocks a device trains. No torch."""

import subprocess
import sys

import pytest

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.errors import ConfigInvalid
from fedpeft.ids import BlockId
from fedpeft.methods import blocks_for


def block(block_id: str, method: str, *, trainable: bool = True) -> BlockSpec:
    tensor = TensorSpec(name=f"{block_id}.w", shape=(2,))
    return BlockSpec(block_id=BlockId(block_id), method=method, tensors=(tensor,), trainable=trainable)


SPEC = AdapterSpec(
    blocks=(
        *(block(f"lora.A.t{tier}", "lora", trainable=False) for tier in (2, 4, 8)),
        *(block(f"lora.B.t{tier}", "lora") for tier in (2, 4, 8)),
        block("bitfit", "bitfit"),
        block("head", "head"),
    )
)


def test_a_device_of_low_rank_trains_the_prefix_of_tiers():
    assert blocks_for(SPEC, methods=["lora"], rank=4, head=True) == ("lora.B.t2", "lora.B.t4", "head")


def test_no_rank_is_the_full_rank_and_frozen_blocks_are_never_trained():
    assert blocks_for(SPEC, methods=["lora"], rank=None, head=False) == ("lora.B.t2", "lora.B.t4", "lora.B.t8")


def test_methods_combine_in_the_order_of_the_specification():
    chosen = blocks_for(SPEC, methods=["bitfit", "lora"], rank=2, head=True)
    assert chosen == ("lora.B.t2", "bitfit", "head")


def test_a_rank_without_lora_means_nothing():
    assert blocks_for(SPEC, methods=["bitfit"], rank=3, head=False) == ("bitfit",)


def test_a_head_alone_can_be_trained():
    assert blocks_for(SPEC, methods=[], rank=None, head=True) == ("head",)


def test_a_rank_that_is_no_tier_is_refused_with_the_tiers():
    with pytest.raises(ConfigInvalid, match=r"a tier of adapter\.lora \(2, 4, 8\), found 3"):
        blocks_for(SPEC, methods=["lora"], rank=3, head=True)


def test_a_method_that_the_adapter_lacks_is_refused_with_the_choice():
    with pytest.raises(ConfigInvalid, match=r"\(bitfit, lora\), found ia3"):
        blocks_for(SPEC, methods=["ia3"], rank=None, head=True)


def test_every_problem_is_reported_at_once():
    with pytest.raises(ConfigInvalid) as caught:
        blocks_for(SPEC, methods=["ia3", "lora"], rank=5, head=True)
    assert len(caught.value.problems) == 2


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigInvalid, match="at least one block"):
        blocks_for(SPEC, methods=[], rank=None, head=False)


def test_planning_blocks_loads_no_torch():
    code = "import sys; from fedpeft.methods import blocks_for; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
