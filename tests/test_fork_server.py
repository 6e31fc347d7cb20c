"""Processes that are forked from one with the imports done: as those that an interpreter starts, and nothing shared."""

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.fork_server import ENVIRONMENT, ForkedProcess, ForkServer, can_fork, start_forked

pytestmark = pytest.mark.skipif(not can_fork(), reason="Linux")

PROGRAM = """
import json, os, random, sys, uuid
from fedpeft.entropy import os_entropy

if sys.argv[1] == "tell":
    print(json.dumps({
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "drawn": [os_entropy(16).hex(), uuid.uuid4().hex, random.random()],
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "session": os.getsid(0) == os.getpid(),
        "loaded": "fedpeft.config" in sys.modules,
    }))
elif sys.argv[1] == "wait":
    import signal
    signal.pause()
elif sys.argv[1] == "fail":
    raise ValueError("as it must")
else:
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(["fedpeft.config"], what="tests") as made:
        yield made


def started(server: ForkServer, folder: Path, *arguments: str, **environment: str) -> tuple[ForkedProcess, Path]:
    (folder / "a_program.py").write_text(PROGRAM)
    with (folder / "said").open("ab") as said:
        known = {"PYTHONPATH": str(folder), **environment}
        process = server.start("a_program", arguments, environment=known, output=said.fileno())
    return process, folder / "said"


def test_it_has_the_command_line_the_environment_and_the_descriptors_that_it_was_given(
    server: ForkServer, tmp_path: Path
) -> None:
    process, said = started(server, tmp_path, "tell", "{parent}", "{0} and {braces}", COLOUR="r\u00f6t")
    assert process.wait(60) == 0
    told = json.loads(said.read_text())
    assert told["arguments"][2] == "{0} and {braces}"
    assert Path(f"/proc/{told['arguments'][1]}/cmdline").read_bytes().split(b"\0")[2] == b"fedpeft.fork_server"
    inherited = int(told["environment"].pop(ENVIRONMENT).partition(":")[0])
    assert told["environment"] == {"PYTHONPATH": str(tmp_path), "COLOUR": "r\u00f6t"}
    assert told["descriptors"] == [0, 1, 2, inherited]
    assert told["session"]
    assert told["loaded"], "what the server imported"


def test_no_two_draw_the_same(server: ForkServer, tmp_path: Path) -> None:
    """A fork copies the state of a generator; keys must come from the system."""
    for _ in range(2):
        process, said = started(server, tmp_path, "tell")
        assert process.wait(60) == 0
    first, second = (json.loads(line)["drawn"] for line in said.read_text().splitlines())
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("what", "status"), [("0", 0), ("7", 7), ("fail", 1)])
def test_its_exit_status_is_told(server: ForkServer, tmp_path: Path, what: str, status: int) -> None:
    process, said = started(server, tmp_path, what)
    assert process.wait(60) == status
    assert process.poll() == process.returncode == status
    process.kill()  # it has ended: nothing happens
    assert ("ValueError: as it must" in said.read_text()) is (what == "fail")


def test_a_signal_ends_it_and_whoever_waits_too_briefly_is_told(server: ForkServer, tmp_path: Path) -> None:
    process, _ = started(server, tmp_path, "wait")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("value", ["", "0", "x:1", "999999:1", "{other}:1"])
def test_who_inherited_the_environment_and_not_the_descriptor_starts_an_interpreter(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Its number may be a file or another socket by now."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setenv(ENVIRONMENT, value.replace("{other}", str(ours.fileno())))
        assert start_forked("a_program", (), environment={}, passed=()) is None
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_it_ends_with_its_server(tmp_path: Path) -> None:
    with ForkServer([], what="tests") as server:
        process, _ = started(server, tmp_path, "wait")
        handle = os.pidfd_open(process.pid)
    assert process.wait(60) == -signal.SIGKILL
    ended = select.poll()
    ended.register(handle, select.POLLIN)  # readable once the process is no more
    assert ended.poll(60_000)
    os.close(handle)


def test_a_request_that_is_too_long_is_refused_and_the_server_goes_on(server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="131072 bytes"):
        started(server, tmp_path, "0", LONG="x" * (1 << 17))
    assert started(server, tmp_path, "0")[0].wait(60) == 0


def test_a_server_that_lacks_a_module_says_so(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        server = ForkServer(["fedpeft.no_such_module"], what="tests", output=log.fileno())
    with server, pytest.raises(OSError, match=r"fork server|Broken pipe"):
        started(server, tmp_path, "0")
    assert "no_such_module" in (tmp_path / "log").read_text()
