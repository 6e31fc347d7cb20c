"""Writing an artifact: the same bytes everywhere, and either all of it or nothing.

A safetensors file is laid out from its tensor specifications before any tensor exists, then filled one
weight at a time, so that the publisher holds one weight in memory. A folder is made in a staging
directory, synced, and renamed to its digest. The format is that of safetensors 0.5 (header length, JSON
header, data without holes); the library's own writer leaves the order of metadata open, ours has none.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.base.artifact import STAGING
from fedpeft.base.manifest import CHUNK_BYTES, FileEntry
from fedpeft.base.quantize import PartSpec
from fedpeft.errors import ResourceMissing

__all__ = ["describe_file", "staging_directory", "sync_tree", "write_json", "write_safetensors"]

ALIGNMENT = 64  # the data begins at a cache line: kernels may round differently on weights that do not
CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def write_safetensors(path: Path, specs: Sequence[PartSpec], produced: Iterable[Mapping[str, Tensor]]) -> None:
    """Write ``specs`` (names in ``PartSpec.part``) as one safetensors file.

    Args:
        specs: every tensor of the file, in any order.
        produced: mappings from name to tensor that together give each of them once.

    Raises:
        ValueError: what was produced is not what the specifications say.
    """
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.part))  # as the library: aligned without holes
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for spec in ordered:
        start, end = end, end + spec.dtype.itemsize * torch.Size(spec.shape).numel()
        header[spec.part] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        offsets[spec.part] = start
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii")
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
    missing = {spec.part: spec for spec in ordered}
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
        for tensors in produced:
            for name, tensor in tensors.items():
                spec = missing.pop(name)
                if (tensor.dtype, tuple(tensor.shape)) != (spec.dtype, spec.shape):
                    raise ValueError(f"Expected {spec}, found {tensor.dtype} {tuple(tensor.shape)}.")
                file.seek(8 + len(encoded) + offsets[name])
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if missing:
        raise ValueError(f"Expected every tensor to be produced, found none for {sorted(missing)}.")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """JSON for people and for hashing: sorted keys, two spaces, ASCII, one newline at the end."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="ascii")


def describe_file(path: Path) -> FileEntry:
    """Size and digests of a file, read once."""
    whole, chunks, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            whole.update(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
    return FileEntry(name=path.name, size_bytes=size, sha256=whole.hexdigest(), chunks=tuple(chunks))


@contextlib.contextmanager
def staging_directory(store: Path) -> Iterator[tuple[Path, Callable[[str], Path]]]:
    """A new directory in ``store`` and the function that commits it under a name; uncommitted, it vanishes.

    Committing syncs the files, makes them read-only and renames: a crash leaves a staging directory or
    the whole artifact. When the name exists already, the one that stands is kept.

    Raises:
        ResourceMissing: the store cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        staging = store / f"{STAGING}{secrets.token_hex(8)}"
        staging.mkdir()
    except OSError as error:
        raise ResourceMissing(
            f"Expected to write the base store {store}, found {error}; pass --store or set FEDPEFT_HOME."
        ) from error

    def commit(name: str) -> Path:
        target = store / name
        sync_tree(staging)
        with contextlib.suppress(OSError):  # another process was first: same name, same bytes
            staging.rename(target)
        _sync(store)
        return target

    try:
        yield staging, commit
    except OSError as error:
        raise ResourceMissing(
            f"Expected to write {staging}, found {error}; make room there or pass --store."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync_tree(directory: Path) -> None:
    """Make the files of a flat directory read-only and durable."""
    for path in directory.iterdir():
        path.chmod(0o444)
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
