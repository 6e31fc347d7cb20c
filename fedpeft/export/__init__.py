"""A finished adapter as files for others: the PEFT format, model cards, merging, cuts for a class of devices.

What needs torch is loaded on first use: merging directories loads no model.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fedpeft.export.summary import ExportSummary

if TYPE_CHECKING:
    from fedpeft.export.export import export_peft, load_union

__all__ = ["ExportSummary", "export_peft", "load_union"]

_HOME = {"export_peft": "fedpeft.export.export", "load_union": "fedpeft.export.export"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
