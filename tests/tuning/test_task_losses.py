"""A client's loss and gradient are those of plain transformers, for every task that adds a head."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification  # noqa: E402

from fedpeft.catalogue.lora import Lora  # noqa: E402
from fedpeft.config.adapter import Adapter  # noqa: E402
from fedpeft.data import EncodedDataset  # noqa: E402
from fedpeft.methods import UnionAdapter, attach  # noqa: E402
from fedpeft.tasks.entities import Entities  # noqa: E402
from fedpeft.tuning import evaluate  # noqa: E402
from fedpeft.tuning.batches import collate  # noqa: E402
from fedpeft.tuning.objective import Objective  # noqa: E402
from fedpeft.tuning.per_example_gradients import GradientSource  # noqa: E402

LENGTHS = (9, 5, 12, 7)
KINDS = ("single_label_classification", "regression", "multi_label_classification", "tags")


def model_of(kind: str) -> UnionAdapter:
    config = BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=1 if kind == "regression" else 4, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    if kind == "tags":
        model = BertForTokenClassification(config)
    else:
        config.problem_type = kind
        model = BertForSequenceClassification(config)
    model.requires_grad_(False).eval()
    union = attach(model, Adapter(lora=Lora(rank=2)), seed=1)
    state, draw = union.initial_state(), np.random.default_rng(1)
    moved = {
        block.block_id: (state[block.block_id] + 0.1 * draw.normal(size=block.size)).astype(np.float32)
        for block in state.spec.blocks
        if block.trainable
    }
    union.load(state.replace(moved))
    return union


def trainable(union: UnionAdapter) -> frozenset[str]:
    return frozenset(block.block_id for block in union.spec.blocks if block.trainable)


def examples_of(kind: str, *, pairs: bool = False) -> EncodedDataset:
    draw = np.random.default_rng(2)
    ids = tuple(draw.integers(5, 120, size).astype(np.int32) for size in LENGTHS)
    segments = tuple((np.arange(size) > size // 2).astype(np.int32) for size in LENGTHS) if pairs else None
    labels: object = draw.integers(0, 4, len(ids))
    if kind == "regression":
        labels = draw.uniform(0, 5, len(ids)).astype(np.float32)
    elif kind == "multi_label_classification":
        labels = draw.integers(0, 2, (len(ids), 4)).astype(np.float32)
    elif kind == "tags":
        labels = tuple(np.where(draw.random(size) < 0.3, -100, draw.integers(0, 4, size)) for size in LENGTHS)
    return EncodedDataset(input_ids=ids, labels=labels, truncated=0, segments=segments, of_tokens=kind == "tags")  # type: ignore[arg-type]


def own_loss(union: UnionAdapter, examples: EncodedDataset, indices: np.ndarray) -> "torch.Tensor":
    """What transformers makes of the same batch."""
    batch = collate(examples, indices, pad_id=0, device=torch.device("cpu"))
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    if batch.segments is not None:
        given["token_type_ids"] = batch.segments
    return union.model(**given).loss


def gradients(union: UnionAdapter) -> list["torch.Tensor"]:
    found = [p.grad.clone() for block in sorted(trainable(union)) for p in union.parameters(block).values()]
    union.model.zero_grad()
    return found


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_of_a_step_are_transformers_own(kind: str, pairs: bool) -> None:
    union, examples = model_of(kind), examples_of(kind, pairs=pairs)
    union.train_only(trainable(union))
    every = np.arange(len(examples))
    objective = Objective(union, examples, cache=None, logit_offset=None, micro_batch=2, checkpointing=False)
    ours, our_gradients = objective.backward(every), gradients(union)
    theirs = own_loss(union, examples, every)
    theirs.backward()
    assert ours == pytest.approx(float(theirs), rel=1e-5)
    for one, other in zip(our_gradients, gradients(union), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_s_own_gradient_is_that_of_a_batch_of_one_from_hooks_where_they_hold(kind: str) -> None:
    union, examples = model_of(kind), examples_of(kind, pairs=True)
    blocks = trainable(union)
    union.train_only(blocks)
    trained = {name: p for block in blocks for name, p in union.parameters(block).items()}
    source = GradientSource(union, blocks, trained, examples, most=4)
    # One output is a product of another shape, whose bits may follow the neighbours: then the exact loop is used.
    assert source.back_end == "hooks" or kind == "regression"
    found = [torch.cat(parts) for parts in zip(*source.gradients(np.arange(4)), strict=True)]
    squares = sorted(float(sum(part[i].square().sum() for part in found)) for i in range(4))
    expected = []
    for i in range(4):
        own_loss(union, examples, np.array([i])).backward()
        expected.append(float(sum(one.square().sum() for one in gradients(union))))
    assert squares == pytest.approx(sorted(expected), rel=1e-3)


def test_segments_change_what_a_pair_is() -> None:
    union = model_of("regression")
    apart, joined = (
        evaluate(union, examples_of("regression", pairs=pairs), limit=0, batch_size=2) for pairs in (True, False)
    )
    assert apart.loss_sum != joined.loss_sum


def test_tags_are_counted_by_word_and_entities_by_example() -> None:
    union, examples = model_of("tags"), examples_of("tags")
    tags = ("O", "B-a", "I-a", "B-b")
    found = evaluate(union, examples, limit=0, batch_size=3, measure=Entities(tags))
    assert found.rows == 4
    assert found.examples == sum(int((one != -100).sum()) for one in examples.labels)
    one_by_one = evaluate(union, examples, limit=0, batch_size=1, measure=Entities(tags))
    assert found.lanes is not None
    assert found.lanes.tolist() == one_by_one.lanes.tolist()  # type: ignore[union-attr]


def test_weights_of_examples_weigh_their_lanes_and_nothing_else() -> None:
    union, examples = model_of("tags"), examples_of("tags")
    measure = Entities(("O", "B-a", "I-a", "B-b"))
    plain = evaluate(union, examples, limit=0, batch_size=3, measure=measure)
    weights = np.array([0.5, 1.5, 1.0, 0.75])
    weighed = evaluate(union, examples, limit=0, batch_size=3, measure=measure, weights=weights)
    alone = [
        evaluate(union, examples, limit=0, batch_size=3, measure=measure, weights=row + 1e-12) for row in np.eye(4)
    ]
    expected = sum(weight * one.lanes for weight, one in zip(weights, alone, strict=True))  # type: ignore[operator]
    np.testing.assert_allclose(weighed.lanes, expected, atol=1e-9)
    np.testing.assert_allclose(weighed.lane_means, expected / weights.sum(), atol=1e-9)
    np.testing.assert_allclose(plain.lane_means, plain.lanes / 4)  # type: ignore[operator]
    assert (weighed.loss_sum, weighed.correct) == (plain.loss_sum, plain.correct)
