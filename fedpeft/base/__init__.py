"""The frozen base model, shipped once: resolve, build, store, verify, load (docs/design.md, section 5).

An artifact is an immutable folder named by the SHA-256 of its manifest. The publisher quantizes it once;
every device loads the same bytes. Torch is imported only by ``load_model``, ``load_tokenizer`` and by a
build that the store cannot answer.
"""

from typing import TYPE_CHECKING

from fedpeft.base.artifact import BaseArtifact
from fedpeft.base.build import SCHEMES, build
from fedpeft.base.facts import Facts, facts_of
from fedpeft.base.manifest import Manifest
from fedpeft.base.source import ModelSource, resolve
from fedpeft.base.store import ArtifactStore, default_store
from fedpeft.base.verified import is_as_verified, verified

if TYPE_CHECKING:
    from fedpeft.base.load import load_model, load_tokenizer

__all__ = [
    "SCHEMES",
    "ArtifactStore",
    "BaseArtifact",
    "Facts",
    "Manifest",
    "ModelSource",
    "build",
    "default_store",
    "facts_of",
    "is_as_verified",
    "load_model",
    "load_tokenizer",
    "resolve",
    "verified",
]


def __getattr__(name: str) -> object:
    """Load torch only for those who load models."""
    if name in ("load_model", "load_tokenizer"):
        from fedpeft.base import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
