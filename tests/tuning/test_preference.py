"""Answers that are preferred: losses and gradients against TRL's formulas, written again here answer by answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.config.adapter import Adapter
from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.data.encode_texts import Preference
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.tasks.preference import Rewards
from fedpeft.testing.models import VOCABULARY, tiny_llama
from fedpeft.tuning import ActivationCache, evaluate
from fedpeft.tuning.batches import collate, predictions_of
from fedpeft.tuning.evaluate import evaluate_whole
from fedpeft.tuning.objective import Objective
from fedpeft.tuning.per_example_gradients import GradientSource
from fedpeft.tuning.preference.losses import with_reference
from fedpeft.tuning.several.sides import joined, parted, sides_of

pytestmark = pytest.mark.torch
BETA = 0.7
ADAPTER = Adapter.model_validate({"lora": {"rank": 4, "targets": ("q", "v", "down")}, "layers": 2})


def answers(kinds: str, *, seed: int = 0) -> EncodedDataset:
    """Examples of random tokens: ``p`` a pair, ``w`` an answer that is wanted, ``u`` one that is not."""
    draw = generator(seed, "answers")
    ids, labels, segments = [], [], []
    for kind in kinds:
        rows, marks, whose = [], [], []
        prompt = draw.integers(1, VOCABULARY, int(draw.integers(1, 6)))
        for side in {"p": (0, 1), "w": (0,), "u": (1,)}[kind]:
            answer = draw.integers(1, VOCABULARY, int(draw.integers(2, 8)))
            row = np.concatenate([prompt, answer])
            rows.append(row)
            marks.append(np.where(np.arange(len(row)) < len(prompt), IGNORED, row))
            whose.append(np.full(len(row), side))
        ids.append(np.concatenate(rows).astype(np.int32))
        labels.append(np.concatenate(marks).astype(np.int64))
        segments.append(np.concatenate(whose).astype(np.int32))
    return EncodedDataset(
        input_ids=tuple(ids),
        labels=tuple(labels),
        segments=tuple(segments),
        truncated=0,
        preference=Preference(beta=BETA),
    )


def moved() -> UnionAdapter:
    """An adapter away from its start, ready to be trained."""
    union = attach(tiny_llama(), ADAPTER, seed=0)
    draw = generator(1, "moved")
    with torch.no_grad():
        for block in union.spec.blocks:
            for parameter in union.parameters(block.block_id).values():
                parameter.add_(torch.from_numpy(0.2 * draw.standard_normal(tuple(parameter.shape))).float())
    union.train_only([block.block_id for block in union.spec.blocks if block.trainable])
    return union


def log_prob(model: nn.Module, ids: np.ndarray, labels: np.ndarray) -> Tensor:
    """TRL's ``selective_log_softmax`` summed over an answer's tokens."""
    logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
    logps = torch.log_softmax(logits.float(), -1).gather(1, torch.from_numpy(ids[1:].astype(np.int64))[:, None])[:, 0]
    return logps[torch.from_numpy(labels[1:] != IGNORED)].sum()


def trl_loss(model: nn.Module, base: nn.Module, examples: EncodedDataset, i: int) -> tuple[Tensor, dict[int, Tensor]]:
    """One example's loss as DPOTrainer ("sigmoid") and KTOTrainer ("apo_zero_unpaired") have it, and its rewards."""
    ids, labels = examples.input_ids[i], np.asarray(examples.labels[i])
    whose = examples.segments[i]  # type: ignore[index]
    ratios = {}
    for side in sorted(set(whose.tolist())):
        own = whose == side
        with torch.no_grad():
            reference = log_prob(base, ids[own], labels[own])
        ratios[side] = log_prob(model, ids[own], labels[own]) - reference
    if len(ratios) == 2:
        return -functional.logsigmoid(BETA * (ratios[0] - ratios[1])), {s: BETA * r for s, r in ratios.items()}
    if 0 in ratios:
        return 1 - functional.sigmoid(BETA * ratios[0]), {0: BETA * ratios[0]}
    return functional.sigmoid(BETA * ratios[1]), {1: BETA * ratios[1]}


def gradients(union: UnionAdapter) -> Tensor:
    parts = [
        p.grad.flatten() for b in union.spec.blocks for p in union.parameters(b.block_id).values() if p.requires_grad
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize("kinds", ["pppp", "wuwu", "pwup"])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_step_has_the_loss_and_the_gradient_of_trl_s_formulas(kinds: str, cached: bool, micro_batch: int) -> None:
    union, base = moved(), tiny_llama()
    examples = with_reference(answers(kinds), base)
    cache = ActivationCache.for_training(examples, batch_size=4, seed=3, max_bytes=2**20) if cached else None
    objective = Objective(union, examples, cache=cache, logit_offset=None, micro_batch=micro_batch, checkpointing=False)
    found = objective.backward(np.arange(len(kinds)))
    ours = gradients(union)
    union.train_only([block.block_id for block in union.spec.blocks if block.trainable])
    expected = torch.stack([trl_loss(union.model, base, examples, i)[0] for i in range(len(kinds))]).mean()
    expected.backward()
    assert found == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(ours, gradients(union), atol=1e-5, rtol=1e-4)
    assert float(ours.abs().max()) > 1e-3


@pytest.mark.parametrize("kinds", ["pppppp", "wuwuwu"])
def test_an_evaluation_counts_who_is_preferred_and_by_how_much(kinds: str) -> None:
    union, base = moved(), tiny_llama()
    examples, measure = with_reference(answers(kinds, seed=4), base), Rewards()
    with torch.no_grad():
        told = [trl_loss(union.model, base, examples, i) for i in range(len(kinds))]
        whole = evaluate_whole(union.model, examples, batch_size=4, measure=measure)
    found = evaluate(union, examples, limit=0, batch_size=4, measure=measure)
    losses, rewards = [float(one[0]) for one in told], [{s: float(r) for s, r in one[1].items()} for one in told]
    right = [one.get(0, 0.0) > one.get(1, 0.0) for one in rewards]
    assert found.examples == found.rows == len(kinds)
    assert found.loss_sum == pytest.approx(sum(losses), abs=1e-4)
    assert found.correct == sum(right)
    first, second = ([one[side] for one in rewards if side in one] for side in (0, 1))
    expected = {
        "margin": np.mean(first) - np.mean(second),
        "reward_chosen": np.mean(first),
        "reward_rejected": np.mean(second),
    }
    assert found.lanes is not None
    assert measure.metrics(found.lanes) == pytest.approx(expected, abs=1e-4)
    assert (whole.loss_sum, whole.correct) == (pytest.approx(found.loss_sum, abs=1e-4), found.correct)
    assert whole.lanes == pytest.approx(found.lanes, abs=1e-3)


def test_private_steps_clip_the_gradients_of_single_examples_whoever_stands_beside_them() -> None:
    union, base = moved(), tiny_llama()
    examples = with_reference(answers("pwup"), base, alone=True)
    blocks = {BlockId(b.block_id): union.parameters(b.block_id) for b in union.spec.blocks if b.trainable}
    trained = {name: p for own in blocks.values() for name, p in own.items()}
    source = GradientSource(union, frozenset(blocks), trained, examples, most=4)
    assert source.back_end == "micro", "the hooks count rows of the model, of which a pair has two"
    together = {int(members[0]): parts for members, parts in source.of(np.arange(4))}
    for i in range(4):
        ((_, alone),) = source.of(np.array([i]))
        assert all(torch.equal(a, b) for a, b in zip(alone, together[i], strict=True))
        union.train_only(blocks)
        trl_loss(union.model, base, examples, i)[0].backward()
        own = torch.cat([part.flatten() for part in alone])
        torch.testing.assert_close(own, gradients(union), atol=1e-5, rtol=1e-4)


def test_the_base_is_asked_once_and_what_it_says_of_an_example_alone_is_its_own() -> None:
    base, examples = tiny_llama(), answers("ppwup")
    known = with_reference(examples, base, alone=True)
    assert with_reference(known, base) is known
    assert known.preference is not None
    assert known.preference.reference is not None
    for i in range(len(examples)):
        (one,) = (
            replace(
                examples, **{name: getattr(examples, name)[i : i + 1] for name in ("input_ids", "labels", "segments")}
            ),
        )
        own = with_reference(one, base, alone=True).preference
        assert own is not None
        assert own.reference is not None
        assert np.array_equal(own.reference[0], known.preference.reference[i])
    together = with_reference(examples, base).preference
    assert together is not None
    assert together.reference == pytest.approx(known.preference.reference, abs=1e-4)


def test_a_batch_comes_apart_and_together_again() -> None:
    examples = answers("pwu", seed=2)
    batch = collate(examples, np.arange(3), pad_id=0, device=torch.device("cpu"))
    sides = sides_of(batch, pad_id=0)
    assert sides.example.tolist() == [0, 0, 1, 2]
    assert sides.other.tolist() == [0, 1, 0, 1]
    hidden = torch.randn(*batch.input_ids.shape, 5)
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    hidden = hidden * mask[..., None]
    assert torch.equal(joined(sides, parted(sides, hidden), hidden.shape[1]), hidden)
    assert [predictions_of(examples, i) for i in range(3)] == [1, 1, 1]
