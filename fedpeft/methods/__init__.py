"""The PEFT methods: the union adapter, attached to a frozen base model, and its export.

``blocks_for`` and ``due_blocks`` need no torch; everything else is loaded on first use, so that a process that
only plans rounds never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fedpeft.methods.blocks import blocks_for
from fedpeft.methods.schedule import due_blocks, round_of

if TYPE_CHECKING:
    from fedpeft.methods.export import export_peft, load_union
    from fedpeft.methods.summary import ExportSummary
    from fedpeft.methods.union import UnionAdapter, attach

__all__ = [
    "ExportSummary",
    "UnionAdapter",
    "attach",
    "blocks_for",
    "due_blocks",
    "export_peft",
    "load_union",
    "round_of",
]

_HOME = {
    "ExportSummary": "fedpeft.methods.summary",
    "UnionAdapter": "fedpeft.methods.union",
    "attach": "fedpeft.methods.union",
    "export_peft": "fedpeft.methods.export",
    "load_union": "fedpeft.methods.export",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
