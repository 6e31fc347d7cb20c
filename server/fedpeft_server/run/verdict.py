"""What the metrics of a run say about it: which state to keep, whether to stop, and what a person should know.

Pure functions of the committed rows, so a resumed run decides as the killed one did and anybody can repeat it from
metrics.jsonl. Only public means over all devices are read; a run whose losses are private or noised says nothing, keeps
its last state and never stops early. A row's evaluation is of the state that its round began with.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from fedpeft.config import RunConfig
from fedpeft.config.model import Rounds
from fedpeft.ids import RoundId
from fedpeft.round.rates.search import scale_of_losses
from fedpeft.tasks.generated import GENERATED
from fedpeft.tasks.measure import told
from fedpeft_server.run.records import Comparison, RoundMetrics

__all__ = [
    "best_row",
    "comparison_facts",
    "is_done",
    "kept_round",
    "kept_row",
    "learning_rate_scale",
    "new_warnings",
    "rounds_done",
    "verdict",
]

_LOSS_MARGIN, _ACCURACY_MARGIN = 0.02, 0.01
"""An earlier state is kept if it is better than the last by more than this share of the loss, or this much accuracy:
the last evaluation takes all held-out examples, the others some, and two states this close are equal."""
_LOSSES = ("auto", "loss")
_DESTROYED = 1.5
"""A loss so many times the first one: training moves it down or leaves it."""
_STILL, _STILL_WITHIN, _GOOD = 3, 0.005, 0.9
"""So many evaluations in a row within half a point are a model that gives one answer, or one that is nearly perfect."""
_HARDLY = 0.05
_SWING = 0.1
_FAR = 1.5
"""A perplexity so many times everybody's: texts differ, but not so much."""


def best_row(rows: Sequence[RoundMetrics], rounds: Rounds) -> RoundMetrics | None:
    """The row of the best state by ``rounds.metric``, the first of equals; None where nothing was evaluated."""
    return min(_evaluated(rows), key=lambda row: _score(row, rounds), default=None)


def kept_round(rows: Sequence[RoundMetrics], rounds: Rounds) -> RoundId | None:
    """The round after which the state is the one to keep, 0 for the start; None: the last one, as it is.

    None, too, where nothing was evaluated.
    """
    best = best_row(rows, rounds)
    if best is None:
        return None
    last = _evaluated(rows)[-1]
    is_of_the_last_state = last.round > rounds.count
    return None if is_of_the_last_state and not _beats(best, last, rounds) else RoundId(best.round - 1)


def kept_row(rows: Sequence[RoundMetrics], rounds: Rounds) -> RoundMetrics | None:
    """The row that evaluates the state which the run keeps; None where nothing was evaluated."""
    if kept_round(rows, rounds) is not None:
        return best_row(rows, rounds)
    return next((row for row in reversed(rows) if row.evaluators), None)


def rounds_done(rows: Sequence[RoundMetrics], rounds: Rounds) -> int:
    """How many rounds are committed; the row that only evaluates the last state is none."""
    return sum(row.round <= rounds.count for row in rows)


def is_done(rows: Sequence[RoundMetrics], rounds: Rounds) -> bool:
    """Whether ``rounds.patience`` evaluations in a row brought nothing better than the best before them."""
    best = best_row(rows, rounds)
    if not rounds.patience or best is None:
        return False
    return sum(row.round > best.round for row in _evaluated(rows)) >= rounds.patience


def learning_rate_scale(rows: Sequence[RoundMetrics]) -> float:
    """How many times the table's learning rates the run has measured to suit it; 0: it has not."""
    return next((scale_of_losses(row.rate_losses) for row in rows if row.rate_losses), 0.0)


def new_warnings(rows: Sequence[RoundMetrics], config: RunConfig) -> tuple[str, ...]:
    """What the last row shows for the first time, in a sentence each."""
    known = _warnings(rows[:-1], config)
    return tuple(text for kind, text in _warnings(rows, config).items() if kind not in known)


def verdict(rows: Sequence[RoundMetrics], config: RunConfig) -> tuple[str, ...]:
    """What the run as a whole says, in a sentence each; warnings alone where nothing was evaluated, or once only."""
    measured, best = _evaluated(rows), best_row(rows, config.rounds)
    found = list(_warnings(rows, config).values())
    if best is None or len(measured) < 2:
        return tuple(found)
    first, before, last = _loss(measured[0]), _loss(measured[-2]), _loss(measured[-1])
    kept, gained = kept_round(rows, config.rounds), first - _loss(best)
    if kept is not None:
        found.append(
            f"Kept: the state after round {kept}, {_told(best)}; the last one evaluated: {_told(measured[-1])}."
        )
    if is_done(rows, config.rounds):
        patience = config.rounds.patience
        found.append(f"Stopped after round {rows[-1].round}: {patience} evaluations in a row brought nothing better.")
    if gained < _HARDLY * first:
        found.append(
            f"The loss went from {first:.3g} to {_loss(best):.3g} only, by {max(0.0, gained) / first:.1%}: raise "
            "train.learning_rate, train.local_steps or rounds.count."
        )
    elif kept is None and len(measured) > 2 and before - last > _HARDLY * gained:
        found.append(f"The loss was still falling at the end, from {before:.3g} to {last:.3g}: more rounds would help.")
    return tuple(found)


def comparison_facts(rows: Sequence[Comparison], *, lower_is_better: bool) -> tuple[str, ...]:
    """Who is better off alone on its own examples, and what that model is worth on everybody's; who is left behind.

    Args:
        rows: of a simulation with baselines.
        lower_is_better: perplexities, or accuracies.
    """
    found, whole = [], next((row.federated for row in rows if row.client == "all"), None)
    for row in rows:
        if row.client == "all" or row.alone is None or row.federated is None or row.everywhere is None or whole is None:
            continue
        if lower_is_better and row.federated > (1 + _LOSS_MARGIN) * row.alone:
            own, all_ = f"{row.alone:.4g}, not {row.federated:.4g}", f"{row.everywhere:.4g} beside {whole:.4g}"
        elif not lower_is_better and row.alone - row.federated > _ACCURACY_MARGIN:
            own, all_ = f"{row.alone:.1%}, not {row.federated:.1%}", f"{row.everywhere:.1%} beside {whole:.1%}"
        else:
            continue
        text = f"{row.client} does better alone on its own examples ({own}); on everybody's that model has {all_}."
        found.append(text)
    return (*found, *_left_behind(rows, lower_is_better=lower_is_better))


def _left_behind(rows: Sequence[Comparison], *, lower_is_better: bool) -> Iterator[str]:
    """The client for whom the federation's model does worst, if that is far from all and no matter of few examples."""
    whole = next((row.federated for row in rows if row.client == "all"), None)
    scored = [
        (row.federated, row) for row in rows if row.client != "all" and row.federated is not None and row.examples
    ]
    if whole is None or len(scored) < 2:
        return
    score, worst = (max if lower_is_better else min)(scored, key=lambda pair: pair[0])
    if lower_is_better and score > _FAR * whole:
        yield f"{worst.client} is left behind: {score:.4g} with the federation's model, all together {whole:.4g}."
    chance = 2 * math.sqrt(max(0.0, whole * (1 - whole)) / worst.examples)
    if not lower_is_better and whole - score > max(_SWING, chance):
        yield f"{worst.client} is left behind: {score:.1%} with the federation's model, all together {whole:.1%}."


def _warnings(rows: Sequence[RoundMetrics], config: RunConfig) -> Mapping[str, str]:
    """Kind -> what is wrong, as far as the rows show it."""
    measured, found = _evaluated(rows), dict[str, str]()
    asked = [f"rounds.patience = {config.rounds.patience}"] if config.rounds.patience else []
    asked += [f'rounds.metric = "{config.rounds.metric}"'] if config.rounds.metric not in _LOSSES else []
    if rows and asked and config.privacy.unit != "none":  # no fault: earlier runs have it, and are read again
        found["nothing chooses"] = (
            f"{' and '.join(asked)}: without effect under [privacy], where no evaluation says whether a state is "
            "better: all rounds are made, and the last state is kept."
        )
    if len(measured) < 2:
        return found
    first, last = _loss(measured[0]), _loss(measured[-1])
    if last > _DESTROYED * first:
        found["destroyed"] = (
            f"The held-out loss is {last:.3g} and was {first:.3g} before training: the learning rate destroys the "
            "model; lower train.learning_rate."
        )
    wanted: list[str] = [] if config.rounds.metric in ("auto", "accuracy", "loss") else [config.rounds.metric]
    wanted += GENERATED if config.task.generation is not None else ()
    if missing := [name for name in dict.fromkeys(wanted) if not any(name in row.metrics for row in measured)]:
        found["not measured"] = (
            f"{', '.join(missing)}: not measured, since no held-out example defines it (an answer is generated to a "
            "prompt that fits task.max_length with its own answer). States are compared by the loss."
        )
    if not config.task.record.one_class:
        return found
    shares = [row.accuracy for row in measured if row.accuracy is not None]
    recent = shares[1:][-_STILL:]
    if len(recent) == _STILL and max(recent) - min(recent) <= _STILL_WITHIN and recent[-1] < _GOOD:
        found["one class"] = (
            f"The accuracy has been {recent[-1]:.1%} in {_STILL} evaluations in a row: a model that gives every "
            "example one class looks like this; compare it with the share of the largest class."
        )
    drops = [before - after for before, after in pairwise(shares)]
    if sum(drop > _SWING for drop in drops) >= 2:
        found["swings"] = (
            f"The accuracy fell by up to {100 * max(drops):.0f} points between two rounds, more than once: devices "
            "with different classes pull the model apart. Lower adapter.head_learning_rate or train.local_steps, or "
            'set adapter.head_start = "class-means".'
        )
    return found


def _evaluated(rows: Sequence[RoundMetrics]) -> list[RoundMetrics]:
    """The rows with a mean loss that is not noised."""
    return [row for row in rows if row.evaluators and row.loss is not None]


def _beats(best: RoundMetrics, last: RoundMetrics, rounds: Rounds) -> bool:
    ahead, behind = _chosen(best, rounds), _chosen(last, rounds)
    if ahead is not None and behind is not None:
        return ahead - behind > _ACCURACY_MARGIN
    return _loss(best) < (1 - _LOSS_MARGIN) * _loss(last)


def _score(row: RoundMetrics, rounds: Rounds) -> tuple[float, float]:
    """Lower is better."""
    chosen = _chosen(row, rounds)
    if rounds.metric in _LOSSES:
        return _loss(row), 0.0
    return (math.inf if chosen is None else -chosen), _loss(row)


def _chosen(row: RoundMetrics, rounds: Rounds) -> float | None:
    """What ``rounds.metric`` is of this row, of which more is better; None where it is the loss, or was not defined."""
    if rounds.metric in _LOSSES:
        return None
    return row.accuracy if rounds.metric == "accuracy" else row.metrics.get(rounds.metric)


def _loss(row: RoundMetrics) -> float:
    return math.inf if row.loss is None else row.loss


def _told(row: RoundMetrics) -> str:
    accuracy = "" if row.accuracy is None else f", accuracy {row.accuracy:.1%}"
    further = told(row.metrics)
    return f"loss {_loss(row):.3g}{accuracy}{', ' if further else ''}{further}"
