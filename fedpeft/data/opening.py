"""Opening what a user names: compressed files through their decompressor, files of another kind than they say by name.

A shard is often ``train-00001.jsonl.gz``; read as what it is, and never skipped. What a file begins with tells when
its name is wrong, before a reader makes a hundred problems of one.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import IO, cast

from fedpeft.errors import ResourceMissing

__all__ = ["BROKEN", "COMPRESSED", "mislabelled", "opened", "plain_suffix", "sort_of", "wide_encoding"]

COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".br")
"""Endings after which the kind of file is the ending before."""

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What the decompressors raise on a file that is cut or changed; gzip's own is an ``OSError``."""

MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"PK\x03\x04": "a zip file (.xlsx is one)",
    b"7z\xbc\xaf": "a 7z file",
    b"\xd0\xcf\x11\xe0": "an old Office file (.xls, .doc)",
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"\x04\x22\x4d\x18": "an lz4 file",
    b"\x1f\x9d": "a file of compress (.Z)",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy file",
    b"version https://git-lfs": "a pointer of Git LFS",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<HTML": "a web page",
}
INSTEAD: Mapping[str, str] = {
    "a pointer of Git LFS": "Fetch the file that it stands for: git lfs pull.",
    "a web page": "Download the file itself (on a web site often the button raw or download).",
}
ENDINGS: Mapping[str, str] = {
    "a gzip file": ".gz",
    "a bzip2 file": ".bz2",
    "an xz file": ".xz",
    "a zstd file": ".zst",
    "an lz4 file": ".lz4",
    "a Parquet file": ".parquet",
    "an Arrow file": ".arrow",
}


def plain_suffix(path: Path) -> str:
    """``.jsonl`` for a.jsonl and a.JSONL.gz: the ending that tells the kind, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 else suffixes[-1]
    return suffixes[-1] if suffixes else ""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed if its name says that it is compressed.

    Raises:
        ResourceMissing: zstd, lz4 or brotli without pyarrow.
    """
    match path.suffix.lower():
        case ".gz":
            with gzip.open(path) as file:
                yield cast("IO[bytes]", file)
        case ".bz2":
            with bz2.open(path) as file:
                yield cast("IO[bytes]", file)
        case ".xz" | ".lzma":
            with lzma.open(path) as file:
                yield cast("IO[bytes]", file)
        case ".zst" | ".lz4" | ".br":
            with _by_arrow(path) as file:
                yield file
        case _:
            with path.open("rb") as file:
                yield file


@contextmanager
def _by_arrow(path: Path) -> Iterator[IO[bytes]]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ResourceMissing(
            f"Expected the package pyarrow to decompress {path}, found none; pip install 'fedpeft[demo]' or use gzip."
        ) from error
    codec = {".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}[path.suffix.lower()]
    with pa.input_stream(str(path), compression=codec) as file:
        yield cast("IO[bytes]", io.BufferedReader(file, buffer_size=2**16))


def sort_of(head: bytes, path: Path) -> tuple[str, str]:
    """What a file that should be text begins like, if not like text, and what to do about it."""
    for magic, sort in MAGIC.items():
        if head.lstrip().startswith(magic):
            if remedy := INSTEAD.get(sort):
                return sort, remedy
            if ending := ENDINGS.get(sort):
                return sort, f"Name it as what it is: mv {quote(path.name)} {quote(path.name + ending)}."
            if "zip" in sort:
                return sort, "Unpack it; save a spreadsheet as CSV UTF-8."
            return sort, "Name it as what it is, or export it as CSV UTF-8 or JSONL."
    return "", ""


def mislabelled(path: Path) -> tuple[str, str]:
    """As ``sort_of``, of a file that its own reader did not take, as it lies on the disk."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return "", ""
    suffix = path.suffix.lower()
    if suffix in (".gz", ".bz2", ".xz", ".zst", ".lz4") and not any(map(head.startswith, MAGIC)):
        return "no compressed file", f"Name it as what it is: mv {quote(path.name)} {quote(path.stem)}."
    sort, remedy = sort_of(head, path)
    return ("", "") if ENDINGS.get(sort) == suffix else (sort, remedy)


WIDE_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def wide_encoding(head: bytes) -> tuple[str, bool] | None:
    """UTF-16 or UTF-32, by its mark or by where the zero bytes of its first letter lie, and whether there is a mark."""
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark):
            return encoding, True
    zeros = tuple(byte == 0 for byte in head[:4])
    match zeros:
        case (False, True, True, True):
            return "UTF-32LE", False
        case (True, True, True, False):
            return "UTF-32BE", False
        case (False, True, *_):
            return "UTF-16LE", False
        case (True, *_):
            return "UTF-16BE", False
    return None
