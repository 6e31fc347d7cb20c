"""The codec, as docs/protocol.md has it: fields, tags and contexts are read from the document's own tables."""

import math
import re
import struct
from pathlib import Path

DOC = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
FIELDS, TAGS, ENUMS = {}, {}, {}
for m in re.finditer(
    r"^\*\*(\w+)(?: \((0x[0-9a-f]+)\))?\*\*: (.*)$",
    DOC[DOC.index("message tables: begin") : DOC.index("message tables: end")],
    re.MULTILINE,
):
    name, tag, body = m.groups()
    if "; " not in body and re.match(r"^`[^`]*`(, `|$)", body):
        ENUMS[name] = re.findall(r"`([^`]+)`", body)
        continue
    FIELDS[name] = re.findall(r"`(\w+)` ([\w ]+)", body)
    if tag:
        TAGS[name] = int(tag, 16)
ROWS = re.findall(r"^\| (\w+) \| (none|C\d) \| (\w+) \| (C\d) \|$", DOC, re.MULTILINE)
CONTEXTS = {name: at for row in ROWS for name, at in (row[:2], row[2:])}
"""Of each message of a sum the context that it names."""

BYTAG = {v: k for k, v in TAGS.items()}


class Bad(Exception):
    pass


def put(t, v):
    if t.startswith("tuple of "):
        return struct.pack(">I", len(v)) + b"".join(put(t[9:], x) for x in v)
    if t.startswith("optional "):
        return b"\0" if v is None else b"\1" + put(t[9:], v)
    if t == "int":
        return struct.pack(">Q", v)
    if t == "bool":
        return bytes([bool(v)])
    if t == "float":
        assert math.isfinite(v)
        return struct.pack(">d", v)
    if t == "str":
        v = v.encode()
    if t in ("str", "bytes"):
        return struct.pack(">Q", len(v)) + v
    if t in ENUMS:
        assert v in ENUMS[t]
        return put("str", v)
    return b"".join(put(ft, v[f]) for f, ft in FIELDS[t])


def encode(name, **v):
    assert set(v) == {f for f, _ in FIELDS[name]}, (name, set(v) ^ {f for f, _ in FIELDS[name]})
    body = put(name, v)
    return b"FP" + struct.pack(">BHQ", 3, TAGS[name], len(body)) + body


def take(t, b, i):  # noqa: PLR0912 — a type a branch
    def need(n):
        if i + n > len(b):
            raise Bad("short")

    if t.startswith("tuple of "):
        need(4)
        (n,) = struct.unpack_from(">I", b, i)
        i += 4
        out = []
        for _ in range(n):
            x, i = take(t[9:], b, i)
            out.append(x)
        return out, i
    if t.startswith("optional "):
        need(1)
        if b[i] == 0:
            return None, i + 1
        if b[i] != 1:
            raise Bad("presence")
        return take(t[9:], b, i + 1)
    if t == "int":
        need(8)
        return struct.unpack_from(">Q", b, i)[0], i + 8
    if t == "bool":
        need(1)
        if b[i] > 1:
            raise Bad("bool")
        return bool(b[i]), i + 1
    if t == "float":
        need(8)
        return struct.unpack_from(">d", b, i)[0], i + 8
    if t in ("str", "bytes") or t in ENUMS:
        need(8)
        (n,) = struct.unpack_from(">Q", b, i)
        i += 8
        need(n)
        x = bytes(b[i : i + n])
        i += n
        if t != "bytes":
            x = x.decode()
        if t in ENUMS and x not in ENUMS[t]:
            raise Bad("enum")
        return x, i
    out = {}
    for f, ft in FIELDS[t]:
        out[f], i = take(ft, b, i)
    return out, i


def decode(b, want=None):
    if b[:2] != b"FP" or len(b) < 13:
        raise Bad("magic")
    ver, tag, n = struct.unpack_from(">BHQ", b, 2)
    if ver != 3 or tag not in BYTAG or len(b) != 13 + n:
        raise Bad(f"head {ver} {tag:x} {n} {len(b)}")
    name = BYTAG[tag]
    v, i = take(name, b, 13)
    if i != len(b):
        raise Bad("left over")
    if want and name != want:
        raise Bad(f"{name} {v} instead of {want}")
    return name, v
