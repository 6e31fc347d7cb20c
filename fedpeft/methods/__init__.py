"""The PEFT methods: the union adapter, attached to a frozen base model.

``blocks_for`` and ``due_blocks`` need no torch; everything else is loaded on first use, so that a process that
only plans rounds never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fedpeft.aggregate.schedule import due_blocks, round_of
from fedpeft.catalogue.blocks import blocks_for

if TYPE_CHECKING:
    from fedpeft.methods.union import UnionAdapter, attach

__all__ = ["UnionAdapter", "attach", "blocks_for", "due_blocks", "round_of"]

_HOME = {
    "UnionAdapter": "fedpeft.methods.union",
    "attach": "fedpeft.methods.union",
    "load_union": "fedpeft.export",  # as the model cards of earlier exports name it
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
