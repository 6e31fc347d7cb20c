"""What a machine has: cores, memory, and two speeds measured in a quarter of a second. No torch.

Limits of the control group count (versions 1 and 2), so a container sees what it may use and not what its
host has. The speeds are per core, in CPU time: a busy machine measures nearly the same as an idle one.
"""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from fedpeft.bounded_json import JsonLimits, JsonValue, loads
from fedpeft.errors import IntegrityFailed

__all__ = ["REFERENCE", "DeviceProfile", "available_bytes", "probe", "resident_bytes", "this_machine"]

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "neon", "asimd", "bf16")
"""The processor's abilities that decide which kernels pay."""

_LIMITS = JsonLimits(max_bytes=4096, max_depth=2)
_MOST_CORES, _MOST_BYTES, _MOST_RATE = 65_536, 1 << 50, 1e18
"""No machine has more; whoever says so would break what is computed from it."""
_ROOT = Path("/")
_MIB = 2**20
_UNLIMITED = 1 << 60  # control groups of version 1 write a huge number for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """One device's hardware.

    Args:
        cores: that this process may use.
        total_bytes: RAM that this process may use in all.
        available_bytes: of it, free now.
        vram_bytes: of the largest CUDA device; 0 without one.
        bandwidth: bytes a second that one core copies (read and write counted).
        gemm_rate: float32 operations a second of one core in a matrix product.
        flags: of ``FLAGS``, those that the processor has.
    """

    cores: int
    total_bytes: int
    available_bytes: int
    vram_bytes: int
    bandwidth: float
    gemm_rate: float
    flags: tuple[str, ...]

    def lending(self, ram_mb: int | None) -> "DeviceProfile":
        """The device with so many MiB of RAM for the federation; None: all that it has."""
        return self if ram_mb is None else replace(self, total_bytes=ram_mb * _MIB, available_bytes=ram_mb * _MIB)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "DeviceProfile":
        """The inverse of ``to_json``.

        Raises:
            IntegrityFailed: other keys or types, or a number that no machine has.
        """
        try:
            content = loads(text, _LIMITS)
            if not isinstance(content, dict) or set(content) != {field.name for field in fields(cls)}:
                raise ValueError("other keys")
            flags = content["flags"]
            if not isinstance(flags, list) or len(flags) > len(FLAGS):
                raise ValueError(f"flags={flags!r:.80}")
            return cls(
                cores=_whole(content, "cores", 1, _MOST_CORES),
                total_bytes=_whole(content, "total_bytes", 1, _MOST_BYTES),
                available_bytes=_whole(content, "available_bytes", 1, _MOST_BYTES),
                vram_bytes=_whole(content, "vram_bytes", 0, _MOST_BYTES),
                bandwidth=_rate(content, "bandwidth"),
                gemm_rate=_rate(content, "gemm_rate"),
                flags=tuple(flag for flag in flags if isinstance(flag, str) and flag in FLAGS),
            )
        except ValueError as error:
            raise IntegrityFailed(f"Expected a device profile as `fedpeft methods plan` makes it: {error}.") from error


def _whole(content: Mapping[str, JsonValue], name: str, least: int, most: int) -> int:
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}={value!r:.80}, which is not within {least} and {most}")
    return value


def _rate(content: Mapping[str, JsonValue], name: str) -> float:
    value = content[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _MOST_RATE:
        raise ValueError(f"{name}={value!r:.80}, which no core reaches")
    return float(value)


REFERENCE = DeviceProfile(
    cores=1,
    total_bytes=4096 * _MIB,
    available_bytes=4096 * _MIB,
    vram_bytes=0,
    bandwidth=8e9,
    gemm_rate=50e9,
    flags=("avx2",),
)
"""One core of a plain server or laptop of 2020: the stand-in where plans must not depend on this machine."""


def probe(*, root: Path = _ROOT, run: Callable[[list[str]], str] | None = None) -> DeviceProfile:
    """Measure this machine; takes under 0.3 s of CPU time.

    Args:
        root: where ``proc`` and ``sys`` lie; for tests.
        run: runs a command and returns what it prints; for tests.
    """
    total, available = _memory(root)
    return DeviceProfile(
        cores=_cores(root),
        total_bytes=total,
        available_bytes=available,
        vram_bytes=_vram(run or _output),
        bandwidth=_bandwidth(),
        gemm_rate=_gemm_rate(),
        flags=_flags(root),
    )


def this_machine() -> DeviceProfile:
    """As ``probe``, with speeds that were measured when this process asked first; what is free is free now."""
    return replace(_measured(), available_bytes=available_bytes())


@lru_cache(maxsize=1)
def _measured() -> DeviceProfile:
    return probe()


def available_bytes() -> int:
    """RAM that is free for this process now, within the control groups' limits."""
    return _memory(_ROOT)[1]


def resident_bytes(field: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int | None:
    """RAM that this process holds now, or held at most; None where the system does not tell (no Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _memory(root: Path) -> tuple[int, int]:
    """Total and available RAM, both within the control groups' limits."""
    total, available = _machine_memory(root)
    for folder, limit_file, usage_file in _groups(root, "memory"):
        limit, used = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and limit < total:
            total = limit
        if limit is not None and used is not None and limit < _UNLIMITED:
            cache = _reclaimable(folder / "memory.stat")
            available = min(available, limit - max(0, used - cache))
    return total, max(1, available)


def _machine_memory(root: Path) -> tuple[int, int]:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages, pages // 2
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
    return kib["MemTotal"] * 1024, kib.get("MemAvailable", kib["MemFree"]) * 1024


def _cores(root: Path) -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, quota_file, period_file in _groups(root, "cpu"):
        if quota_file == "cpu.max":
            words = _words(folder / quota_file)
            quota = int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None
        else:
            allowed, period = _number(folder / quota_file), _number(folder / period_file)
            quota = allowed / period if allowed is not None and allowed > 0 and period else None
        if quota is not None:
            count = min(count, max(1, int(quota)))
    return count


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, str, str]]:
    """Every control group that this process is in, outermost last, with the names of its two files."""
    v2 = {"memory": ("memory.max", "memory.current"), "cpu": ("cpu.max", "cpu.max")}
    v1 = {
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
    }
    try:
        entries = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", v2[controller]
        elif controller in controllers.split(","):
            base, names = root / "sys/fs/cgroup" / controllers, v1[controller]
            base = base if base.is_dir() else root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            yield group, *names
            if group == base:
                break


def _reclaimable(path: Path) -> int:
    """Cached file pages of a control group: counted as used, given back on demand."""
    stat = dict(line.split(" ", 1) for line in _lines(path) if " " in line)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def _flags(root: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for line in _lines(root / "proc/cpuinfo"):
        if line.lower().startswith(("flags", "features")):
            found = set(line.partition(":")[2].split())
            break
    if platform.machine() in {"arm64", "aarch64"} and not found:
        found = {"asimd"}
    return tuple(flag for flag in FLAGS if flag in found)


def _vram(run: Callable[[list[str]], str]) -> int:
    try:
        text = run(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"])
        return max((int(line) for line in text.split()), default=0) * _MIB
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _output(command: list[str]) -> str:
    """What a command prints; nothing when it is not installed."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    return subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=5, check=True).stdout


def _bandwidth() -> float:
    """Copying 16 MiB, larger than most caches: the best of six."""
    source = np.ones(16 * _MIB // 4, np.float32)
    target = np.empty_like(source)
    np.copyto(target, source)  # pages are mapped before the clock starts
    return 2 * source.nbytes / min(_seconds(lambda: np.copyto(target, source)) for _ in range(6))


def _gemm_rate() -> float:
    """A product of the shape that a layer has, over the CPU time of every thread that helped: one core's rate."""
    tokens, width, inner = 512, 384, 1536
    x, w = np.ones((tokens, width), np.float32), np.ones((width, inner), np.float32)
    np.matmul(x, w)
    return 2 * tokens * width * inner / min(_seconds(lambda: np.matmul(x, w)) for _ in range(6))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return max(time.process_time() - start, 1e-9)
