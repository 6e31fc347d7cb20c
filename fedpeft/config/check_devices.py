"""Checks of [[device]], of what each class of devices trains and who is in it, and of the tiers that it may name."""

from collections import Counter
from collections.abc import Iterator

from fedpeft.catalogue import TIERED
from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.lora import Lora, lora_tiers
from fedpeft.config import derived
from fedpeft.config.model import RunConfig

__all__ = ["client_keys", "device_findings", "device_name_findings", "lora_findings", "repeated"]


def lora_findings(config: RunConfig) -> Iterator[Finding]:
    """Tiers that are no ladder, and targets that are none."""
    lora = config.adapter.of(Lora)
    if lora is None:
        return
    tiers = lora.tiers
    if tiers and (list(tiers) != sorted(set(tiers)) or tiers[0] < 1 or tiers[-1] != lora.rank):
        yield Finding(
            key="adapter.lora.tiers",
            reads=("adapter.lora.rank",),
            expected=f"ascending ranks from 1, each once, ending in adapter.lora.rank={lora.rank}",
            found=str(list(tiers)),
            remedy="Leave it out for the powers of two from 2.",
        )
    if not lora.targets or repeated(lora.targets):
        yield Finding(
            key="adapter.lora.targets", expected="at least one target, each once", found=str(list(lora.targets))
        )


def device_findings(config: RunConfig) -> Iterator[Finding]:
    """Methods and ranks that [adapter] does not have, and options that say nothing here."""
    declared = derived.method_names(config)
    lora = None if any(lora_findings(config)) else config.adapter.of(Lora)  # no advice about wrong tiers
    for index, device in enumerate(config.device):
        here = f"device[{index}]"
        if device.methods == "auto":
            if device.rank is not None:
                remedy = "The planner chooses it; name the methods to choose it yourself."
                yield Finding(key=f"{here}.rank", expected="no rank", found=str(device.rank), remedy=remedy)
            continue
        for limit in ("ram_mb", "uplink_mbit"):
            if (value := getattr(device, limit)) is not None:
                remedy = "Remove it, or let the planner choose by it."
                expected = f'no {limit} without methods = "auto"'
                yield Finding(key=f"{here}.{limit}", expected=expected, found=f"{value:g}", remedy=remedy)
        if not (device.methods or (device.head and config.adapter.head and config.task.record.adds_head)):
            yield Finding(
                key=f"{here}.methods",
                reads=(f"{here}.head", "adapter", "task.kind"),
                expected="at least one method, or the class head, to train",
                found="neither",
            )
        for method in device.methods:
            if method not in declared:
                yield Finding(
                    key=f"{here}.methods",
                    reads=("adapter",),
                    expected=f"methods that [adapter] declares ({', '.join(declared) or 'none'})",
                    found=f'"{method}"',
                    remedy=f"Add [adapter.{method}], or leave the method out here.",
                )
        if repeated(device.methods):
            yield Finding(key=f"{here}.methods", expected="each method once", found=str(list(device.methods)))
        if device.rank is None:
            continue
        if not TIERED & {*device.methods}:
            yield Finding(
                key=f"{here}.rank",
                reads=(f"{here}.methods",),
                expected='no rank without "lora" in methods',
                found=str(device.rank),
            )
        elif lora is not None and device.rank not in lora_tiers(lora):
            tiers = ", ".join(map(str, lora_tiers(lora)))
            yield Finding(
                key=f"{here}.rank",
                reads=("adapter.lora",),
                expected=f"a tier of adapter.lora ({tiers})",
                found=str(device.rank),
                remedy="Choose a tier, or add this rank to adapter.lora.tiers.",
            )


def device_name_findings(config: RunConfig) -> Iterator[Finding]:
    """Clients in no entry or in two."""
    for index, device in enumerate(config.device):
        key = f"device[{index}].clients"
        if not device.clients:
            yield Finding(key=key, expected='client names, or ["*"]', found="an empty list")
        if "*" in device.clients and len(device.clients) > 1:
            yield Finding(key=key, expected='"*" alone, or names alone', found=str(list(device.clients)))
    names = [name for device in config.device for name in device.clients]
    for name in repeated(names):
        what = '"*" in at most one [[device]]' if name == "*" else f"client {name!r} in one [[device]]"
        yield Finding(key="device", reads=client_keys(config), expected=what, found=f"{names.count(name)} times")


def client_keys(config: RunConfig) -> tuple[str, ...]:
    """The keys that name clients."""
    return tuple(f"device[{index}].clients" for index in range(len(config.device)))


def repeated(names: tuple[str, ...] | list[str]) -> list[str]:
    """What is there more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
