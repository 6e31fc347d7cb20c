"""The PEFT methods, one light file each: settings, costs, schedule, documentation. No torch.

To add one: its file here and its place in ``METHODS``, its torch part in ``fedpeft/methods/NAME.py`` and its place in
``fedpeft.methods.union`` (CONTRIBUTING.md). Everything else reads this tuple; tests/catalogue/test_contract.py holds
each row against the real adapter.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.catalogue import (
    adalora,
    bitfit,
    bottleneck,
    coda,
    compacter,
    diffpruning,
    dora,
    dylora,
    fish,
    fusion,
    head,
    hypernetwork,
    ia3,
    layernorm,
    llama_adapter,
    loha,
    lokr,
    lora,
    p_tuning,
    p_tuning_v2,
    parallel,
    prefix,
    prompt,
    qalora,
    relora,
    unipelt,
    vera,
)
from fedpeft.catalogue.method import AnyMethod, Export, Method, MethodPlugin, MethodRow
from fedpeft.catalogue.section import Section
from fedpeft.plugins import loaded, plugins

__all__ = ["BY_NAME", "METHODS", "PLUGINS", "ROWS", "TAKEN", "TIERED", "AnyMethod", "Export", "Method", "MethodRow"]

_OWN: tuple[AnyMethod, ...] = (
    lora.METHOD,
    dora.METHOD,
    adalora.METHOD,
    dylora.METHOD,
    relora.METHOD,
    qalora.METHOD,
    vera.METHOD,
    loha.METHOD,
    lokr.METHOD,
    diffpruning.METHOD,
    fish.METHOD,
    bitfit.METHOD,
    layernorm.METHOD,
    ia3.METHOD,
    bottleneck.METHOD,
    parallel.METHOD,
    compacter.METHOD,
    hypernetwork.METHOD,
    fusion.METHOD,
    prompt.METHOD,
    p_tuning.METHOD,
    prefix.METHOD,
    p_tuning_v2.METHOD,
    llama_adapter.METHOD,
    unipelt.METHOD,
    coda.METHOD,
)
"""In the order in which they apply to one module: what changes its matrix, then the bias, then the gain, then the
bottleneck. The order is part of every adapter's digest: a new method goes where it applies."""

TAKEN = frozenset(
    {"declared", "dtype", "having", "head", "head_learning_rate", "head_refresh", "head_start", "layers"}
    | {"lowest_layer", "measuring_rounds", "of", "refresh_every", "sketches", "slots"}
    | {name for name in dir(Section) if not name.startswith("_")}
    | {method.name for method in _OWN}
)
"""What no other package's method may be called: it would be another attribute of [adapter]."""

_sections = {method.section for method in _OWN}


def _usable(plugin: MethodPlugin) -> None:
    plugin.expect_usable(_sections)
    _sections.add(plugin.section)  # nor may two plug-ins share one


PLUGINS: Mapping[str, MethodPlugin] = loaded("method", MethodPlugin, taken=TAKEN, check=_usable)
"""Methods of other packages, by name."""

METHODS: tuple[AnyMethod, ...] = (
    *_OWN,
    *(plugin.method(name, plugins("method")[name].source) for name, plugin in PLUGINS.items()),
)
"""All methods: fedpeft's own, then those of plug-ins by name."""

BY_NAME: Mapping[str, AnyMethod] = MappingProxyType({method.name: method for method in METHODS})

TIERED = frozenset(method.name for method in METHODS if method.tiers is not None)
"""Methods that a device may train up to a rank of its own."""

ROWS: Mapping[str, MethodRow] = MappingProxyType({**{method.name: method.row for method in METHODS}, "head": head.ROW})
"""What people read, the class head last."""
