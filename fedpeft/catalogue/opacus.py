"""What Opacus can do for a method's private steps, and what was measured of it (docs/adr/0040-opacus-as-the-engine.md).

benchmarks/privacy_opacus.py measures; tests/catalogue/test_opacus.py holds these rows against its results, and
tests/privacy/test_opacus.py the gradients against the definition.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["MEASURES", "NOT_COMPARED", "NO_EXAMPLES", "RIGHT", "SHARED", "UNMEASURED", "Engine", "Opacus"]

Engine = Literal["opacus", "fedpeft"]
"""Whose hooks have the gradients of single examples: Opacus's, or our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opacus:
    """What Opacus's ``GradSampleModule`` can do for one method.

    Args:
        able: it has the gradients of single examples.
        why_not: why our own hooks take the method's private steps; empty: Opacus takes them.
    """

    able: bool
    why_not: str


RIGHT = Opacus(able=True, why_not="")
"""Its gradients are those of the examples to 1e-5, in at most 1.10 times the time and memory of our hooks."""

UNMEASURED = Opacus(able=True, why_not="nobody measured Opacus's time and memory for it")
NO_EXAMPLES = Opacus(able=False, why_not="its parameters are no module's that is called with examples")
SHARED = Opacus(able=False, why_not="its parameters are shared by modules that are called one after the other")
MEASURES = Opacus(able=False, why_not="it measures or prunes in a step, which would be a release without noise")
NOT_COMPARED = Opacus(able=False, why_not="nobody compared Opacus's gradients of it with the definition")
