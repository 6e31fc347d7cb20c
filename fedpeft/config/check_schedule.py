"""Checks of methods that change over the rounds: what they plan must happen before the run is over."""

from collections.abc import Iterator

from fedpeft.config.finding import Finding
from fedpeft.config.model import RunConfig

__all__ = ["schedule_findings"]


def schedule_findings(config: RunConfig) -> Iterator[Finding]:
    """Ranks that cannot fall, and schedules longer than the run."""
    yield from _head_start(config)
    yield from _adalora(config)
    yield from _relora(config)
    yield from _picking(config)


def _head_start(config: RunConfig) -> Iterator[Finding]:
    adapter, key = config.adapter, "adapter.head_start"
    if adapter.head_start != "class-means":
        return
    if config.task.kind != "classify" or not adapter.head:
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


def _training_rounds(config: RunConfig) -> tuple[int, str]:
    """Rounds that train, and how to call them; the first only measures where the head starts from class means."""
    count = config.rounds.count
    if config.adapter.head_start == "class-means":
        return count - 1, f"rounds.count={count} less the round of class means"
    return count, f"rounds.count={count}"


def _adalora(config: RunConfig) -> Iterator[Finding]:
    adalora, (count, rounds) = config.adapter.adalora, _training_rounds(config)
    if adalora is None:
        return
    if adalora.target_rank > adalora.rank:
        yield Finding(
            key="adapter.adalora.target_rank",
            reads=("adapter.adalora.rank",),
            expected=f"at most adapter.adalora.rank={adalora.rank}",
            found=str(adalora.target_rank),
        )
    if not adalora.warmup_rounds < adalora.prune_until < count:
        yield Finding(
            key="adapter.adalora.prune_until",
            reads=("adapter.adalora.warmup_rounds", "rounds.count"),
            expected=f"above warmup_rounds={adalora.warmup_rounds} and below {rounds}",
            found=str(adalora.prune_until),
            remedy="What is left must be trained at least one round after the last pruning.",
        )


def _relora(config: RunConfig) -> Iterator[Finding]:
    relora, (count, rounds) = config.adapter.relora, _training_rounds(config)
    if relora is not None and relora.rounds_each * (relora.cycles - 1) >= count:
        yield Finding(
            key="adapter.relora.cycles",
            reads=("adapter.relora.rounds_each", "rounds.count"),
            expected=f"cycles that begin within {rounds} when each lasts {relora.rounds_each}",
            found=str(relora.cycles),
            remedy="Fewer or shorter cycles; one that never begins would still be sent and kept.",
        )


def _picking(config: RunConfig) -> Iterator[Finding]:
    pruning, (count, rounds) = config.adapter.diffpruning, _training_rounds(config)
    if pruning is not None and pruning.prune_round >= count:
        yield Finding(
            key="adapter.diffpruning.prune_round",
            reads=("rounds.count",),
            expected=f"below {rounds}, so that the mask is fixed and then trained",
            found=str(pruning.prune_round),
        )
    if config.adapter.fish is not None and count < 2:
        yield Finding(
            key="adapter.fish",
            reads=("rounds.count",),
            expected="at least two rounds: the first one only measures",
            found=rounds,
        )
