"""The plug-ins that a run uses: ``method gains`` -> ``fedpeft-lab 0.3``, the package and its version."""

from fedpeft.catalogue import PLUGINS
from fedpeft.config.adapter import Adapter
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.rules import RULE_PLUGINS
from fedpeft.plugins import plugins

__all__ = ["learning_plugins"]


def learning_plugins(adapter: Adapter, aggregate: Aggregate) -> dict[str, str]:
    """Those that decide what is learnt, which every device of the run needs too; empty for most runs."""
    methods = [plugins("method")[method.name] for method, _ in adapter.declared() if method.name in PLUGINS]
    rules = [plugins("rule")[aggregate.rule]] if aggregate.rule in RULE_PLUGINS else []
    return {plugin.key: plugin.source for plugin in (*methods, *rules)}
