"""Checks of methods that change over the rounds: what they plan must happen before the run is over."""

from collections.abc import Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.method import TrainingRounds
from fedpeft.config.model import RunConfig
from fedpeft.config.rules import RULES

__all__ = ["late_work_findings", "schedule_findings"]


def schedule_findings(config: RunConfig) -> Iterator[Finding]:
    """Ranks that cannot fall, and schedules longer than the run."""
    yield from _head_start(config)
    yield from _gradient_start(config)
    rounds = _training_rounds(config)
    for method, settings in config.adapter.declared():
        if method.findings is not None:
            yield from method.findings(settings, rounds)


def _head_start(config: RunConfig) -> Iterator[Finding]:
    adapter, key = config.adapter, "adapter.head_start"
    if adapter.refresh_every == 1:
        yield Finding(
            key="adapter.head_refresh",
            expected="0, or 2 and more: else every round measures and none trains",
            found="1",
        )
    if adapter.refresh_every and adapter.head_start == "seed":
        yield Finding(
            key="adapter.head_refresh",
            reads=(key,),
            expected='0 with head_start = "seed": there are no class means to measure again',
            found=str(adapter.refresh_every),
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


def _gradient_start(config: RunConfig) -> Iterator[Finding]:
    if not config.adapter.sketches:
        return
    key, rule = "adapter.lora.start", config.aggregate
    traits = RULES[rule.rule]
    keeps_a = traits.trains == "B" and not traits.refactors
    refused = (
        ("adapter.head_start", config.adapter.head_start == "class-means", '"seed": a head of zeros has no gradient'),
        ("aggregate.rule", not keeps_a, "one of nested and ffa, which keep the A that is found"),
        ("aggregate.fold_every", rule.fold_every > 0, "0: folding draws A anew"),
        ("aggregate.robust", rule.robust != "none", '"none": the sketch is one sum'),
        ("train.scaffold", config.train.scaffold, "false: controls count rounds that train"),
        ("rounds.count", config.rounds.count < 2, "two and more: the first one trains nothing"),
        ("aggregate.local", any(name.startswith("lora") for name in rule.local), "LoRA among what is summed"),
    )
    for other, wrong, expected in refused:
        if wrong:
            yield Finding(
                key=key,
                reads=(other,),
                expected=f"with a gradient start, {other} to be {expected}",
                found='"gradient"',
                remedy=f'Change {other}, or set start = "drawn".',
            )


def _training_rounds(config: RunConfig) -> TrainingRounds:
    """Rounds that train; the first only measures where the head starts from class means."""
    count, measuring = config.rounds.count, config.adapter.measuring_rounds(config.rounds.count)
    if config.adapter.sketches:
        return TrainingRounds(count=count - 1, text=f"rounds.count={count} less the round of the gradient start")
    if measuring:
        what = "the round" if measuring == 1 else f"{measuring} rounds"
        return TrainingRounds(count=count - measuring, text=f"rounds.count={count} less {what} of class means")
    return TrainingRounds(count=count, text=f"rounds.count={count}")


def late_work_findings(config: RunConfig) -> Iterator[Finding]:
    """Late work that there cannot be or that would mean something else, and a clock that there is not."""
    timed = [index for index, device in enumerate(config.device) if device.fit_seconds]
    if timed and config.performance.engine == "ray":
        yield Finding(
            key=f"device[{timed[0]}].fit_seconds",
            reads=("performance.engine",),
            expected='none with performance.engine = "ray", which has no simulated clock',
            found=f"{config.device[timed[0]].fit_seconds:g}",
        )
    late = config.rounds.max_staleness
    if not late:
        return
    rule = RULES[config.aggregate.rule]
    folds = config.aggregate.a_round_every or config.aggregate.fold_every or config.aggregate.auto_rank
    plain = rule.elementwise and not rule.own_weight and not folds
    rows = (
        ("rounds.over_select", not config.rounds.over_select, "rounds.over_select: else rounds wait for everybody"),
        ("privacy.unit", config.privacy.unit != "none", 'privacy.unit = "none"'),
        ("secagg.mode", config.secagg.mode == "off", "secure aggregation, whose adverts say what it weighs"),
        ("train.scaffold", config.train.scaffold, "no SCAFFOLD: its controls are of one state"),
        ("train.learning_rate", config.train.learning_rate == "measured", 'no learning_rate = "measured"'),
        ("aggregate.weight", config.aggregate.weight != "examples", 'weight = "examples": late work weighs less'),
        ("aggregate.rule", not plain, "a rule of plain steps, without folding"),
    )
    for key, holds, expected in rows:
        if holds:
            yield Finding(key="rounds.max_staleness", reads=(key,), expected=f"0, or {expected}", found=str(late))
