"""The cache of activations: exact, bounded, and blind to the order in which it was filled."""

import numpy as np
import pytest
import torch

from fedpeft.catalogue.parallel import Parallel
from fedpeft.config.model import Adapter, Bottleneck, Ia3, LayerNorm, Lora
from fedpeft.data import EncodedDataset
from fedpeft.errors import ResourceMissing
from fedpeft.methods import attach
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import ActivationCache, JoinedCaches, evaluate, train
from fedpeft.tuning.batches import collate
from fedpeft.tuning.disk_rows import DiskRows
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

BOTH = pytest.mark.parametrize(
    ("build", "examples"), [(tiny_bert, class_examples(40)), (tiny_llama, token_examples(40))]
)
ADAPTER = Adapter(lora=Lora(rank=4), ia3=Ia3(), layers=1)
ADDITIVE = [
    Adapter(bottleneck=Bottleneck(width=4), layernorm=LayerNorm(), layers=1),
    Adapter(parallel=Parallel(width=4), layernorm=LayerNorm(), layers=1),
]
PLENTY = 1 << 24


def plan_of(union, steps=12):
    return plan_for(trainable(union), steps=steps, rate=0.02, optimizer="sgd")


def training_cache(examples, max_bytes=PLENTY):
    return ActivationCache.for_training(examples, batch_size=8, seed=0, max_bytes=max_bytes)


@BOTH
@pytest.mark.parametrize("adapter", [ADAPTER, *ADDITIVE], ids=["lora and ia3", "houlsby", "parallel"])
def test_training_with_the_cache_equals_training_without(build, examples, adapter):
    results = []
    for cache in (None, training_cache(examples)):
        union = attach(build(), adapter, seed=0)
        outcome = train(union, examples, plan_of(union), seed=0, cache=cache)
        results.append((outcome.mean_loss, np.concatenate(list(union.state().values()))))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert np.allclose(results[0][1], results[1][1], atol=1e-6)


@BOTH
def test_evaluating_with_the_cache_equals_evaluating_without(build, examples):
    union = attach(build(), ADAPTER, seed=0)
    cache = ActivationCache.for_evaluation(examples, batch_size=8, max_bytes=PLENTY)
    for limit in (20, 0, 20):
        plain = evaluate(union, examples, limit=limit, batch_size=8)
        cached = evaluate(union, examples, limit=limit, batch_size=8, cache=cache)
        assert cached.loss_sum == pytest.approx(plain.loss_sum, rel=1e-6)
        assert (cached.correct, cached.examples) == (plain.correct, plain.examples)


@BOTH
@pytest.mark.parametrize("max_bytes", [PLENTY, 40_000, 0])
def test_a_resumed_run_with_an_empty_cache_is_bit_identical(build, examples, max_bytes):
    whole = attach(build(), ADAPTER, seed=0)
    cache = training_cache(examples, max_bytes)
    for first in (0, 4, 8):
        train(whole, examples, plan_of(whole, steps=4), seed=0, first_step=first, cache=cache)
    pieces = attach(build(), ADAPTER, seed=0)
    for first in (0, 4, 8):
        anew = training_cache(examples, max_bytes)
        train(pieces, examples, plan_of(pieces, steps=4), seed=0, first_step=first, cache=anew)
    assert whole.state().digests == pieces.state().digests


def test_the_lower_layers_run_once_an_example():
    union, examples = attach(tiny_bert(), ADAPTER, seed=0), class_examples(40)
    runs = []
    union.model.bert.encoder.layer[0].register_forward_hook(lambda _m, _i, out: runs.append(len(out)))
    cache = training_cache(examples)
    train(union, examples, plan_of(union, steps=20), seed=0, cache=cache)
    assert sum(runs) == 40


@pytest.mark.parametrize("max_bytes", [0, 5_000, 40_000, PLENTY])
def test_the_cache_keeps_within_its_bound(max_bytes):
    union, examples = attach(tiny_bert(), ADAPTER, seed=0), class_examples(40)
    cache = training_cache(examples, max_bytes)
    train(union, examples, plan_of(union, steps=10), seed=0, cache=cache)
    everything = sum(len(ids) for ids in examples.input_ids) * 32 * 4
    assert cache.size_bytes <= max_bytes
    assert cache.size_bytes == everything or max_bytes < everything
    assert cache.size_bytes > 0 or max_bytes <= 5_000


def test_cached_activations_have_zeros_for_padding_and_no_gradient():
    union, examples = attach(tiny_bert(), ADAPTER, seed=0), class_examples(40)
    split, cache = SplitForward(union), training_cache(examples)
    batch = collate(examples, np.array([0, 1, 2, 3]), pad_id=0, device=split.device)
    hidden = cache.hidden(split, batch)
    assert hidden.shape == (*batch.input_ids.shape, 32)
    assert not hidden[batch.attention_mask == 0].any()
    assert not hidden.requires_grad
    direct = split.hidden_below(batch)
    assert torch.allclose(hidden[batch.attention_mask == 1], direct[batch.attention_mask == 1], atol=1e-6)


def test_joined_caches_give_what_their_parts_hold():
    union, examples = attach(tiny_bert(), ADAPTER, seed=0), class_examples(40)
    split = SplitForward(union)
    halves = [examples.input_ids[:15], examples.input_ids[15:]]
    parts = [EncodedDataset(input_ids=half, labels=np.zeros(len(half), np.int64), truncated=0) for half in halves]
    joined = JoinedCaches([training_cache(part, bound) for part, bound in zip(parts, (PLENTY, 4_000), strict=True)])
    for _ in range(2):
        batch = collate(examples, np.array([39, 2, 14, 15, 0]), pad_id=0, device=split.device)
        direct = split.hidden_below(batch)
        hidden = joined.hidden(split, batch)
        mask = torch.ones(hidden.shape[:2]) if batch.attention_mask is None else batch.attention_mask
        assert torch.allclose(hidden[mask == 1], direct[mask == 1], atol=1e-6)


def test_with_adapters_in_every_layer_a_cache_has_no_effect():
    examples, results = class_examples(40), []
    for cache in (None, training_cache(examples)):
        union = attach(tiny_bert(layers=3), ADAPTER.model_copy(update={"layers": 3}), seed=0)
        train(union, examples, plan_of(union), seed=0, cache=cache)
        results.append(union.state().digests)
    assert results[0] == results[1]


def test_the_cache_lies_on_the_disk_and_leaves_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    union, examples = attach(tiny_bert(), ADAPTER, seed=0), class_examples(40)
    cache = training_cache(examples)
    train(union, examples, plan_of(union), seed=0, cache=cache)
    assert cache.size_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_found_before_anything_is_computed(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    union, examples = attach(tiny_bert(), ADAPTER, seed=0), class_examples(40)
    with pytest.raises(ResourceMissing, match="cache_mb"):
        train(union, examples, plan_of(union), seed=0, cache=training_cache(examples))


def test_a_spill_gives_back_what_was_put_at_each_row_and_nothing_beyond_its_end():
    spill, rows = DiskRows(5, 3), torch.arange(12.0).reshape(4, 3)
    spill.write(1, rows)
    assert torch.equal(spill.read(2, 3), rows[1:])
    assert torch.equal(spill.read(0, 1), torch.zeros(1, 3))
    with pytest.raises(EOFError):
        spill.read(4, 2)
