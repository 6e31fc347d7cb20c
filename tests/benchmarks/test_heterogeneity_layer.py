"""Thirty clients in one product take the steps that the product's own loop takes, one client at a time."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft.adapter import unflatten
from fedpeft.aggregate.head_start import HEAD_BLOCK
from fedpeft.catalogue.lora import scale_of
from fedpeft.config.model import Adapter, BitFit, Ia3, Lora
from fedpeft.data import EncodedDataset
from fedpeft.methods import attach, blocks_for
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.tuning import LocalPlan, train
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.class_means import measure_class_means
from fedpeft.tuning.label_calibration import label_offset
from fedpeft.tuning.split_forward import SplitForward

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from unequal_clients.layer import Layer, class_means, train_together

pytestmark = pytest.mark.torch

TARGETS = ("q", "k", "v", "o", "up", "down")
RATE, STEPS, BATCH, CLASSES = 0.02, 4, 6, 5
ADAPTERS = {
    "A frozen": Adapter(layers=1, lora=Lora(rank=8, tiers=(1, 2, 4, 8), targets=TARGETS, train="B")),
    "q and v alone": Adapter(layers=1, lora=Lora(rank=8, tiers=(1, 2, 4, 8), targets=("q", "v"))),
    "both factors": Adapter(layers=1, lora=Lora(rank=8, tiers=(1, 2, 4, 8), targets=TARGETS, train="both")),
    "carried columns": Adapter(layers=1, lora=Lora(rank=8, tiers=(1, 2, 4, 8), targets=TARGETS, carried_rank=5)),
    "mixed methods": Adapter(
        layers=1, lora=Lora(rank=8, tiers=(1, 2, 4, 8), targets=TARGETS), bitfit=BitFit(), ia3=Ia3()
    ),
}
OWNED = (
    (("lora",), 1),
    (("lora",), 8),
    (("lora",), 4),
    (("bitfit",), None),
    (("ia3",), None),
    ((), None),
)


def kept_below(stages, examples):
    """The hidden states below the adapted layer, example after example, and where each begins."""
    rows = []
    for i in range(len(examples.input_ids)):
        batch = collate(examples, np.array([i]), pad_id=stages.pad_id, device=stages.device)
        rows.append(stages.hidden_below(batch)[0])
    return torch.cat(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])])


def some(examples, rows):
    return EncodedDataset(
        input_ids=tuple(examples.input_ids[i] for i in rows), labels=examples.labels[rows], truncated=0
    )


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_round_of_clients_side_by_side_moves_each_as_the_products_loop_does(kind, strength):
    adapter = ADAPTERS[kind]
    union = attach(tiny_bert(classes=CLASSES, layers=2), adapter, seed=0)
    examples = class_examples(90, classes=CLASSES)
    layer = Layer(union, *kept_below(SplitForward(union), examples), scale_of(adapter.lora))
    parts = np.split(np.random.default_rng(0).permutation(90), [5, 30, 37, 60, 75])  # one smaller than a batch
    start = union.initial_state()
    draw = np.random.default_rng(1)  # away from the start, where B is zero and A has no gradient
    start = start.replace(
        {
            block.block_id: start[block.block_id] + 0.1 * draw.standard_normal(block.size).astype(np.float32)
            for block in start.spec.blocks
        }
    )
    owned = [pair for pair in OWNED if all(getattr(adapter, method) is not None for method in pair[0])]
    locals_ = [some(examples, rows) for rows, _ in zip(parts, owned, strict=False)]
    owns = [blocks_for(start.spec, methods=methods, rank=rank, head=True) for methods, rank in owned]
    offsets = [label_offset(local, CLASSES, strength=strength) for local in locals_]
    rates = {block.block_id: RATE * (1 + place % 3) for place, block in enumerate(start.spec.blocks)}
    together = train_together(
        layer,
        [start] * len(owned),
        owns,
        [training_stream(local, batch_size=BATCH, seed=3) for local in locals_],
        list(parts[: len(owned)]),
        examples.labels,
        None if strength == 0 else torch.stack(offsets),
        first_step=7,
        steps=STEPS,
        learning_rates=rates,
    )
    for local, own, offset, found in zip(locals_, owns, offsets, together, strict=True):
        union.load(start)
        plan = LocalPlan(
            steps=STEPS,
            batch_size=BATCH,
            optimizer="adamw",
            learning_rates={block_id: rates[block_id] for block_id in own},
            weight_decay=0.0,
            max_grad_norm=1.0,
        )
        train(union, local, plan, seed=3, first_step=7, logit_offset=offset)
        after = union.state()
        assert set(found) == set(own)
        for block_id in own:
            wanted = unflatten(start.spec[block_id], after[block_id] - start[block_id])
            moved = unflatten(start.spec[block_id], found[block_id] - start[block_id])
            for name, delta in wanted.items():
                if name.endswith("attention.self.key.fedpeft.bitfit.delta"):
                    continue  # its gradient is zero (softmax ignores a shift); AdamW makes steps of the rounding
                gap = np.linalg.norm(moved[name] - delta)
                assert gap <= 2e-4 * np.linalg.norm(delta), (name, gap, np.linalg.norm(delta))


def test_class_means_of_clients_side_by_side_are_those_that_the_product_measures():
    adapter = ADAPTERS["mixed methods"].model_copy(update={"head_start": "class-means"})
    union = attach(tiny_bert(classes=CLASSES, layers=2), adapter, seed=0)
    examples = class_examples(90, classes=CLASSES)
    layer = Layer(union, *kept_below(SplitForward(union), examples), scale_of(adapter.lora))
    parts = np.split(np.random.default_rng(0).permutation(90), [5, 30])
    start, firsts, expected = union.initial_state(), [], []
    for rows in parts:
        local = some(examples, rows)
        firsts.append(rows[np.concatenate(training_stream(local, batch_size=BATCH, seed=0).epoch(0)[:STEPS])])
        union.load(start)
        measure_class_means(union, local, steps=STEPS, batch_size=BATCH, seed=0)
        expected.append(union.state()[HEAD_BLOCK])
    found = class_means(layer, start, firsts, examples.labels, CLASSES)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.linalg.norm(mine - theirs) < 1e-5 * np.linalg.norm(theirs)
