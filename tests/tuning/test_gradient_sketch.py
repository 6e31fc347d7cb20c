"""A gradient start: what a device sums, and what the coordinator makes of the sum."""

import numpy as np
import pytest
import torch

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import read_factors
from fedpeft.aggregate.gradient_start import probing_state, sketched_blocks, started_from
from fedpeft.config.model import Adapter, Lora
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.testing.models import tiny_llama, token_examples
from fedpeft.testing.plans import plan_for
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.gradient_sketch import HEADROOM, sketch_gradient
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

ADAPTER = Adapter(lora=Lora(rank=4, tiers=(2, 4), targets=("q", "down"), start="gradient"))
SEED, STEPS, BATCH, MAX_ABS = 3, 2, 4, 8.0
TIERS = (BlockId("lora.A.t2"), BlockId("lora.A.t4"))


@pytest.fixture(scope="module")
def union() -> UnionAdapter:
    return attach(tiny_llama(layers=2), ADAPTER, seed=SEED)


def sketched(union: UnionAdapter, tiers=TIERS, **changes):
    plan = plan_for(tiers, steps=STEPS, rate=0.1, batch_size=BATCH, **changes)
    return sketch_gradient(
        union, union.initial_state(), token_examples(16), plan, run_seed=SEED, seed=5, max_abs=MAX_ABS
    )


def dense_gradients(adapted: list[str]) -> dict[str, np.ndarray]:
    """The mean gradient of each whole matrix over the same batches, from the bare model."""
    model = tiny_llama(layers=2)
    union = attach(model, Adapter(lora=Lora(rank=1, tiers=(1,), targets=("o",))), seed=0)  # for the loop's view alone
    stages, examples = SplitForward(union), token_examples(16)
    weights = {path: dict(model.named_parameters())[f"{path}.weight"] for path in adapted}
    for weight in weights.values():
        weight.requires_grad_(True)
    stream = training_stream(examples, batch_size=BATCH, seed=5)
    for step in range(STEPS):
        logits, labels = stages.logits(collate(examples, stream.batch(step), pad_id=0, device=stages.device))
        torch.autograd.backward([torch.nn.functional.cross_entropy(logits.float(), labels)])
    return {path: weight.grad.numpy() for path, weight in weights.items()}


def test_a_device_sends_the_dense_gradient_seen_through_omega(union: UnionAdapter) -> None:
    found, loss_sum, seen = sketched(union)
    assert seen == STEPS * BATCH
    assert loss_sum > 0
    rows = {path.removesuffix(".fedpeft.lora"): one.down for path, one in read_factors(union.spec, found).items()}
    probes = read_factors(union.spec, probing_state(union.initial_state(), seed=SEED))
    omegas = {path.removesuffix(".fedpeft.lora"): one.up for path, one in probes.items()}
    dense = dense_gradients(list(rows))
    assert len(dense) == 4
    ratios = [rows[path] / (omegas[path].T @ dense[path]) for path in dense]
    common = np.median(np.concatenate([ratio.ravel() for ratio in ratios]))
    for path, gradient in dense.items():
        np.testing.assert_allclose(rows[path] / common, omegas[path].T @ gradient, atol=2e-3 * np.abs(gradient).max())


def test_every_device_sends_as_much_and_fits_the_sum(union: UnionAdapter) -> None:
    for tiers in (TIERS, TIERS[:1]):
        found, _, _ = sketched(union, tiers)
        assert set(found) == set(tiers)
        everything = np.concatenate(list(found.values())).astype(np.float64)
        assert np.sqrt(np.mean(everything**2)) == pytest.approx(MAX_ABS / HEADROOM, rel=1e-3)


def test_a_smaller_device_sends_the_first_rows_of_a_larger_one(union: UnionAdapter) -> None:
    whole, first = sketched(union)[0], sketched(union, TIERS[:1])[0]
    a, b = whole[TIERS[0]], first[TIERS[0]]
    assert float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) == pytest.approx(1.0, abs=1e-5)


def started(union: UnionAdapter, rank: int, *, missing: bool = False) -> tuple[AdapterState, dict[str, np.ndarray]]:
    """A state made of a sketch of this rank, and the sketch by matrix."""
    draw = np.random.default_rng(0)
    state = union.initial_state()
    factors = read_factors(state.spec, state)
    wanted = {
        path: draw.normal(size=(4, rank)) @ draw.normal(size=(rank, one.down.shape[1])) for path, one in factors.items()
    }
    starts = {TIERS[0]: slice(0, 2), TIERS[1]: slice(2, 4)}
    sketch = {
        tier: np.concatenate([wanted[path][rows].ravel() for path in factors]).astype(np.float32)
        for tier, rows in starts.items()
        if not (missing and tier == TIERS[1])
    }
    return started_from(state, sketch), wanted


def test_a_gets_the_sketchs_directions_in_order_and_the_model_is_what_it_was(union: UnionAdapter) -> None:
    state, wanted = started(union, 4)
    for path, one in read_factors(state.spec, state).items():
        np.testing.assert_allclose(one.down @ one.down.T, np.eye(4), atol=1e-5)
        assert not one.up.any()
        _, sigma, vt = np.linalg.svd(wanted[path], full_matrices=False)
        np.testing.assert_allclose(np.abs(one.down @ vt.T), np.eye(4), atol=1e-4)
        assert (np.diff(sigma) <= 0).all()


@pytest.mark.parametrize("missing", [False, True])
def test_a_sketch_of_too_few_directions_is_filled_up_from_the_drawn_a(union: UnionAdapter, missing: bool) -> None:
    state, wanted = started(union, 4 if missing else 1, missing=missing)
    held = 2 if missing else 1
    for path, one in read_factors(state.spec, state).items():
        np.testing.assert_allclose(one.down @ one.down.T, np.eye(4), atol=1e-5)
        rows = wanted[path][:held]
        np.testing.assert_allclose(rows @ one.down[:held].T @ one.down[:held], rows, atol=1e-4)


def test_omega_is_the_same_everywhere_and_another_with_another_seed(union: UnionAdapter) -> None:
    first = union.initial_state()
    a, b, other = (probing_state(first, seed=seed) for seed in (1, 1, 2))
    assert a.digests == b.digests
    assert a.digests != other.digests
    assert sketched_blocks(first.spec) == set(TIERS)
