"""How long a simulation takes, foretold from the planner's costs at this machine's speed.

The planner's stated error is of one step on one core. That as many cores are free as clients train at once is assumed
here besides, so a person is told "about", and every round that ends corrects it (``fedpeft_sim.remaining``).
"""

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean

from fedpeft.base import BaseArtifact
from fedpeft.planner import estimate, shape_of, this_machine
from fedpeft.round.plan import LearningPlan
from fedpeft_client.training.examples import Examples
from fedpeft_sim.planning import usual_workload
from fedpeft_sim.population import Population

__all__ = ["expected_s"]

SAMPLE = 8
"""Clients whose time is predicted, at 0.05 s each; the others are taken to be like them."""


def expected_s(
    population: Population,
    artifact: BaseArtifact,
    examples: Mapping[str, Examples],
    plan: LearningPlan,
    *,
    rounds: int,
    asked: int,
    workers: int,
) -> float:
    """Seconds that the rounds and the final evaluation will take, about.

    Args:
        population: the clients, with what each trains.
        artifact: the base.
        examples: client name -> its examples, encoded.
        plan: what is learnt.
        rounds: that are still to be done.
        asked: clients in each of them.
        workers: clients that train at once.

    Raises:
        ConfigInvalid: the planner does not know the shape of such a base.
    """
    config, shape, profile = population.config, shape_of(artifact), this_machine()
    limit, steps = config.rounds.eval_examples, config.train.local_steps
    lasting: list[float] = []  # of a round, by client
    ending: list[float] = []  # of the final evaluation
    for client in population.clients[:SAMPLE]:
        held_out = len(client.held_out)
        length = max(1, round(examples[client.name].mean_length(plan)))
        capacity, evaluated = client.capacity, min(held_out, limit or held_out)
        work = replace(
            usual_workload(config, shape, length=length, evaluated=evaluated, trained=len(client.train)),
            methods=capacity.methods,
            rank=capacity.rank,
            head=capacity.head,
            checkpointing=capacity.checkpointing,
        )
        a_round = estimate(shape, work, profile)
        last = estimate(shape, replace(work, eval_examples=held_out), profile)
        lasting.append(a_round.round_s)
        ending.append(last.round_s - steps * last.step_s)
    in_turn = rounds * mean(lasting) * asked + mean(ending) * len(population.clients)
    return max(in_turn / workers, rounds * max(lasting) + max(ending))
