"""Checks of methods that change over the rounds: what they plan must happen before the run is over."""

from collections.abc import Iterator

from fedpeft.config.finding import Finding
from fedpeft.config.model import RunConfig

__all__ = ["schedule_findings"]


def schedule_findings(config: RunConfig) -> Iterator[Finding]:
    """Ranks that cannot fall, and schedules longer than the run."""
    yield from _adalora(config)
    yield from _relora(config)
    yield from _picking(config)


def _adalora(config: RunConfig) -> Iterator[Finding]:
    adalora, count = config.adapter.adalora, config.rounds.count
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
            expected=f"above warmup_rounds={adalora.warmup_rounds} and below rounds.count={count}",
            found=str(adalora.prune_until),
            remedy="What is left must be trained at least one round after the last pruning.",
        )


def _relora(config: RunConfig) -> Iterator[Finding]:
    relora, count = config.adapter.relora, config.rounds.count
    if relora is not None and relora.rounds_each * (relora.cycles - 1) >= count:
        yield Finding(
            key="adapter.relora.cycles",
            reads=("adapter.relora.rounds_each", "rounds.count"),
            expected=f"cycles that begin within rounds.count={count} when each lasts {relora.rounds_each}",
            found=str(relora.cycles),
            remedy="Fewer or shorter cycles; one that never begins would still be sent and kept.",
        )


def _picking(config: RunConfig) -> Iterator[Finding]:
    pruning, count = config.adapter.diffpruning, config.rounds.count
    if pruning is not None and pruning.prune_round >= count:
        yield Finding(
            key="adapter.diffpruning.prune_round",
            reads=("rounds.count",),
            expected=f"below rounds.count={count}, so that the mask is fixed and then trained",
            found=str(pruning.prune_round),
        )
    if config.adapter.fish is not None and count < 2:
        yield Finding(
            key="adapter.fish",
            reads=("rounds.count",),
            expected="at least two rounds: the first one only measures",
            found=f"rounds.count={count}",
        )
