"""``privacy.engine``: whose hooks have the gradients of single examples in a run, and why."""

from typing import Literal

from fedpeft.catalogue import METHODS
from fedpeft.catalogue.opacus import Engine
from fedpeft.config.adapter import Adapter

__all__ = ["engine_line", "engine_of", "engines_line", "why_not_opacus"]


def engine_of(adapter: Adapter, asked: Literal["auto"] | Engine) -> Engine:
    """The engine of a run: Opacus where nothing was measured against it for any of the run's methods.

    Example:
        >>> from fedpeft.catalogue.lora import Lora
        >>> from fedpeft.catalogue.prompt import Prompt
        >>> engine_of(Adapter.having(Lora()), "auto"), engine_of(Adapter.having(Lora(), Prompt()), "auto")
        ('opacus', 'fedpeft')
    """
    if asked != "auto":
        return asked
    return "fedpeft" if why_not_opacus(adapter) else "opacus"


def why_not_opacus(adapter: Adapter) -> dict[str, str]:
    """Method -> why ``auto`` does not take Opacus for it; the class head, which Opacus knows, has no reason."""
    return {method.name: method.opacus.why_not for method, _ in adapter.declared() if method.opacus.why_not}


def engine_line(adapter: Adapter, asked: Literal["auto"] | Engine, *, recorded: Engine | None = None) -> str:
    """What a report and a statement say of it.

    Args:
        adapter, asked: of the run.
        recorded: that of the plan which the run began with; None: it has not begun.
    """
    today, reasons = engine_of(adapter, asked), why_not_opacus(adapter)
    engine = recorded or today
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "nothing was measured against it"
    if engine != today:
        why = "as the version that began the run chose"
    chosen = f"privacy.engine = {asked}" + (f": {why}" if asked == "auto" else "")
    whose = "Opacus's hooks" if engine == "opacus" else "fedpeft's own hooks"
    return (
        f"gradients of single examples: by {whose} ({chosen}), checked on each device against one backward pass an "
        "example, which is used where they differ; samples, clipping, noise and accounting are the same for both"
    )


def engines_line() -> str:
    """What a plan says that knows no methods yet: who does which, and why."""
    private = [method for method in METHODS if not method.measures]
    own: dict[str, list[str]] = {}
    for method in private:
        own.setdefault(method.opacus.why_not, []).append(method.name)
    theirs = ", ".join(["head", *own.pop("", [])])
    ours = "".join(f"; fedpeft's own hooks for {', '.join(names)}: {why}" for why, names in own.items())
    return f"gradients of single examples (privacy.engine = auto): Opacus's hooks for {theirs}{ours}"
