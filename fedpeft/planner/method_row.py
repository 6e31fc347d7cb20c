"""One row of the catalogue of methods."""

from dataclasses import dataclass

__all__ = ["MethodRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One method.

    Args:
        title: the field's name for it.
        formula: what it computes, in the notation of docs/notation.md.
        paper: author and year.
        attaches: to which modules.
        summed: what its secure sum means for the model.
        example_dp: how per-example gradients are had, for example-level differential privacy.
        export: the files it becomes.
        served_by: programs that run these files without fedpeft.
    """

    title: str
    formula: str
    paper: str
    attaches: str
    summed: str
    example_dp: str
    export: str
    served_by: tuple[str, ...]
