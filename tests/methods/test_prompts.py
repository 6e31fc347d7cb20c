"""Prompts and prefixes: the papers' counts and formulas, the peft library's numbers, what is refused."""

import math

import numpy as np
import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn

from fedpeft.catalogue.llama_adapter import LlamaAdapter
from fedpeft.catalogue.p_tuning import PTuning
from fedpeft.catalogue.p_tuning_v2 import PTuningV2
from fedpeft.catalogue.prefix import Prefix
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.methods.llama_adapter import GatedPrompt
from fedpeft.methods.prefix import PlainPrefix
from fedpeft.methods.prompt import prompts_of
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.tuning.batches import collate
from fedpeft.tuning.hook_check import example_losses
from fedpeft.tuning.per_sample_hooks import Hooked, micro_gradients
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BOTH = pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
H, LAYERS, P, N = 32, 3, 5, 8


def key_width(build) -> int:
    return 32 if build is tiny_bert else 16


@BOTH
@pytest.mark.parametrize(
    ("adapter", "size"),
    [
        (Adapter(prompt=Prompt(length=P)), lambda _: P * H),
        (Adapter(p_tuning=PTuning(length=P, width=N)), lambda _: P * H + 2 * H * N + N * N + 2 * N + H),
        (
            Adapter(prefix=Prefix(length=P, width=N)),
            lambda w: P * H + N * H + N + LAYERS * (2 * w * N + 2 * w),
        ),
        (Adapter(p_tuning_v2=PTuningV2(length=P)), lambda w: LAYERS * 2 * P * w),
        (Adapter(llama_adapter=LlamaAdapter(length=P)), lambda _: LAYERS * (P * H + 1)),
    ],
    ids=["prompt", "p-tuning", "prefix", "p-tuning v2", "llama-adapter"],
)
def test_parameters_are_the_papers(build, adapter, size):
    union = attach(build(), adapter.model_copy(update={"head": False}), seed=0)
    (block,) = union.spec.blocks
    assert block.size == size(key_width(build))


def peft_model(model: nn.Module, config: type, **settings: object) -> nn.Module:
    classify = hasattr(model, "classifier")
    wrapped = get_peft_model(model, config(task_type="SEQ_CLS" if classify else "CAUSAL_LM", **settings))
    return wrapped.eval()


def numbers(build, length: int) -> dict[str, object]:
    """What peft needs to know of a model without asking it."""
    return {"num_virtual_tokens": length, "num_layers": LAYERS, "num_attention_heads": 4 if build is tiny_bert else 2}


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    output: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits
    return output


@BOTH
def test_a_prompt_computes_what_peft_computes(build):
    union = attach(build(), Adapter(prompt=Prompt(length=P)), seed=0)
    theirs = peft_model(build(), PromptTuningConfig, num_virtual_tokens=P)
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(prompts_of(union.model)["prompt"].made())
    found, ours = logits_of(theirs), logits_of(union.model)
    assert torch.allclose(ours, found if build is tiny_bert else found[:, P:], atol=1e-5)


@BOTH
def test_an_encoded_prompt_computes_what_peft_computes(build):
    union = attach(build(), Adapter(p_tuning=PTuning(length=P, width=N)), seed=0)
    theirs = peft_model(build(), PromptEncoderConfig, num_virtual_tokens=P, encoder_hidden_size=N)
    part, encoder = prompts_of(union.model)["p_tuning"], theirs.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(part.table)
        for index, name in ((0, "first"), (2, "second"), (4, "third")):
            encoder.mlp_head[index].weight.copy_(getattr(part, name))
            encoder.mlp_head[index].bias.copy_(getattr(part, f"{name}_bias").uniform_(-1, 1, generator=GENERATOR()))
    found, ours = logits_of(theirs), logits_of(union.model)
    assert torch.allclose(ours, found if build is tiny_bert else found[:, P:], atol=1e-5)


def GENERATOR() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rotated(rows: torch.Tensor, width: int, by: int) -> torch.Tensor:
    """(p, k d) turned by RoPE as at position ``by``: peft moves the text by p, so its prefix stands p further back."""
    angles = by * 10000.0 ** (-torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat((f(angles), f(angles))) for f in (torch.cos, torch.sin))
    heads = rows.view(len(rows), -1, width)
    first, second = heads.chunk(2, dim=-1)
    return (heads * cos + torch.cat((-second, first), dim=-1) * sin).reshape(rows.shape)


@BOTH
@pytest.mark.parametrize("kind", ["p_tuning_v2", "prefix"])
def test_a_prefix_computes_what_peft_computes(build, kind):
    settings = {"length": P} if kind == "p_tuning_v2" else {"length": P, "width": N}
    union = attach(build(), Adapter.model_validate({kind: settings}), seed=0)
    parts = [
        module
        for name, module in union.model.named_modules()
        if name.endswith(f".fedpeft_attention.{kind}") and hasattr(module, "rows")
    ]
    base = build()
    if build is tiny_bert:  # peft moves the text's positions by p: give it a base whose positions begin later
        with torch.no_grad():
            base.bert.embeddings.position_embeddings.weight.copy_(
                base.bert.embeddings.position_embeddings.weight.roll(P, dims=0)
            )
    theirs = peft_model(
        base, PrefixTuningConfig, token_dim=key_width(build), **numbers(build, P), prefix_projection=False
    )
    with torch.no_grad():
        rows = []
        for part in parts:
            key, value = part.rows()
            rows += [key if build is tiny_bert else rotated(key, 8, P), value]
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(rows, dim=1))
    assert torch.allclose(logits_of(union.model), logits_of(theirs), atol=1e-4)


def test_a_gated_prompt_computes_what_peft_computes_on_a_decoder():
    union = attach(tiny_llama(), Adapter(llama_adapter=LlamaAdapter(length=P), layers=2), seed=0)
    theirs = peft_model(tiny_llama(), AdaptionPromptConfig, adapter_len=P, adapter_layers=2)
    parts = grafts_of(union.model, GatedPrompt)
    with torch.no_grad():
        for path, part in parts.items():
            wrapped = theirs.base_model.model.get_submodule(path)
            part.gate.fill_(0.7)
            wrapped.adaption_prompt.copy_(part.prompt[None])
            wrapped.adaption_gate.copy_(part.gate)
    assert len(parts) == 2
    assert torch.allclose(logits_of(union.model), logits_of(theirs), atol=1e-5)
    assert not torch.allclose(logits_of(union.model), logits_of(tiny_llama()), atol=1e-2)


def test_one_attention_module_computes_the_formula_of_the_gate():
    union = attach(tiny_bert(), Adapter(llama_adapter=LlamaAdapter(length=P), layers=1), seed=0)
    (path, part), *_ = grafts_of(union.model, GatedPrompt).items()
    host = union.model.get_submodule(path)
    x = torch.randn((2, 4, H), generator=GENERATOR())
    with torch.no_grad():
        plain = host(x)[0]
        part.gate.fill_(0.5)
        query, key, value = host.query(x), host.key(part.prompt), host.value(part.prompt)
        split = lambda t: t.view(*t.shape[:-1], 4, 8).transpose(-2, -3)  # noqa: E731
        weights = torch.softmax(split(query) @ split(key).transpose(-1, -2) / math.sqrt(8), dim=-1)
        expected = plain + 0.5 * (weights @ split(value)).transpose(1, 2).reshape(x.shape)
        assert torch.allclose(host(x)[0], expected, atol=1e-5)


@BOTH
@pytest.mark.parametrize("length", [1, 3, P])  # as many as the examples, too: then a wrong gradient has the right shape
def test_lora_beside_a_gated_prompt_has_a_gradient_for_each_example(build, length):
    adapter = Adapter(lora=Lora(rank=2), llama_adapter=LlamaAdapter(length=length), head=False)
    union = attach(build(), adapter, seed=0)
    for part in grafts_of(union.model, GatedPrompt).values():
        part.gate.data.fill_(0.7)
    union.train_only([BlockId("lora.B.t2")])
    trained = union.parameters(BlockId("lora.B.t2"))
    stages, examples = SplitForward(union), examples_for(build, 3)
    batches = [collate(examples, np.array(rows), pad_id=0, device=stages.device) for rows in ([0, 1, 2], [0], [1], [2])]
    hooked = Hooked(union.model, trained)
    with hooked.listening():
        example_losses(stages, batches[0], None).sum().backward()
        found = hooked.take(3)
    for index, batch in enumerate(batches[1:]):
        exact = micro_gradients(example_losses(stages, batch, None)[0], list(trained.values()))
        for mine, part in zip(found, exact, strict=True):
            assert torch.allclose(mine[index], part[0], atol=1e-5)


def test_prefixes_of_the_top_layers_leave_the_layers_below_alone():
    union = attach(tiny_bert(), Adapter(p_tuning_v2=PTuningV2(length=P), layers=1), seed=0)
    assert list(grafts_of(union.model, PlainPrefix)) == ["bert.encoder.layer.2.attention.self"]
    assert union.anatomy.first_layer == 2


@BOTH
def test_an_eager_model_computes_the_same(build):
    model = build()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    adapter = Adapter(p_tuning_v2=PTuningV2(length=P), prompt=Prompt(length=P))
    ours = logits_of(attach(model, adapter, seed=0).model)
    assert torch.allclose(ours, logits_of(attach(build(), adapter, seed=0).model), atol=1e-5)


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_a_prompt_below_frozen_layers_is_refused_with_what_to_use_instead(method):
    with pytest.raises(ConfigInvalid, match="p_tuning_v2 or llama_adapter"):
        attach(tiny_bert(), Adapter.model_validate({method: {}, "layers": 1}), seed=0)


def test_a_prompt_longer_than_the_models_positions_is_refused():
    with pytest.raises(ConfigInvalid, match="64 positions"):
        attach(tiny_bert(), Adapter(prompt=Prompt(length=64)), seed=0)


@pytest.mark.parametrize("init", ["vocabulary", "gaussian"])
def test_a_prompt_begins_at_the_size_of_the_models_own_embeddings(init):
    union = attach(tiny_bert(), Adapter(prompt=Prompt(length=20, init=init)), seed=0)
    table, rows = union.model.bert.embeddings.word_embeddings.weight, prompts_of(union.model)["prompt"].made()
    assert 0.8 < float(rows.std() / table.std()) < 1.2
    assert (init == "vocabulary") == all(bool((table == row).all(dim=1).any()) for row in rows)
