"""Texts that belong together: loss and gradients against sentence-transformers' own, and what may not change them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from fedpeft.config.adapter import Adapter
from fedpeft.data.encode import EncodedDataset
from fedpeft.data.encode_texts import Contrast
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid
from fedpeft.methods import UnionAdapter, attach
from fedpeft.tasks.embeddings import GROUP, Retrieval
from fedpeft.testing.models import VOCABULARY
from fedpeft.tuning import ActivationCache, LocalPlan, evaluate
from fedpeft.tuning.dp_sgd import train_privately
from fedpeft.tuning.dp_sgd_mechanism import NoiseScale
from fedpeft.tuning.evaluate import evaluate_whole
from fedpeft.tuning.objective import Objective
from fedpeft.tuning.several.contrast import candidates_of, contrastive_losses, cosines

pytestmark = pytest.mark.torch
SCALE = 20.0
ADAPTER = Adapter.model_validate({"lora": {"rank": 4, "targets": ("q", "v", "down")}, "layers": 2})


def together(kinds: str, *, seed: int = 0) -> EncodedDataset:
    """Examples of random tokens: ``p`` a pair, ``t`` a triplet."""
    draw = generator(seed, "together")
    texts = [
        [draw.integers(1, VOCABULARY, int(draw.integers(2, 9))) for _ in range(2 + (kind == "t"))] for kind in kinds
    ]
    return of_texts(texts)


def of_texts(texts: list[list[Any]]) -> EncodedDataset:
    return EncodedDataset(
        input_ids=tuple(np.concatenate(some).astype(np.int32) for some in texts),
        labels=np.zeros(len(texts), np.int64),
        segments=tuple(np.repeat(np.arange(len(some)), list(map(len, some))).astype(np.int32) for some in texts),
        truncated=0,
        contrast=Contrast(scale=SCALE),
    )


def moved() -> UnionAdapter:
    """An adapter on a bare BERT, away from its start, ready to be trained."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(requires_grad=False)
    union, draw = attach(model, ADAPTER, seed=0), generator(1, "moved")
    with torch.no_grad():
        for block in union.spec.blocks:
            for parameter in union.parameters(block.block_id).values():
                parameter.add_(torch.from_numpy(0.2 * draw.standard_normal(tuple(parameter.shape))).float())
    union.train_only([block.block_id for block in union.spec.blocks if block.trainable])
    return union


def gradients_of(union: UnionAdapter) -> list[Tensor]:
    found = [parameter.grad for block in union.spec.blocks for parameter in union.parameters(block.block_id).values()]
    union.model.zero_grad(set_to_none=True)
    return [gradient.clone() for gradient in found if gradient is not None]


def vector_of(union: UnionAdapter, ids: np.ndarray) -> Tensor:
    """One text alone: nothing is padded, nothing is masked."""
    states: Tensor = union.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state
    return states[0].mean(0)


def texts_of(examples: EncodedDataset, column: int) -> list[np.ndarray]:
    pairs = zip(examples.input_ids, examples.segments or (), strict=True)
    return [ids[whose == column] for ids, whose in pairs]


def backward(union: UnionAdapter, examples: EncodedDataset, *, micro: int = 0, cached: bool = False) -> float:
    cache = None
    if cached:
        cache = ActivationCache.for_training(examples, batch_size=len(examples), seed=0, max_bytes=1 << 30)
    objective = Objective(union, examples, cache=cache, logit_offset=None, micro_batch=micro, checkpointing=False)
    return objective.backward(np.arange(len(examples)))


@pytest.mark.parametrize("kinds", ["pppppp", "ttttt"])
def test_loss_and_gradients_are_those_of_sentence_transformers(kinds: str) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    union, examples = moved(), together(kinds)
    columns = [
        torch.stack([vector_of(union, ids) for ids in texts_of(examples, column)])
        for column in range(2 + (kinds[0] == "t"))
    ]
    theirs = losses.MultipleNegativesRankingLoss(model=None, scale=SCALE).compute_loss_from_embeddings(columns, None)
    theirs.backward()
    expected = gradients_of(union)
    ours = backward(union, examples)
    assert ours == pytest.approx(theirs.item(), abs=1e-5)
    for one, other in zip(gradients_of(union), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_loss_is_the_formula_written_out() -> None:
    union, examples = moved(), together("ptppt")
    with torch.no_grad():
        units = [
            [vector / vector.norm() for vector in (vector_of(union, ids) for ids in texts)]
            for texts in (texts_of(examples, column) for column in range(2))
        ]
        negatives = [vector_of(union, texts_of(examples, 2)[i]) for i in (1, 4)]
        others = [*units[1], *(vector / vector.norm() for vector in negatives)]
        scores = [[SCALE * float(anchor @ other) for other in others] for anchor in units[0]]
    expected = np.mean([np.log(np.sum(np.exp(row))) - row[i] for i, row in enumerate(scores)])
    assert backward(union, examples) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("micro", "cached"), [(1, False), (2, False), (4, True), (0, True)])
def test_what_passes_through_the_model_at_once_changes_nothing(micro: int, *, cached: bool) -> None:
    """Neither the number of examples nor the cache: all texts of the step are compared with each other."""
    union, examples = moved(), together("ptppptt")
    loss = backward(union, examples)
    expected = gradients_of(union)
    assert backward(union, examples, micro=micro, cached=cached) == pytest.approx(loss, abs=1e-5)
    for one, other in zip(gradients_of(union), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_text_that_is_no_negative_does_not_count_against_an_anchor() -> None:
    a, b, c, d = ([3, 4], [5, 6, 7], [8, 9], [10, 11])
    examples = of_texts([[a, b], [a, c], [d, b], [b, a, c], [a, b, c]])
    among = candidates_of(examples, np.arange(5))
    # Rows: anchors a, a, d, b, a; columns: the positives b, c, b, a, b, then the negatives c, c.
    expected = [
        [False, True, True, True, True, True, True],  # c is another positive of a, b once more its own, a itself
        [True, False, True, True, True, True, True],  # b belongs to a by the first row, whoever's row it stands in
        [True, False, False, False, True, False, False],  # its own b stands in other rows too
        [True, False, True, False, True, False, False],  # b itself
        [True, True, True, True, False, True, True],  # its own negative belongs to a by the second row
    ]
    assert among.excluded.tolist() == expected
    vectors = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = contrastive_losses(cosines(vectors, among), SCALE)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.isfinite().all()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_recall_is_what_a_search_written_out_finds() -> None:
    union, examples = moved(), together("p" * 20 + "t" * 8)
    with torch.no_grad():
        columns = [[vector_of(union, ids) for ids in texts_of(examples, column) if len(ids)] for column in range(3)]
    units = [torch.nn.functional.normalize(torch.stack(column), dim=1) for column in columns]
    scores = units[0] @ torch.cat(units[1:]).T
    right = float((scores.argmax(1) == torch.arange(28)).float().mean())
    assert len(examples) <= GROUP
    for found in (
        evaluate(union, examples, limit=0, batch_size=3, measure=Retrieval()),
        evaluate(union, examples, limit=0, batch_size=28, measure=Retrieval()),
        evaluate_whole(union.model, examples, batch_size=5, measure=Retrieval()),
    ):
        assert found.lane_means is not None
        metrics = Retrieval().metrics(found.lane_means)
        assert metrics["recall_at_1"] == pytest.approx(right)
        assert metrics["cosine_own"] == pytest.approx(float(scores.diagonal().mean()), abs=1e-5)


def test_the_batch_of_an_evaluation_changes_neither_loss_nor_recall() -> None:
    union, examples = moved(), together("pt" * 35)
    found = [evaluate(union, examples, limit=61, batch_size=size, measure=Retrieval()) for size in (1, 7, 64)]
    assert {one.examples for one in found} == {61}
    for one in found[1:]:
        assert one.loss_sum == pytest.approx(found[0].loss_sum, rel=1e-5)
        np.testing.assert_allclose(one.lanes, found[0].lanes, atol=1e-4)


def test_weights_are_of_examples_in_the_lanes() -> None:
    union, examples = moved(), together("pt" * 20)
    one = evaluate(union, examples, limit=0, batch_size=8, measure=Retrieval())
    twice = evaluate(union, examples, limit=0, batch_size=8, measure=Retrieval(), weights=np.full(40, 2.0))
    assert one.lanes is not None
    assert twice.lanes is not None
    np.testing.assert_allclose(twice.lanes, 2 * one.lanes)
    assert twice.lane_weight == 2 * one.lane_weight


def test_private_steps_of_single_examples_are_refused() -> None:
    union, examples = moved(), together("pppp")
    rates = dict.fromkeys([block.block_id for block in union.spec.blocks], 0.1)
    plan = LocalPlan(steps=1, batch_size=2, optimizer="sgd", learning_rates=rates, weight_decay=0.0, max_grad_norm=1.0)
    noise = NoiseScale(noise_multiplier=1.0, l2_clip_norm=1.0, sampling_rate=0.5)
    with pytest.raises(ConfigInvalid, match="whole batch"):
        train_privately(union, examples, plan, noise)


def test_recall_of_an_evaluation_is_a_share_of_its_examples() -> None:
    from fedpeft.config.task import Task
    from fedpeft.tuning.evaluate import Evaluation, metrics_of

    lanes = np.array([3.0, 2.0, 1.0])  # of four examples: found, and both cosines summed
    some = Evaluation(loss_sum=4.0, correct=0, examples=4, lanes=lanes, lane_weight=4.0)
    found = metrics_of(Task(kind="embeddings", max_length=16), Evaluation.joined([some, some]))
    assert (found["recall_at_1"], found["cosine_own"]) == (0.75, 0.5)
