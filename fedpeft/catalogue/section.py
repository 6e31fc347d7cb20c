"""What every section of a configuration file is: frozen, strict, closed."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from fedpeft.target_names import pattern_fault

__all__ = ["Section", "TargetName"]


def _usable(target: str) -> str:
    if (fault := pattern_fault(target)) is not None:
        raise ValueError(f"expected a name, or a regular expression of a module's path, found {target[:60]!r}: {fault}")
    return target


TargetName = Annotated[str, AfterValidator(_usable)]
"""Matrices of the layers: a short name, ``auto``, ``all-linear``, the end of a module's path, or a pattern of it."""


class Section(BaseModel):
    """Frozen, strict, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
