"""The end of a simulation as a record: the comparison with the baselines, and with moving every parameter."""

from fedpeft.round.plan import LearningPlan
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_server.run.records import Comparison
from fedpeft_sim.baselines import Baselines, Scores, accuracy

__all__ = ["compare", "full_parameter_bytes"]


def full_parameter_bytes(plan: LearningPlan, pool: ModelPool, *, rounds: int, clients: int) -> int:
    """What a federation of every parameter would have moved: fp32, down and up, every client, every round."""
    with pool.lend(plan) as union:
        parameters = sum(parameter.numel() for parameter in union.model.parameters())
    return 4 * parameters * 2 * rounds * clients


def compare(federated: Scores, baselines: Baselines | None) -> tuple[Comparison, ...]:
    """One row a client, and one for the union of all held-out examples."""
    rows = []
    for name, score in federated.items():
        rows.append(
            Comparison(
                client=name,
                examples=score.examples,
                alone=accuracy([baselines.alone[name]]) if baselines else None,
                federated=accuracy([score]),
                centralised=accuracy([baselines.centralised[name]]) if baselines else None,
            )
        )
    everywhere = [accuracy([score]) for score in baselines.alone_everywhere.values()] if baselines else []
    rows.append(
        Comparison(
            client="all",
            examples=sum(score.examples for score in federated.values()),
            alone=sum(everywhere) / len(everywhere) if everywhere else None,
            federated=accuracy(list(federated.values())),
            centralised=accuracy(list(baselines.centralised.values())) if baselines else None,
        )
    )
    return tuple(rows)
