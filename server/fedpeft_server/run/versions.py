"""What a run is made with: the versions of the packages that decide its numbers."""

import importlib.metadata
import platform

__all__ = ["installed_versions"]

_PACKAGES = ("fedpeft", "flwr", "torch", "transformers", "peft", "numpy", "cryptography", "safetensors")


def installed_versions() -> dict[str, str]:
    """Package -> version as installed, or ``absent``; and ``python``."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
