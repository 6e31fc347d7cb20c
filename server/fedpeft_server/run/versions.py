"""What a run is made with: the versions of the packages that decide its numbers, and the plug-ins that it uses."""

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from fedpeft.config import RunConfig
from fedpeft.config.plugins_used import learning_plugins
from fedpeft.data.choosing import OWN_KINDS, choose
from fedpeft.data.opening import plain_suffix
from fedpeft.data.records import ProblemLog
from fedpeft.plugins import plugins

__all__ = ["changed_versions", "installed_versions", "plugins_used"]

_PACKAGES = ("fedpeft", "flwr", "torch", "transformers", "peft", "numpy", "cryptography", "safetensors")


@cache
def installed_versions() -> Mapping[str, str]:
    """Package -> version as installed when this process first asked, or ``absent``; and ``python``."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return MappingProxyType(versions)


def changed_versions(begun: Mapping[str, str]) -> str:
    """What is installed in another version than a run began with, in a sentence; empty: nothing.

    Args:
        begun: package -> version, of its manifest.
    """
    now = installed_versions()
    others = [f"{name} {was}, found {now[name]}" for name, was in begun.items() if now.get(name, was) != was]
    if not others:
        return ""
    return f"expected what the run began with: {'; '.join(others)}; its numbers may differ from here on"


def plugins_used(config: RunConfig) -> dict[str, str]:
    """``method gains`` -> ``fedpeft-lab 0.3``: those of its methods, rule and trackers, and of data on this machine."""
    files, _ = choose(config.data.source, ProblemLog())
    kinds = {plain_suffix(file) for file in files} - {*OWN_KINDS}
    formats = [plugins("format")[name] for kind in sorted(kinds) if (name := kind.removeprefix("."))]
    trackers = [plugins("tracker")[name] for name in config.track.to if name in plugins("tracker")]
    others = {plugin.key: plugin.source for plugin in (*formats, *trackers)}
    return learning_plugins(config.adapter, config.aggregate) | others
