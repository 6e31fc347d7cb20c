"""resolved.toml: the whole configuration with every default written out, as the run directory keeps it.

Invariant: ``parse(resolved(config)) == config`` for every valid configuration, but for ``directory``, which
says where runs are kept and is no part of a run.
"""

import hashlib
from collections.abc import Mapping

import tomli_w

from fedpeft.config.model import RunConfig

__all__ = ["config_digest", "flat", "resolved"]


def resolved(config: RunConfig) -> str:
    """The configuration as TOML; an absent optional section or value stays absent, TOML having no null."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def config_digest(config: RunConfig) -> str:
    """SHA-256 of resolved.toml, as ``sha256:<hex>``: equal for two files that mean the same run."""
    return f"sha256:{hashlib.sha256(resolved(config).encode()).hexdigest()}"


def flat(value: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """A configuration as ``train.local_steps`` -> ``12``; what is not set is left out."""
    found: dict[str, str] = {}
    for key, one in value.items():
        if isinstance(one, Mapping):
            found |= flat(one, f"{prefix}{key}.")
        elif one is not None:
            found[prefix + key] = str(one)
    return found
