"""A file that a command is told to read and cannot: an error that says so and the right code, never a wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.errors import ConfigInvalid
from fedpeft_client.site import Site

COMMANDS = {
    "config validate": ["config", "validate", "FILE"],
    "config show": ["config", "show", "FILE"],
    "simulate": ["simulate", "FILE"],
    "sweep": ["sweep", "FILE", "--vary", "rounds.count=1,2"],
    "local up": ["local", "up", "FILE"],
    "coordinator submit": ["coordinator", "submit", "FILE"],
    "coordinator status": ["coordinator", "status", "--coordinator", "https://127.0.0.1:9", "--token-file", "FILE"],
    "client join": ["client", "join", "--token-file", "FILE"],
    "data check": ["data", "check", "FILE"],
    "init": ["init", "--data", "FILE"],
    "adapter serve": ["adapter", "serve", "run", "--token-file", "FILE"],
    "privacy verify": ["privacy", "verify", "FILE"],
}
KINDS = ("pipe", "folder", "dangling link", "endless")


def _make(kind: str, place: Path) -> Path:
    if kind == "endless":
        return Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("nowhere")
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_read_ends_with_an_error(command: str, tmp_path: Path) -> None:
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        file = _make(kind, folder / "given.csv")
        words = [str(file) if word == "FILE" else word for word in COMMANDS[command]]
        before = sorted(folder.rglob("*"))
        done = subprocess.run(
            [sys.executable, "-m", "fedpeft", *words],
            cwd=folder,
            env={**os.environ, "FEDPEFT_HOME": str(tmp_path / "home")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = done.stderr + done.stdout
        assert 1 < done.returncode < 9, (kind, said)
        assert "Usage:" not in said or "Invalid value" in said, (kind, said)  # not about a misspelt option
        assert str(file) in said or kind == "endless", (kind, said)
        assert "this is a bug" not in said, (kind, said)
        assert "Traceback" not in said, (kind, said)
        assert sorted(folder.rglob("*")) == before, kind


def test_a_sites_rules_in_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "site.toml")
    with pytest.raises(ConfigInvalid, match="nobody writes to"):
        Site.load(tmp_path / "site.toml")
