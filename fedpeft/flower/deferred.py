"""Flower's SQL stores, imported when somebody makes one: never in a process of ours.

Flower 1.41 imports them with every one of its states, and with them SQLAlchemy and Alembic: 37 MiB in the coordinator,
and a part of every start. Ours are in memory (docs/adr/0007). Whoever else in this process makes one gets it.
"""

import importlib
import sys
from types import ModuleType

__all__ = ["defer_sql"]

STORES = {
    "flwr.supercore.object_store.sql_object_store": "SqlObjectStore",
    "flwr.server.superlink.linkstate.sql_linkstate": "SqlLinkState",
}


class _Deferred(ModuleType):
    """Stands where a module of ``STORES`` would, until one of its names but the store's is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def defer_sql() -> None:
    """Called before Flower is imported; does nothing where it was."""
    for module, name in STORES.items():
        if module not in sys.modules:
            stand_in = _Deferred(module)
            setattr(stand_in, name, _store(module, name))
            sys.modules[module] = stand_in


def _store(module: str, name: str) -> type:
    def make(_: type, *arguments: object, **options: object) -> object:
        return getattr(_real(module), name)(*arguments, **options)

    return type(name, (), {"__new__": make, "__module__": module})


def _real(module: str) -> ModuleType:
    if isinstance(sys.modules.get(module), _Deferred):
        del sys.modules[module]
    return importlib.import_module(module)
