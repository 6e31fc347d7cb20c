"""Class means: what a device puts into its head's block, and what the coordinator makes of the sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from fedpeft.adapter import unflatten
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.head_start import HEAD_BLOCK, classifier_of
from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import DataInvalid
from fedpeft.methods import attach
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.tuning import ActivationCache, evaluate
from fedpeft.tuning.class_means import classifier_weight, measure_class_means

pytestmark = pytest.mark.torch

CLASSES, SIZE = 3, 8
MEANS = Adapter(layers=1, lora=Lora(rank=2, tiers=(2,)), head_start="class-means")
SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_labels": CLASSES,
    "pad_token_id": 0,
}


def roberta():
    torch.manual_seed(0)
    return RobertaForSequenceClassification(
        RobertaConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SMALL)).eval()


def banded(count):
    """Examples whose tokens all come from their class's third of the vocabulary: any base tells them apart."""
    plain = class_examples(count)
    ids = tuple(
        (row % 40 + 40 * label).astype(np.int32) for row, label in zip(plain.input_ids, plain.labels, strict=True)
    )
    return replace(plain, input_ids=ids)


def of_class(examples, label):
    rows = np.flatnonzero(examples.labels == label)
    return replace(examples, input_ids=tuple(examples.input_ids[i] for i in rows), labels=examples.labels[rows])


def read_by_classifier(union, examples):
    """What the last linear layer reads of each example, one at a time, (n, hidden)."""
    found = []
    host = union.model.get_submodule(classifier_of(union.spec[HEAD_BLOCK]).name.removesuffix(".weight"))
    hook = host.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    with torch.no_grad():
        for ids in examples.input_ids:
            union.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
    hook.remove()
    return torch.cat([rows.reshape(-1, rows.shape[-1])[-1:] for rows in found]).double().numpy()


@pytest.mark.parametrize("build", [tiny_bert, roberta, llama])
def test_a_row_is_what_the_classifier_reads_of_its_class(build):
    union = attach(build(), MEANS, seed=0)
    examples = class_examples(24)
    before = union.state()
    assert measure_class_means(union, examples, steps=8, batch_size=SIZE, seed=0) == 24
    features = read_by_classifier(union, examples)
    sums = np.stack([features[examples.labels == c].sum(0) for c in range(CLASSES)])
    counts = np.bincount(examples.labels, minlength=CLASSES)
    square = (counts / 24 * np.square(sums / counts[:, None]).sum(1)).sum()
    assert np.allclose(classifier_weight(union).detach().numpy(), sums / (24 * square), rtol=1e-4, atol=1e-7)
    after = union.state()
    for block in union.spec.blocks:
        held = unflatten(block, after[block.block_id])
        for name, values in unflatten(block, before[block.block_id]).items():
            if name != classifier_of(union.spec[HEAD_BLOCK]).name:
                assert np.array_equal(held[name], values), name
    assert not any(parameter.requires_grad for parameter in union.model.parameters())


@pytest.mark.parametrize("build", [tiny_bert, roberta, llama])
def test_the_head_that_the_means_make_tells_classes_apart_before_anything_is_trained(build):
    union = attach(build(), MEANS, seed=0)
    examples = banded(90)
    measure_class_means(union, examples, steps=20, batch_size=SIZE, seed=0)
    union.load(between_rounds(union.state(), MEANS, 1))
    score = evaluate(union, examples, limit=0, batch_size=30)
    assert score.correct > 45  # of 90; 30 by chance, and these bases are random


def test_many_devices_of_one_class_each_make_the_head_of_the_pooled_data():
    union = attach(tiny_bert(), MEANS, seed=0)
    examples = banded(90)
    start = union.state()
    measure_class_means(union, examples, steps=20, batch_size=SIZE, seed=0)
    pooled = between_rounds(union.state(), MEANS, 1)
    total = np.zeros(start[HEAD_BLOCK].size)
    for label in range(CLASSES):
        union.load(start)
        measure_class_means(union, of_class(examples, label), steps=20, batch_size=SIZE, seed=0)
        total += (union.state()[HEAD_BLOCK] - start[HEAD_BLOCK]) / CLASSES
    apart = between_rounds(start.replace({HEAD_BLOCK: total.astype(np.float32)}), MEANS, 1)
    one, other = pooled[HEAD_BLOCK], apart[HEAD_BLOCK]
    assert np.dot(one, other) > 0.999 * np.linalg.norm(one) * np.linalg.norm(other)
    assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=0.1)


def test_the_cache_changes_no_bit_and_serves_the_training_that_follows():
    union = attach(tiny_bert(), MEANS, seed=0)
    examples, found = class_examples(60), []
    cache = ActivationCache.for_training(examples, batch_size=SIZE, seed=4, max_bytes=2**20)
    for _ in range(2):
        union.load(union.initial_state())
        measure_class_means(union, examples, steps=2, batch_size=SIZE, seed=4, cache=cache)
        found.append(union.state()[HEAD_BLOCK])
    assert np.array_equal(found[0], found[1])
    assert cache.size_bytes > 0


def test_a_device_measures_what_it_would_train_on_and_nothing_twice():
    union = attach(tiny_bert(), MEANS, seed=0)
    assert [measure_class_means(union, class_examples(90), steps=n, batch_size=5, seed=0) for n in (2, 40)] == [10, 90]


def test_features_that_are_not_finite_are_refused():
    model = tiny_bert()
    model.bert.pooler.dense.weight.data.fill_(float("nan"))
    union = attach(model, MEANS, seed=0)
    with pytest.raises(DataInvalid, match="mean square of nan"):
        measure_class_means(union, class_examples(9), steps=2, batch_size=5, seed=0)
