"""What the coordinator does in the federations of the benchmarks: the product's rules over float64 sums.

The secure sum equals these up to its fixed-point step (tests/aggregate/test_secure_sums.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import Individual, RoundSums, ServerState, optimized, proposal, settled
from fedpeft.aggregate.device_side import keep_columns, rotated
from fedpeft.aggregate.rules import rule_weight
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.rules import RULES
from fedpeft.ids import BlockId


class Aggregating:
    """The global state of one federation.

    Args:
        rule: [aggregate].
        initial: where it begins.
        ranks: of every client.
        examples: how many every client has.
        who: the clients that take part.
        seed: of the run.
    """

    def __init__(
        self,
        rule: Aggregate,
        initial: AdapterState,
        ranks: Sequence[int],
        examples: Sequence[int],
        who: Sequence[int],
        *,
        seed: int,
    ) -> None:
        self.rule, self.state, self.server = rule, initial, ServerState()
        self._ranks, self._examples, self._who, self._seed = ranks, examples, who, seed
        self.sent = 0

    def aggregate(self, round_id: int, trained: Sequence[Mapping[BlockId, np.ndarray]]) -> None:
        """The next state, from what every client's blocks are after training."""
        rule, state = self.rule, self.state
        sums: dict[BlockId, np.ndarray] = {}
        owner_weights: dict[BlockId, float] = {}
        individuals, total = [], 0.0
        for client, after in zip(self._who, trained, strict=True):
            deltas = {block_id: values - state[block_id] for block_id, values in after.items()}
            self.sent += 4 * sum(delta.size for delta in deltas.values())
            if rule.rule == "fedrot":
                deltas = rotated(state, deltas)
            if rule.rule == "lora-a2":
                deltas = keep_columns(state.spec, state, deltas, self._ranks[client])
            weight = self.weight(client, deltas)
            total += weight
            for block_id, delta in deltas.items():
                sums[block_id] = sums.get(block_id, 0.0) + weight * delta.astype(np.float64)
                owner_weights[block_id] = owner_weights.get(block_id, 0.0) + weight
            if RULES[rule.rule].individual:
                exact = {block_id: delta.astype(np.float64) for block_id, delta in deltas.items()}
                individuals.append(Individual(weight=weight, deltas=exact))
        together = RoundSums(sums=sums, total_weight=total, owner_weights=owner_weights, individuals=tuple(individuals))
        moved, self.server = optimized(rule, state, proposal(rule, state, together), self.server)
        self.state = settled(rule, moved, round_id=round_id, seed=self._seed)

    def weight(self, client: int, deltas: Mapping[BlockId, np.ndarray]) -> float:
        """A device's weight: the rule's own, or uniform, or by examples."""
        own = rule_weight(self.rule, self.state, deltas)
        if own is not None:
            return own
        return 1.0 if self.rule.weight == "uniform" else self._examples[client] / self.rule.max_weight
