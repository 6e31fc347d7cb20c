"""The end of a simulation as a record: the comparison with the baselines, and with moving every parameter."""

from fedpeft.config.task import Task
from fedpeft.round.plan import LearningPlan
from fedpeft.tasks.measure import Confusion
from fedpeft.tuning import Evaluation
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_server.run.records import Comparison
from fedpeft_sim.baselines import Baselines, Scores, score_of

__all__ = ["compare", "confusion_of", "full_parameter_bytes"]


def full_parameter_bytes(plan: LearningPlan, pool: ModelPool, *, rounds: int, clients: int) -> int:
    """What a federation of every parameter would have moved: fp32, down and up, every client, every round."""
    with pool.lend(plan) as union:
        parameters = sum(parameter.numel() for parameter in union.model.parameters())
    return 4 * parameters * 2 * rounds * clients


def compare(federated: Scores, baselines: Baselines | None, *, task: Task) -> tuple[Comparison, ...]:
    """One row per client, and one for the union of all held-out examples.

    Args:
        federated: of the state that the run keeps.
        baselines: None: not trained.
        task: whose metric scores are.
    """
    rows = [
        Comparison(
            client=name,
            examples=score.examples,
            alone=score_of(task, [baselines.alone[name]]) if baselines else None,
            federated=score_of(task, [score]),
            centralised=score_of(task, [baselines.centralised[name]]) if baselines else None,
            everywhere=score_of(task, [baselines.alone_everywhere[name]]) if baselines else None,
        )
        for name, score in federated.items()
    ]
    everywhere = [score_of(task, [score]) for score in baselines.alone_everywhere.values()] if baselines else []
    known = [value for value in everywhere if value is not None]
    mean = sum(known) / len(known) if known else None
    whole = Comparison(
        client="all",
        examples=sum(score.examples for score in federated.values()),
        alone=mean,
        federated=score_of(task, list(federated.values())),
        centralised=score_of(task, list(baselines.centralised.values())) if baselines else None,
        everywhere=mean,
    )
    return (*rows, whole)


def confusion_of(federated: Scores, *, task: Task) -> tuple[tuple[int, ...], ...]:
    """How often each class (rows) was given as each (columns), over all held-out examples; empty for other tasks."""
    measure, lanes = task.measure, Evaluation.joined(list(federated.values())).lanes
    if not isinstance(measure, Confusion) or lanes is None:
        return ()
    classes = len(measure.names)
    return tuple(tuple(round(cell) for cell in row) for row in lanes.reshape(classes, classes))
