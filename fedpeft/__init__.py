"""fedpeft: fine-tune one language model across people who may not share their data.

The names of docs/python.md are attributes of this package. They are imported on first use: ``import fedpeft`` alone
loads nothing. Their types stand in ``__init__.pyi``.
"""

import importlib

__all__ = [
    "Adapter",
    "Callback",
    "FedpeftError",
    "Result",
    "RoundResult",
    "StopRun",
    "__version__",
    "data_check",
    "load_adapter",
    "open_run",
    "simulate",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")
    value: object = getattr(importlib.import_module("fedpeft.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
