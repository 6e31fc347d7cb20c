"""Checks of [aggregate] and of what it asks of [adapter.lora], [secagg], [train] and [privacy]."""

from collections.abc import Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.lora import Lora
from fedpeft.cohorts import effective_cohort
from fedpeft.config import derived
from fedpeft.config.check_dp_compatible import unproved
from fedpeft.config.model import RunConfig
from fedpeft.config.rules import RULES, rules_that

__all__ = ["aggregate_findings"]

_RULE = "aggregate.rule"
_MEANS = rules_that(lambda traits: traits.one_mean)


def aggregate_findings(config: RunConfig) -> Iterator[Finding]:
    """Every impossible combination around [aggregate]."""
    yield from _factors(config)
    yield from _sums(config)
    yield from _server(config)
    yield from _robust(config)
    yield from _device(config)


def _factors(config: RunConfig) -> Iterator[Finding]:
    rule, lora = config.aggregate, config.adapter.of(Lora)
    traits = RULES[rule.rule]
    for name, others in RULES.items():
        for option in sorted(others.options - traits.options):
            if value := getattr(rule, option):
                expected = f'0 unless rule = "{name}"'
                yield Finding(key=f"aggregate.{option}", reads=(_RULE,), expected=expected, found=str(value))
    if rule.auto_rank and (rule.a_round_every or rule.fold_every):
        yield Finding(
            key="aggregate.auto_rank",
            reads=("aggregate.a_round_every", "aggregate.fold_every"),
            expected="0 with A-rounds or folding, which turn or empty the columns again",
            found=f"{rule.auto_rank:g}",
        )
    if lora is None:
        if not traits.any_adapter:
            yield Finding(
                key=_RULE, reads=("adapter.lora",), expected="[adapter.lora] beside a rule for it", found="none"
            )
        return
    trains_a = traits.trains != "B" or rule.a_round_every > 0
    if trains_a and lora.train != "both":
        yield Finding(
            key="adapter.lora.train",
            reads=(_RULE, "aggregate.a_round_every"),
            expected=f'"both": {rule.rule} trains A as well',
            found=f'"{lora.train}"',
            remedy='Set adapter.lora.train = "both".',
        )
    carries = traits.carries or rule.fold_every > 0
    if carries != (lora.carried_rank > 0):
        yield Finding(
            key="adapter.lora.carried_rank",
            reads=(_RULE, "aggregate.fold_every"),
            expected="a rank for what is folded" if carries else "0: nothing folds into a carried adapter",
            found=str(lora.carried_rank),
            remedy="Twice adapter.lora.rank is a good start." if carries else "Remove it.",
        )


def _sums(config: RunConfig) -> Iterator[Finding]:
    rule = config.aggregate
    traits = RULES[rule.rule]
    if traits.individual and config.secagg.mode != "off":
        yield Finding(
            key=_RULE,
            reads=("secagg.mode",),
            expected="a rule that is linear in what devices send, under secure aggregation",
            found=f'"{rule.rule}": {traits.individual}',
            remedy='Use rule = "nested", or secagg.mode = "off" in a simulation to compare.',
        )
    why = config.task.record.why_not_by_example
    if config.privacy.unit in ("example", "person") and why:
        yield Finding(
            key="privacy.unit",
            reads=("task.kind",),
            expected=f'"client" or "none" for {why}',
            found=f'"{config.privacy.unit}"',
        )
    if config.privacy.unit != "none":
        yield from unproved(config.adapter, config.train, rule, config.privacy.unit)


def _server(config: RunConfig) -> Iterator[Finding]:
    rule = config.aggregate
    if RULES[rule.rule].refactors and (rule.server_optimizer != "none" or rule.server_learning_rate != 1.0):
        yield Finding(
            key="aggregate.server_optimizer",
            reads=(_RULE, "aggregate.server_learning_rate"),
            expected=f'"none" and server_learning_rate = 1 with {rule.rule}, which replaces both factors every round',
            found=f'"{rule.server_optimizer}" and {rule.server_learning_rate:g}',
        )


def _robust(config: RunConfig) -> Iterator[Finding]:
    rule = config.aggregate
    if rule.robust == "none":
        if rule.buckets:
            yield Finding(
                key="aggregate.buckets",
                reads=("aggregate.robust",),
                expected='0 while robust = "none"',
                found=str(rule.buckets),
            )
        return
    if rule.rule not in _MEANS:
        yield Finding(
            key=_RULE,
            reads=("aggregate.robust",),
            expected=f"one of {', '.join(_MEANS)} beside robust: they take one mean",
            found=f'"{rule.rule}"',
        )
    if rule.weight != "uniform":
        yield Finding(
            key="aggregate.weight",
            reads=("aggregate.robust",),
            expected='"uniform" beside robust: a weight of its own choice is a way to attack',
            found=f'"{rule.weight}"',
        )
    least = 4 if rule.robust == "krum" else 3
    if config.secagg.mode != "off" and rule.buckets < least:
        yield Finding(
            key="aggregate.buckets",
            reads=("aggregate.robust", "secagg.mode"),
            expected=f"at least {least} under secure aggregation: the statistic is over bucket sums",
            found=str(rule.buckets),
            remedy="More than twice the number of devices that may be bad.",
        )
    secagg, devices = config.secagg, config.rounds.min_devices
    cohort = effective_cohort(secagg.min_cohort, secagg.corrupt_fraction, devices)
    if rule.buckets and devices < rule.buckets * cohort:
        yield Finding(
            key="rounds.min_devices",
            reads=("aggregate.buckets", "secagg.min_cohort", "secagg.corrupt_fraction"),
            expected=f"at least {rule.buckets} buckets x {cohort} devices that a sum needs = {rule.buckets * cohort}",
            found=str(config.rounds.min_devices),
        )


def _device(config: RunConfig) -> Iterator[Finding]:
    train, rule = config.train, config.aggregate
    if train.scaffold and train.optimizer != "sgd":
        yield Finding(
            key="train.optimizer",
            reads=("train.scaffold",),
            expected='"sgd" with scaffold: its controls are sums of plain gradient steps',
            found=f'"{train.optimizer}"',
        )
    if train.scaffold and (rule.rule not in _MEANS or rule.robust != "none"):
        yield Finding(
            key="train.scaffold",
            reads=(_RULE, "aggregate.robust"),
            expected=f"a rule of {', '.join(_MEANS)} without robust",
            found=f"{rule.rule}, robust {rule.robust}",
        )
    if train.label_calibration and not config.task.record.one_class:
        yield Finding(
            key="train.label_calibration",
            reads=("task.kind",),
            expected=f"0 for {config.task.kind}, whose examples have no one class each",
            found=f"{train.label_calibration:g}",
        )
    known = {*derived.method_names(config), "head", "lora.A", "lora.B"}
    for name in rule.local:
        if name not in known:
            yield Finding(
                key="aggregate.local",
                reads=("adapter",),
                expected=f"blocks of this adapter ({', '.join(sorted(known))})",
                found=f'"{name}"',
            )
