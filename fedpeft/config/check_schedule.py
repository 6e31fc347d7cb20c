"""Checks of methods that change over the rounds: what they plan must happen before the run is over."""

from collections.abc import Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.method import TrainingRounds
from fedpeft.config.model import RunConfig

__all__ = ["schedule_findings"]


def schedule_findings(config: RunConfig) -> Iterator[Finding]:
    """Ranks that cannot fall, and schedules longer than the run."""
    yield from _head_start(config)
    rounds = _training_rounds(config)
    for method, settings in config.adapter.declared():
        if method.findings is not None:
            yield from method.findings(settings, rounds)


def _head_start(config: RunConfig) -> Iterator[Finding]:
    adapter, key = config.adapter, "adapter.head_start"
    if adapter.head_refresh == 1:
        yield Finding(
            key="adapter.head_refresh",
            expected="0, or 2 and more: else every round measures and none trains",
            found="1",
        )
    if adapter.head_refresh and adapter.head_start == "seed":
        yield Finding(
            key="adapter.head_refresh",
            reads=(key,),
            expected='0 with head_start = "seed": there are no class means to measure again',
            found=str(adapter.head_refresh),
        )
    if adapter.head_start != "class-means":
        return
    if not config.task.record.one_class or not adapter.head:
        yield Finding(
            key=key,
            reads=("task.kind", "adapter.head"),
            expected='"seed" without a trained class head',
            found=f'"{adapter.head_start}"',
        )
    if "head" in config.aggregate.local:
        yield Finding(
            key=key,
            reads=("aggregate.local",),
            expected='"seed" with a head that stays on the device: there is no sum of class means then',
            found=f'"{adapter.head_start}"',
        )
    if config.rounds.count < 2:
        yield Finding(
            key=key,
            reads=("rounds.count",),
            expected="at least two rounds: the first one only measures",
            found=f"rounds.count={config.rounds.count}",
            remedy='More rounds, or head_start = "seed".',
        )


def _training_rounds(config: RunConfig) -> TrainingRounds:
    """Rounds that train; the first only measures where the head starts from class means."""
    count, measuring = config.rounds.count, config.adapter.measuring_rounds(config.rounds.count)
    if measuring:
        what = "the round" if measuring == 1 else f"{measuring} rounds"
        return TrainingRounds(count=count - measuring, text=f"rounds.count={count} less {what} of class means")
    return TrainingRounds(count=count, text=f"rounds.count={count}")
