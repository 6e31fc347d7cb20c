"""What every attack of benchmarks/attacks.py answers with."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of one attack.

    Args:
        learnt: in one sentence, with the figure: "refused: ...", "nothing: ..." or what was learnt.
        holds: whether that is no more than the documents say.
        figures: everything measured.
    """

    learnt: str
    holds: bool
    figures: Mapping[str, object]
