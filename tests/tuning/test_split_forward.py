"""The forward pass in parts equals the model's own, in values and in gradients."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from fedpeft.catalogue.coda import Coda
from fedpeft.catalogue.compacter import Compacter
from fedpeft.catalogue.hypernetwork import Hypernetwork
from fedpeft.catalogue.llama_adapter import LlamaAdapter
from fedpeft.catalogue.p_tuning import PTuning
from fedpeft.catalogue.p_tuning_v2 import PTuningV2
from fedpeft.catalogue.parallel import Parallel
from fedpeft.catalogue.prefix import Prefix
from fedpeft.catalogue.prompt import Prompt
from fedpeft.catalogue.unipelt import Unipelt
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Ia3, LayerNorm, Lora
from fedpeft.data import IGNORED
from fedpeft.errors import ConfigInvalid
from fedpeft.methods import attach
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.plans import trainable
from fedpeft.tuning.batches import collate
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 120,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}


def tiny_roberta():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RobertaForSequenceClassification(RobertaConfig(**SIZES)).eval()


def tiny_llama_classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(LlamaConfig(**SIZES)).eval()


def prepared(build, adapter):
    """An adapter away from its start, its split and a padded batch."""
    union = attach(build(), adapter, seed=0)
    draw = np.random.Generator(np.random.Philox(1))
    state = union.initial_state()
    union.load(
        state.replace({b: (v + 0.2 * draw.standard_normal(v.shape)).astype(np.float32) for b, v in state.items()})
    )
    union.train_only(trainable(union))
    examples = examples_for(build, 6)
    split = SplitForward(union)
    return union, split, collate(examples, np.arange(6), pad_id=split.pad_id, device=split.device)


def reference(union, batch):
    """Logits and labels as the model itself computes them."""
    logits = union.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    if logits.dim() == 2:
        return logits, batch.labels
    labels = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()
    return logits.flatten(0, 1)[labels != IGNORED], labels[labels != IGNORED]


def gradients(union, logits, labels):
    functional.cross_entropy(logits, labels).backward()
    found = {name: p.grad.clone() for name, p in union.model.named_parameters() if p.requires_grad}
    union.model.zero_grad()
    return found


BESIDE = Adapter(parallel=Parallel(width=4), layernorm=LayerNorm())
PREFIXES = Adapter(
    prefix=Prefix(length=4, width=8),
    p_tuning_v2=PTuningV2(length=3),
    llama_adapter=LlamaAdapter(length=4),
    lora=Lora(rank=4, targets=("q", "k", "v")),
)
SHARED = Adapter(compacter=Compacter(width=8), hypernetwork=Hypernetwork(width=4, embedding=6))
UNIPELT = Adapter(unipelt=Unipelt(rank=2, length=4, width=4), lora=Lora(rank=2))
CODA = Adapter(coda=Coda(width=4), lora=Lora(rank=2))
HIERARCHY = Adapter(lora=Lora(rank=4, layers=(1, 1)), p_tuning_v2=PTuningV2(length=3, layers=(2, 2)))
MODELS = {
    "bert": (tiny_bert, Adapter(lora=Lora(rank=4), bitfit=BitFit(), ia3=Ia3())),
    "bert all matrices": (tiny_bert, Adapter(lora=Lora(rank=4, targets=("q", "k", "v", "o", "up", "down")))),
    "roberta": (tiny_roberta, Adapter(lora=Lora(rank=4), ia3=Ia3())),
    "llama": (tiny_llama, Adapter(lora=Lora(rank=4), ia3=Ia3())),
    "bert bottlenecks and norms": (tiny_bert, Adapter(bottleneck=Bottleneck(width=4), layernorm=LayerNorm())),
    "bert bottlenecks beside": (tiny_bert, BESIDE),
    "roberta bottlenecks beside": (tiny_roberta, BESIDE),
    "llama bottlenecks beside": (tiny_llama, BESIDE),
    "bert prefixes": (tiny_bert, PREFIXES),
    "roberta prefixes": (tiny_roberta, PREFIXES),
    "llama prefixes": (tiny_llama, PREFIXES),
    "bert shared networks": (tiny_bert, SHARED),
    "llama shared networks": (tiny_llama, SHARED),
    "bert unipelt": (tiny_bert, UNIPELT),
    "roberta unipelt": (tiny_roberta, UNIPELT),
    "llama unipelt": (tiny_llama, UNIPELT),
    "bert coda": (tiny_bert, CODA),
    "llama coda": (tiny_llama, CODA),
    "bert hierarchy": (tiny_bert, HIERARCHY),
    "llama classifier": (tiny_llama_classifier, Adapter(lora=Lora(rank=4))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", ["all", 1])
def test_logits_and_gradients_are_the_models_own(name, layers):
    build, adapter = MODELS[name]
    union, split, batch = prepared(build, adapter.model_copy(update={"layers": layers}))
    expected, labels = reference(union, batch)
    found, found_labels = split.logits(batch)
    assert torch.equal(labels, found_labels)
    assert torch.allclose(found, expected, atol=1e-5)
    ours, theirs = gradients(union, found, labels), gradients(union, expected, labels)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in ours)


@pytest.mark.parametrize("build", [tiny_bert, tiny_roberta, tiny_llama, tiny_llama_classifier])
def test_prompts_lengthen_the_input_and_not_the_labels(build):
    adapter = Adapter(prompt=Prompt(length=4), p_tuning=PTuning(length=3, width=8), lora=Lora(rank=4))
    union, split, batch = prepared(build, adapter)
    expected, labels = reference(union, batch)
    found, found_labels = split.logits(batch)
    assert torch.equal(labels, found_labels)
    assert torch.allclose(found, expected, atol=1e-5)
    ours, theirs = gradients(union, found, labels), gradients(union, expected, labels)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in ours)
    assert float(ours[next(key for key in ours if "prompt" in key)].norm()) > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [1, 2])
def test_in_two_parts_the_logits_and_gradients_are_the_same(name, layers):
    build, adapter = MODELS[name]
    union, split, batch = prepared(build, adapter.model_copy(update={"layers": layers}))
    whole, labels = split.logits(batch)
    hidden = split.hidden_below(batch)
    assert not hidden.requires_grad
    parts, _ = split.logits_above(batch, hidden)
    assert torch.allclose(parts, whole, atol=1e-6)
    ours, theirs = gradients(union, parts, labels), gradients(union, whole, labels)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours)


@pytest.mark.parametrize("build", [tiny_bert, tiny_roberta, tiny_llama_classifier])
def test_under_a_head_alone_every_layer_is_below_the_cut(build):
    union, split, batch = prepared(build, Adapter())
    assert split.first_layer == 3
    expected, _ = reference(union, batch)
    assert torch.allclose(split.logits_above(batch, split.hidden_below(batch))[0], expected, atol=1e-6)


def test_nothing_below_the_first_adapted_layer_is_in_the_graph():
    union, split, batch = prepared(tiny_bert, Adapter(lora=Lora(rank=4), layers=1))
    seen = {}
    for i, layer in enumerate(union.model.bert.encoder.layer):
        layer.attention.register_forward_hook(lambda _m, _i, out, i=i: seen.update({i: out[0].requires_grad}))
    split.logits(batch)
    assert seen == {0: False, 1: False}  # the last one runs for its first token only, past this module


def test_the_model_itself_is_untouched_by_its_stages():
    union, split, batch = prepared(tiny_bert, Adapter(lora=Lora(rank=4), layers=1))
    before = {name: id(module) for name, module in union.model.named_modules()}
    split.logits_above(batch, split.hidden_below(batch))
    assert {name: id(module) for name, module in union.model.named_modules()} == before


def test_a_cut_below_the_first_layer_is_refused():
    _, split, batch = prepared(tiny_bert, Adapter(lora=Lora(rank=4)))
    with pytest.raises(ConfigInvalid, match=r"adapter\.layers"):
        split.logits_above(batch, torch.zeros(6, 20, 32))
