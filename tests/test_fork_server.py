"""Processes that are forked from one with the imports done: as those that an interpreter starts, and nothing shared."""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft import fork_loop
from fedpeft.fork_server import ENVIRONMENT, ForkedProcess, ForkServer, _ask, can_fork, start_forked

pytestmark = pytest.mark.skipif(not can_fork(), reason="Linux")

PROGRAM = """
import json, os, random, secrets, sys, uuid
import numpy as np
from fedpeft.entropy import os_entropy

if sys.argv[1] == "tell":
    print(json.dumps({
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "drawn": [os_entropy(16).hex(), uuid.uuid4().hex, random.random(), secrets.token_hex(4), np.random.rand()],
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "session": os.getsid(0) == os.getpid(),
        "loaded": "fedpeft.config" in sys.modules,
    }))
elif sys.argv[1] == "wait":
    import signal
    signal.pause()
elif sys.argv[1] == "fail":
    raise ValueError("as it must")
elif sys.argv[1] == "text":
    sys.exit("Expected X, found Y")
else:
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(["fedpeft.config", "numpy.random"], what="tests") as made:
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


def test_no_two_draw_the_same_from_any_generator(server: ForkServer, tmp_path: Path) -> None:
    """A fork copies the state of a generator; keys must come from the system."""
    for _ in range(2):
        process, said = started(server, tmp_path, "tell")
        assert process.wait(60) == 0
    first, second = (json.loads(line)["drawn"] for line in said.read_text().splitlines())
    assert len(first) == 5
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.torch
def test_a_forked_process_does_not_go_on_with_torchs_generator() -> None:
    """Here without a fork: a server that has torch takes five CPU seconds."""
    import torch

    with torch.random.fork_rng(devices=[]):
        drawn = set()
        for _ in range(2):
            torch.manual_seed(5)
            fork_loop._reseed()
            drawn.add(torch.rand(1).item())
    assert len(drawn) == 2


@pytest.mark.parametrize(("what", "status"), [("0", 0), ("7", 7), ("fail", 1), ("text", 1)])
def test_its_exit_status_is_told(server: ForkServer, tmp_path: Path, what: str, status: int) -> None:
    process, said = started(server, tmp_path, what)
    assert process.wait(60) == status
    assert process.poll() == process.returncode == status
    process.kill()  # it has ended: nothing happens
    assert ("ValueError: as it must" in said.read_text()) is (what == "fail")
    assert ("Expected X, found Y\n" in said.read_text()) is (what == "text")


def test_one_that_has_ended_before_it_is_looked_at_has_its_status(tmp_path: Path) -> None:
    """Its server has waited for it by then: nobody may open it any more."""
    with looping(tmp_path) as (asked, _):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, Path(os.devnull).open("wb") as nothing:
            request = json.dumps({"module": "this", "arguments": [], "environment": {}}).encode()
            socket.send_fds(asked, [request], [theirs.fileno(), nothing.fileno()])
        closed = select.poll()
        closed.register(ours, select.POLLHUP)
        assert closed.poll(60_000)
        process = ForkedProcess(ours)
        with pytest.raises(ProcessLookupError):
            os.pidfd_open(process.pid)
        process.kill()
        assert process.wait(60) == 0


def test_who_may_open_no_more_is_told_and_the_process_ends(tmp_path: Path) -> None:
    with looping(tmp_path) as (asked, _):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps({"module": "timeit", "arguments": SLEEP, "environment": {}}).encode()
            socket.send_fds(asked, [request], [theirs.fileno(), 2])
        told = select.poll()
        told.register(ours, select.POLLIN)
        assert told.poll(60_000)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with (tmp_path / "last").open("wb") as last:
            resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, before[1]))
            try:
                with pytest.raises(OSError, match="too many open"):
                    ForkedProcess(ours)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
        _ask(asked, "timeit", SLEEP, environment={}, output=2).kill()


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


def test_an_output_that_cannot_be_written_is_an_interpreters_failure(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "a_program.py").write_text("import sys\nsys.stdout = open(1, 'w', closefd=False)\nprint('x')")
    with Path("/dev/full").open("wb") as full:
        environment = {"PYTHONPATH": str(tmp_path)}
        process = server.start("a_program", [], environment=environment, output=full.fileno())
    assert process.wait(60) == 120


@pytest.mark.parametrize(("spare", "fit"), [(1, 0), (4, 1), (5, 1)], ids=["to-receive", "to-keep", "of-the-process"])
def test_a_server_outlives_bad_requests_and_those_that_it_has_no_descriptors_for(
    tmp_path: Path, spare: int, fit: int
) -> None:
    with looping(tmp_path, spare=spare) as (asked, server):
        asked.send(b"{}")
        held = [_ask(asked, "timeit", SLEEP, environment={}, output=2) for _ in range(fit)]
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="cannot fork"):
                _ask(asked, "timeit", SLEEP, environment={}, output=2)
        for process in held:
            process.kill()
            assert process.wait(60) == -signal.SIGKILL
            _ask(asked, "timeit", SLEEP, environment={}, output=2).kill()
        assert os.waitpid(server, os.WNOHANG) == (0, 0), "it runs"


def test_an_event_of_a_descriptor_that_was_closed_is_not_taken_for_its_successors(tmp_path: Path) -> None:
    """In one batch: a child ended, another was asked for and got its numbers, and whoever asked for the first left."""
    with looping(tmp_path) as (asked, server):
        first = _ask(asked, "timeit", SLEEP, environment={}, output=2)
        os.kill(server, signal.SIGSTOP)
        os.waitpid(server, os.WUNTRACED)
        first.kill()
        ended = select.poll()
        ended.register(first._handle, select.POLLIN)
        assert ended.poll(60_000)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                request = json.dumps({"module": "timeit", "arguments": SLEEP, "environment": {}}).encode()
                socket.send_fds(asked, [request], [theirs.fileno(), 2])
            first._line.close()
            os.kill(server, signal.SIGCONT)
            second = ForkedProcess(ours)
            third = _ask(asked, "timeit", SLEEP, environment={}, output=2)  # the batch is done by now
            assert os.waitpid(server, os.WNOHANG) == (0, 0), "it runs"
            assert second.poll() is None
            third.kill()


SLEEP = ["-n", "1", "import time; time.sleep(100)"]


@contextlib.contextmanager
def looping(folder: Path, *, spare: int = 0) -> Iterator[tuple[socket.socket, int]]:
    """A server's loop in a process of its own, which may open so many descriptors more; 0: many."""
    asks, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = (
        "import os, resource, socket, sys; from fedpeft.fork_loop import Server\n"
        "asks, asked, spare = map(int, sys.argv[1:])\n"
        "server = Server(socket.socket(fileno=asks), socket.socket(fileno=asked))\n"
        "while spare and (last := os.dup(0)) < max(asks, asked): pass\n"
        "if spare: resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + spare,) * 2)\n"
        "server.serve()"
    )
    numbers = [asks.fileno(), asked.fileno()]
    with (folder / "loop.log").open("wb") as log, asked:
        server = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, [*numbers, spare])], pass_fds=numbers, stderr=log
        )
        asks.close()
        try:
            yield asked, server.pid
        finally:
            server.kill()
            server.wait()


def test_a_server_that_lacks_a_module_says_so(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        server = ForkServer(["fedpeft.no_such_module"], what="tests", output=log.fileno())
    with server, pytest.raises(OSError, match=r"fork server|Broken pipe"):
        started(server, tmp_path, "0")
    assert "no_such_module" in (tmp_path / "log").read_text()
