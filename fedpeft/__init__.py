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
    "attach",
    "data_check",
    "load_adapter",
    "open_run",
    "simulate",
    "sweep",
    "unlearn",
]
__version__ = "0.1.0"

_MODULES = {
    "Adapter": "fedpeft.api.adapters",
    "Callback": "fedpeft.api.callbacks",
    "FedpeftError": "fedpeft.errors",
    "Result": "fedpeft.api.result",
    "RoundResult": "fedpeft.api.callbacks",
    "StopRun": "fedpeft.api.callbacks",
    "attach": "fedpeft.api.attached",
    "data_check": "fedpeft.api.data",
    "load_adapter": "fedpeft.api.adapters",
    "open_run": "fedpeft.api.result",
    "simulate": "fedpeft.api.simulation",
    "sweep": "fedpeft.api.sweep",
    "unlearn": "fedpeft.api.unlearning",
}
"""Where each name stands."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
