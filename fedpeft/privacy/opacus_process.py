"""The process that runs Opacus's accountants: one question and one answer per line.

It starts with the first question and ends by itself when nobody has asked for ``IDLE_S`` or whoever asked is gone, so
a coordinator does not carry it for the months that it runs.
"""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from fedpeft.errors import RunFailed
from fedpeft.privacy.opacus_accounting import Figures, Steps

__all__ = ["NoAnswer", "OpacusProcess"]

ANSWER_S = 300.0
"""For an answer, the start included; on a free machine one to three seconds are usual."""

PROGRAM = "fedpeft.privacy.opacus_accounting"


class NoAnswer(RunFailed):
    """The process failed, or took too long."""


class OpacusProcess:
    """Answers questions; may be called from several threads."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, steps: Sequence[Steps], delta: float, near: float) -> Figures:
        """As ``opacus_accounting.figures``.

        Raises:
            NoAnswer: it failed or took too long; the next question starts it anew.
        """
        question = json.dumps({"steps": [asdict(one) for one in steps], "delta": delta, "near": near}).encode() + b"\n"
        with self._lock:
            try:
                return Figures(**json.loads(self._exchange(question)))
            except (OSError, ValueError, TypeError) as error:
                self._stop()
                raise NoAnswer(f"Opacus's process failed: {type(error).__name__}") from error

    def close(self) -> None:
        """Ends it; the next question starts it anew."""
        with self._lock:
            self._stop()

    def _exchange(self, question: bytes) -> bytes:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._start()
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise OSError("not started")
        process.stdin.write(question)
        process.stdin.flush()
        if not select.select([process.stdout], [], [], ANSWER_S)[0]:
            raise TimeoutError
        return process.stdout.readline()

    def _start(self) -> None:
        if self._owner == os.getpid():  # of a parent it is not ours to end
            self._stop()
        command = [sys.executable, "-m", PROGRAM]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._owner = os.getpid()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # a part of a question may still be in the buffer, and nobody to read it
                if pipe is not None:
                    pipe.close()
