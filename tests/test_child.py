"""A second process and its parent's end of the line."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.child import Child, ChildDied
from fedpeft.errors import FedpeftError, PolicyRefused
from fedpeft.fork_server import ENVIRONMENT, ForkServer, can_fork

CHILD = """
import os, signal, sys
from fedpeft.child import answer_parent
from fedpeft.errors import PolicyRefused

def refuse(payload):
    raise PolicyRefused("Expected night, found day.")

def handlers(arguments):
    return {
        "echo": lambda payload: payload + arguments[0].encode(),
        "refuse": refuse,
        "break": lambda payload: {}["patient 7"],
        "die": lambda payload: os.kill(os.getpid(), signal.SIGKILL),
        "pid": lambda payload: str(os.getpid()).encode(),
        "wait": lambda payload: signal.pause(),
    }

answer_parent(handlers)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(["fedpeft.child"], what="tests") as made:
        yield made


@pytest.fixture(
    params=["interpreter", pytest.param("forked", marks=pytest.mark.skipif(not can_fork(), reason="Linux"))]
)
def child(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """Of a new interpreter, and forked: one behaves as the other."""
    if request.param == "forked":
        monkeypatch.setenv(ENVIRONMENT, request.getfixturevalue("server").environment[ENVIRONMENT])
    (tmp_path / "a_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Child("a_child", ["!"])
    yield made
    made.close()


def test_a_child_answers_and_stays(child: Child) -> None:
    assert child.ask("echo", b"x" * 3_000_000) == b"x" * 3_000_000 + b"!"
    assert child.ask("pid") == child.ask("pid") == str(child.pid).encode()


def test_a_child_that_rests_is_started_again_by_the_next_request(child: Child) -> None:
    assert not child.rest(), "none is running"
    before = child.ask("pid")
    assert child.rest()
    assert child.pid is None
    assert child.ask("pid") != before


def test_a_child_at_work_does_not_rest(child: Child) -> None:
    child.ask("echo", b"")

    def work() -> None:
        with pytest.raises(ChildDied):
            child.ask("wait")

    at_work = threading.Thread(target=work)
    at_work.start()
    while not child._lock.locked():
        pass
    assert not child.rest()
    child.kill()
    at_work.join()


def test_a_kill_that_comes_as_a_request_begins_ends_the_request(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the old process, or none; the request must not start another one and work on."""
    started = child._started

    def killed_meanwhile() -> object:
        child.kill()
        return started()

    with monkeypatch.context() as patched:
        patched.setattr(child, "_started", killed_meanwhile)
        with pytest.raises(ChildDied):
            child.ask("wait")
    assert child.ask("echo", b"alive") == b"alive!"


def test_an_error_of_ours_comes_out_as_itself_and_a_bug_without_its_text(child: Child) -> None:
    with pytest.raises(PolicyRefused, match="found day"):
        child.ask("refuse")
    with pytest.raises(RuntimeError, match="KeyError") as bug:
        child.ask("break")
    assert not isinstance(bug.value, FedpeftError)
    assert "patient" not in str(bug.value)
    assert child.ask("echo", b"alive") == b"alive!"


def test_a_killed_child_is_news_at_once_and_the_next_request_starts_another(child: Child) -> None:
    first = child.ask("pid")
    with pytest.raises(ChildDied, match="SIGKILL") as died:
        child.ask("die")
    assert died.value.out_of_memory
    assert child.ask("pid") != first


def test_a_waiting_request_ends_when_the_child_is_killed_from_outside(child: Child) -> None:
    child.ask("pid")
    threading.Timer(0.1, child.kill).start()
    with pytest.raises(ChildDied):
        child.ask("wait")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_a_child_does_not_outlive_its_parent(child: Child, tmp_path: Path) -> None:
    parent = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from fedpeft.child import Child
child = Child("a_child", ["!"])
print(child.ask("pid").decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    inherited = [int(os.environ[ENVIRONMENT].partition(":")[0])] if ENVIRONMENT in os.environ else []
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, timeout=60, check=False, pass_fds=inherited
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "zombie" in Path(f"/proc/{pid}/status").read_text():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"child {pid} outlived its parent")


@pytest.mark.skipif(not can_fork(), reason="Linux")
def test_a_child_whose_fork_server_has_ended_is_an_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ForkServer([], what="tests") as ended:
        monkeypatch.setenv(ENVIRONMENT, ended.environment[ENVIRONMENT])
        ended._process.kill()
        ended._process.wait()
        child = Child("a_child", ["!"])
        assert child.ask("echo", b"alive") == b"alive!"
        child.close()


def test_a_child_that_cannot_be_started_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")
    with pytest.raises(ChildDied, match="could not be started"):
        Child("a_child").ask("echo")
