"""What every section of a configuration file is: frozen, strict, closed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Section", "TargetName"]

TargetName = Literal["q", "k", "v", "o", "up", "down", "gate"]
"""A matrix of a transformer layer, by the field's short name."""


class Section(BaseModel):
    """Frozen, strict, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
