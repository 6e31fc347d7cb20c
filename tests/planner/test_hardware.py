"""What a machine has, read from files that real kernels write, and two speeds."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.errors import IntegrityFailed
from fedpeft.planner import REFERENCE, DeviceProfile, probe

MIB = 2**20
MEMINFO = "MemTotal:        8388608 kB\nMemFree: 1048576 kB\nMemAvailable:    4194304 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/cpuinfo": "flags\t: fpu avx2 amx_int8 sse\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def profile(root: Path, run=lambda _: "") -> DeviceProfile:
    return probe(root=root, run=run)


def test_a_machine_without_control_groups_is_what_meminfo_says(tmp_path):
    found = profile(machine(tmp_path, {}))
    assert (found.total_bytes, found.available_bytes) == (8192 * MIB, 4096 * MIB)
    assert found.flags == ("avx2", "amx_int8")
    assert found.vram_bytes == 0


def test_limits_of_control_groups_version_2_count_and_so_do_those_of_their_parents(tmp_path):
    files = {
        "proc/self/cgroup": "0::/slice/job\n",
        "sys/fs/cgroup/slice/job/memory.max": "max\n",
        "sys/fs/cgroup/slice/memory.max": f"{1024 * MIB}\n",
        "sys/fs/cgroup/slice/memory.current": f"{600 * MIB}\n",
        "sys/fs/cgroup/slice/memory.stat": f"anon {500 * MIB}\ninactive_file {100 * MIB}\n",
        "sys/fs/cgroup/slice/cpu.max": "100000 100000\n",
    }
    found = profile(machine(tmp_path, files))
    assert (found.total_bytes, found.available_bytes) == (1024 * MIB, 524 * MIB)
    assert found.cores == 1


def test_limits_of_control_groups_version_1_count(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{512 * MIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{112 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "99999\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
    }
    found = profile(machine(tmp_path, files))
    assert (found.total_bytes, found.available_bytes, found.cores) == (512 * MIB, 400 * MIB, 1)


def test_no_quota_is_no_limit(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/\n1:cpu:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    found = profile(machine(tmp_path, files))
    assert (found.total_bytes, found.available_bytes) == (8192 * MIB, 4096 * MIB)
    assert found.cores >= 1


def test_the_largest_gpu_counts_and_a_broken_driver_is_none(tmp_path):
    machine(tmp_path, {})
    assert profile(tmp_path, lambda _: "24564\n81559\n").vram_bytes == 81559 * MIB

    def broken(command: list[str]) -> str:
        raise subprocess.CalledProcessError(9, command)

    assert profile(tmp_path, broken).vram_bytes == 0
    assert profile(tmp_path, lambda _: "No devices were found\n").vram_bytes == 0


def test_probing_this_machine_is_quick_and_believable():
    begun = time.process_time()
    found = probe()
    assert time.process_time() - begun < 1.0  # 0.1 to 0.3 s; the rest is for a busy machine
    assert 0 < found.available_bytes <= found.total_bytes
    assert 1e8 < found.bandwidth < 1e12
    assert 1e8 < found.gemm_rate < 1e13


def test_a_profile_survives_json():
    assert DeviceProfile.from_json(REFERENCE.to_json()) == REFERENCE
    fast = replace(REFERENCE, cores=64, flags=())
    assert DeviceProfile.from_json(fast.to_json()) == fast


@pytest.mark.parametrize(
    "change",
    [{"cores": 0}, {"cores": 1.5}, {"gemm_rate": float("inf")}, {"flags": "avx2"}, {"total_bytes": True}, {"more": 1}],
)
def test_a_profile_that_no_machine_has_is_refused(change):
    text = json.dumps(json.loads(REFERENCE.to_json()) | change)
    with pytest.raises(IntegrityFailed, match="device profile"):
        DeviceProfile.from_json(text)
