"""Each rule against its formula written out densely, over mixed ranks."""

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import Individual, RoundSums, proposal, settled
from fedpeft.aggregate.device_side import forward_state, keep_columns, local_blocks, own_values, rotated
from fedpeft.aggregate.factor_normalisation import column_energies, normalise_factors
from fedpeft.aggregate.factors import Factors, factor_of, read_factors, write_factors
from fedpeft.aggregate.rules import rule_weight
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.rules import RULES, factors_of
from fedpeft.entropy import generator
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId
from fedpeft.testing.lora_states import IN, OUT, PATHS, lora_spec, lora_state, owned

RANKS, WEIGHTS = (1, 2, 4, 4), (0.5, 1.0, 0.25, 0.75)


def rule(name: str, **options: object) -> Aggregate:
    return Aggregate.model_validate({"rule": name, **options})


def a_round(state: AdapterState, *, factors: str = "AB", seed: int = 0) -> tuple[RoundSums, list[Factors]]:
    """Devices of mixed rank, and each one's own factors of the first matrix, cut to its rank and padded with zeros."""
    draw = generator(seed, "a round")
    individuals, padded = [], []
    for rank, weight in zip(RANKS, WEIGHTS, strict=True):
        deltas = {b: 0.1 * draw.standard_normal(state[b].size) for b in owned(rank, factors=factors)}
        individuals.append(Individual(weight=weight, deltas=deltas))
        own = {b: state[b] + deltas.get(b, 0.0) for b in state}
        whole = read_factors(state.spec, own)[PATHS[0]]
        whole.down[rank:] = 0.0
        whole.up[:, rank:] = 0.0
        padded.append(whole)
    sums: dict[BlockId, np.ndarray] = {}
    owners: dict[BlockId, float] = {}
    for one in individuals:
        for block_id, delta in one.deltas.items():
            sums[block_id] = sums.get(block_id, 0.0) + one.weight * delta
            owners[block_id] = owners.get(block_id, 0.0) + one.weight
    total = sum(WEIGHTS)
    return (
        RoundSums(sums=sums, total_weight=total, owner_weights=owners, individuals=tuple(individuals)),
        padded,
    )


def product(state: AdapterState) -> np.ndarray:
    part = read_factors(state.spec, state)[PATHS[0]]
    return part.up @ part.down + part.carried_up @ part.carried_down


def mean_product(padded: list[Factors]) -> np.ndarray:
    return sum(w * (one.up @ one.down) for w, one in zip(WEIGHTS, padded, strict=True)) / sum(WEIGHTS)


@pytest.mark.parametrize("name", ["fedit", "hetlora", "fedsa", "fedrot"])
def test_zero_padding_is_the_mean_of_the_padded_factors(name: str) -> None:
    state = lora_state(lora_spec(), 1)
    sums, padded = a_round(state)
    if RULES[rule(name).rule].own_weight:  # its devices add values, and nobody sums the owners' weights
        values = {
            block_id: sum(
                one.weight * own_values(state, {block_id: one.deltas[block_id]})[block_id]
                for one in sums.individuals
                if block_id in one.deltas
            )
            for block_id in sums.sums
        }
        sums = RoundSums(sums=values, total_weight=sums.total_weight, owner_weights={})
    new = read_factors(state.spec, proposal(rule(name), state, sums))[PATHS[0]]
    total = sum(WEIGHTS)
    np.testing.assert_allclose(new.up, sum(w * p.up for w, p in zip(WEIGHTS, padded, strict=True)) / total, atol=1e-5)
    np.testing.assert_allclose(
        new.down, sum(w * p.down for w, p in zip(WEIGHTS, padded, strict=True)) / total, atol=1e-5
    )


def test_an_owner_mean_divides_by_those_who_have_the_column() -> None:
    state = lora_state(lora_spec(), 1)
    sums, padded = a_round(state)
    new = read_factors(state.spec, proposal(rule("rbla"), state, sums))[PATHS[0]]
    both = (WEIGHTS[2] * padded[2].up[:, 3] + WEIGHTS[3] * padded[3].up[:, 3]) / (WEIGHTS[2] + WEIGHTS[3])
    np.testing.assert_allclose(new.up[:, 3], both, atol=1e-5)


@pytest.mark.parametrize("name", ["nested", "ffa", "rolora", "lora-a2", "fedsvd"])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_with_one_factor_frozen_the_mean_is_the_mean_of_the_products(name: str, factor: str) -> None:
    state = lora_state(lora_spec(), 2)
    sums, _ = a_round(state, factors=factor)
    expected = np.zeros((OUT, IN))
    for one in sums.individuals:
        own = {b: state[b] + one.deltas.get(b, 0.0) for b in state}
        part = read_factors(state.spec, own)[PATHS[0]]
        expected += one.weight / sums.total_weight * part.up @ part.down
    np.testing.assert_allclose(product(proposal(rule(name), state, sums)), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "carried"), [("flora", 16), ("fedex", 16)])
def test_a_carried_adapter_that_is_wide_enough_makes_the_rule_exact(name: str, carried: int) -> None:
    state = lora_state(lora_spec(carried=carried), 3)
    sums, padded = a_round(state)
    np.testing.assert_allclose(product(proposal(rule(name), state, sums)), mean_product(padded), atol=1e-5)


def test_flexlora_is_the_truncated_svd_of_the_mean_product() -> None:
    state = lora_state(lora_spec(), 4)
    sums, padded = a_round(state)
    u, sigma, vt = np.linalg.svd(mean_product(padded))
    best = (u[:, :4] * sigma[:4]) @ vt[:4]
    new = proposal(rule("flexlora"), state, sums)
    np.testing.assert_allclose(product(new), best, atol=1e-5)
    rows = read_factors(state.spec, new)[PATHS[0]].down
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-5)


def test_lora_fair_comes_nearer_to_the_mean_product_than_the_mean_of_the_factors() -> None:
    state = lora_state(lora_spec(), 5)
    sums, padded = a_round(state)
    target = mean_product(padded)
    plain, fair = (product(proposal(rule(name), state, sums)) for name in ("fedit", "lora-fair"))
    errors = {"fedit": np.linalg.norm(plain - target), "lora-fair": np.linalg.norm(fair - target)}
    assert errors["lora-fair"] < 0.9 * errors["fedit"]


def test_a_rule_of_products_refuses_sums_alone() -> None:
    state = lora_state(lora_spec(), 5)
    sums, _ = a_round(state)
    bare = RoundSums(sums=sums.sums, total_weight=1.0, owner_weights={})
    with pytest.raises(RunFailed, match="own deltas"):
        proposal(rule("flexlora"), state, bare)


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_the_gauge_keeps_the_product_and_makes_the_frozen_factor_orthonormal(frozen: str) -> None:
    state = lora_state(lora_spec(), 6)
    fixed = normalise_factors(state, frozen=frozen)
    np.testing.assert_allclose(product(fixed), product(state), atol=1e-4)
    part = read_factors(state.spec, fixed)[PATHS[0]]
    gram = part.down @ part.down.T if frozen == "A" else part.up.T @ part.up
    np.testing.assert_allclose(gram, np.eye(4), atol=1e-5)
    sizes = np.linalg.norm(part.up, axis=0) * np.linalg.norm(part.down, axis=1)
    assert (np.diff(sizes) <= 1e-5).all(), "columns come by descending singular value"
    assert sum(column_energies(normalise_factors(state, frozen="A")).values()) == pytest.approx(1.0)


def test_the_gauge_of_a_fresh_adapter_keeps_every_row_alive() -> None:
    """B is zero at the start: rows that no product fills are taken from the old A, so they can still be trained."""
    state = lora_state(lora_spec(), 6)
    state = state.replace({b: np.zeros_like(state[b]) for b in state if factor_of(b) == "B"})
    rows = read_factors(state.spec, normalise_factors(state, frozen="A"))[PATHS[0]].down
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-5)


def test_folding_moves_the_product_into_the_carried_columns_and_restarts_b() -> None:
    state = lora_state(lora_spec(carried=4), 7)
    folded = settled(rule("nested", fold_every=2), state, round_id=2, seed=0)
    part = read_factors(state.spec, folded)[PATHS[0]]
    np.testing.assert_allclose(product(folded), product(state), atol=1e-4)
    assert not part.up.any()
    assert settled(rule("nested", fold_every=2), state, round_id=1, seed=0) is state


def test_fedsvd_never_leaves_the_row_space_of_a() -> None:
    """Why it equals FFA-LoRA with an orthonormal A."""
    state = lora_state(lora_spec(), 8)
    before = read_factors(state.spec, state)[PATHS[0]].down
    after = read_factors(state.spec, settled(rule("fedsvd"), state, round_id=1, seed=0))[PATHS[0]].down
    assert np.linalg.matrix_rank(np.vstack([before, after]), tol=1e-4) == 4


def test_the_schedule_of_the_factors() -> None:
    assert [sorted(factors_of("nested", r)) for r in (1, 2, 3)] == [["B"]] * 3
    assert [sorted(factors_of("nested", r, a_round_every=3)) for r in (1, 2, 3)] == [["B"], ["B"], ["A"]]
    assert [sorted(factors_of("lora-a2", r)) for r in (1, 2)] == [["B"], ["A"]]
    assert all(sorted(factors_of(name, 1)) == ["A", "B"] for name, t in RULES.items() if t.trains == "both")


def test_a_truncating_rule_computes_with_the_devices_own_columns_only() -> None:
    state = lora_state(lora_spec(), 9)
    own = read_factors(state.spec, forward_state(rule("fedit"), state, 2))[PATHS[0]]
    assert not own.up[:, 2:].any()
    assert own.up[:, :2].all()
    assert forward_state(rule("nested"), state, 2) is state


def test_hetloras_weight_is_the_norm_of_the_devices_own_product() -> None:
    state = lora_state(lora_spec(), 10)
    deltas = {b: np.ones(state[b].size, np.float32) for b in owned(2)}
    trained = {b: state[b] + deltas.get(b, np.float32(0)) for b in state}
    parts = read_factors(state.spec, trained, up_to={"A": 2, "B": 2}).values()
    norm = np.sqrt(sum(np.square(p.up @ p.down).sum() for p in parts))
    assert rule_weight(rule("hetlora"), state, deltas) == pytest.approx(norm / 64.0, rel=1e-6)
    assert rule_weight(rule("fedit"), state, deltas) is None


def test_fedrots_rotation_keeps_the_product_and_comes_nearer_to_the_broadcast_factors() -> None:
    state = lora_state(lora_spec(), 11)
    turn, _ = np.linalg.qr(generator(0, "turn").standard_normal((4, 4)))
    parts = read_factors(state.spec, state)
    turned = {
        path: Factors(down=turn.T @ p.down, up=p.up @ turn, carried_down=p.carried_down, carried_up=p.carried_up)
        for path, p in parts.items()
    }
    local = write_factors(state, turned)
    deltas = {b: local[b] - state[b] for b in owned(4)}
    back = rotated(state, deltas)
    assert max(np.abs(back[b]).max() for b in back) < 1e-4


def test_lora_a2_keeps_as_many_columns_as_the_budget_pays_for() -> None:
    state = lora_state(lora_spec(), 12)
    deltas = {b: generator(1, b).standard_normal(state[b].size).astype(np.float32) for b in owned(4, factors="B")}
    kept = keep_columns(state.spec, state, deltas, 1)
    columns = sum((np.abs(p.up).sum(axis=0) > 0).sum() for p in read_factors(state.spec, kept).values())
    assert columns == 1 * len(PATHS)
    assert np.array_equal(kept[BlockId("head")], deltas[BlockId("head")])


def test_local_blocks_are_named_by_method_or_factor() -> None:
    spec = lora_spec()
    assert local_blocks(rule("nested", local=("head",)), spec) == {"head"}
    assert local_blocks(rule("fedsa"), spec) == {"lora.B.t1", "lora.B.t2", "lora.B.t4"}
