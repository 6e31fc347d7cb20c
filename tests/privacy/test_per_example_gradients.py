"""The gradients that a private step clips, for every method there is: those of the examples taken one by one.

Encoder and decoder; on a plain, an int8 and an nf4 base, the packed ones with checkpointing. What the hooks cannot do
goes through the micro loop; which methods that are is held here, so that none slows down unnoticed.
"""

from typing import get_args

import numpy as np
import pytest
import torch

from fedpeft.catalogue import BY_NAME
from fedpeft.catalogue.opacus import Engine
from fedpeft.config.adapter import Adapter, MethodName
from fedpeft.errors import ConfigInvalid
from fedpeft.methods import attach, due_blocks
from fedpeft.testing.methods import on_base
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.tuning.batches import collate
from fedpeft.tuning.hook_check import example_losses
from fedpeft.tuning.per_example_gradients import GradientSource, refuse_mixing
from fedpeft.tuning.per_sample_hooks import micro_gradients
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

SMALL = {
    "lora": {"rank": 4, "targets": ("q", "v", "down")},
    "qalora": {"rank": 1},
    "bottleneck": {"width": 4},
    "parallel": {"width": 4},
    "prompt": {"length": 4},
    "p_tuning": {"length": 4},
    "prefix": {"length": 4},
    "p_tuning_v2": {"length": 4},
    "adalora": {"rank": 4, "target_rank": 2},
}
MICRO = {
    *("prefix", "llama_adapter"),  # their parts have no example in the first place
    *("compacter", "hypernetwork", "unipelt", "coda"),  # parameters that several modules share, or calls of other kinds
}
RANK_ONE = {
    "qalora"
}  # on some processors the bits of a product with one column depend on the row: micro in those shapes


PLACES = [
    (method, build, base, engine)
    for method in get_args(MethodName)
    for build in (tiny_bert, tiny_llama)
    for base in ("plain", "nf4", *(["int8"] if build is tiny_bert else []))
    for engine in get_args(Engine)
    if (method, build) != ("bitfit", tiny_llama)  # it has no biases
    and (build, base, engine) != (tiny_bert, "nf4", "opacus")  # int8 stands for both
]
EXAMPLES = 3


@pytest.mark.drawn(1, each=("method", "engine"), always=lambda method, **_: method == "lora")
@pytest.mark.parametrize(("method", "build", "base", "engine"), PLACES)
def test_what_is_clipped_are_the_gradients_of_single_examples_by_either_engine(method, build, base, engine):
    examples = token_examples(EXAMPLES) if build is tiny_llama else class_examples(EXAMPLES)
    union = attach(on_base(build, base), Adapter.model_validate({method: SMALL.get(method, {})}), seed=0)
    if BY_NAME[method].measures:
        with pytest.raises(ConfigInvalid, match="learn by gradients alone"):
            refuse_mixing(union.model)
        return
    refuse_mixing(union.model)
    blocks = due_blocks(union.spec, union.adapter, 1)
    union.train_only(blocks)
    trained = {name: p for block in sorted(blocks) for name, p in union.parameters(block).items()}
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, where many gradients vanish; earlier runs' adapters too
        for block in union.spec.blocks:
            for parameter in union.parameters(block.block_id).values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    plain, exact = SplitForward(union), []
    for index in range(EXAMPLES):
        one = collate(examples, np.array([index]), pad_id=plain.pad_id, device=plain.device)
        own = micro_gradients(example_losses(plain, one, None)[0], list(trained.values()))
        exact.append(torch.cat([gradient.flatten() for gradient in own]))
        assert float(exact[-1].norm()) > 0
    source = GradientSource(
        union, blocks, trained, examples, most=EXAMPLES, checkpointing=base != "plain", engine=engine
    )
    able = method not in MICRO if engine == "fedpeft" else BY_NAME[method].opacus.able
    if method in RANK_ONE and source.micro_shapes:
        assert source.back_end == "micro"
    else:
        assert source.back_end == ({"fedpeft": "hooks", "opacus": "opacus"}[engine] if able else "micro")
    for index in range(EXAMPLES):
        (part,) = source.gradients(np.array([index]))
        found = torch.cat([gradient.flatten(1) for gradient in part], 1)
        assert len(found) == 1
        assert float((found[0] - exact[index]).norm()) <= 1e-5 * float(exact[index].norm())
    assert all(parameter.grad is None for parameter in trained.values())
