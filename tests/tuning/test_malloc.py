"""Large tensors go back to the system when they are freed, inside the context."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# The module by its file: its package would load transformers, too, for nothing.
PROGRAM = """
import runpy, sys
from pathlib import Path
import torch
returning_memory = runpy.run_path(sys.argv[1])["returning_memory"]

def resident():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))

# What a step does: large pieces that go, small ones between them that stay.
def grown():
    before = resident()
    pieces = [(torch.ones(2**19), torch.ones(2**12)) for _ in range(64)]
    kept = [small for _, small in pieces]
    del pieces
    return resident() - before, kept

torch.ones(2**22).sum()  # glibc's threshold is above 2 MiB from here on, as after any training
without, kept = grown()
with returning_memory(True):
    within, more = grown()
print(without, within)
"""


MALLOC = str(Path(__file__).parents[2] / "fedpeft" / "tuning" / "malloc.py")


@pytest.mark.torch
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_holes_between_what_stays_are_given_back():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, MALLOC], capture_output=True, text=True, check=True, env=environment
    )
    without, within = map(int, done.stdout.split())
    assert within < 8 * 2**10, f"{within} KiB stayed, {without} without"
    assert without > 64 * 2**10
