"""Whatever is done first to a coordinator's new home, the coordinator begins in it afterwards."""

import shutil
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft_server.enrolment.registry import open_registry
from fedpeft_server.home import CoordinatorHome

COMMANDS = {
    "webhook add": (0, "webhook", "add", "ops", "https://hooks.example/"),
    "webhook rm": (3, "webhook", "rm", "ops"),
    "webhook test": (3, "webhook", "test", "ops"),
    "webhook ls": (0, "webhook", "ls"),
    "backup": (0, "backup", "BACKUP"),
    "token create": (0, "token", "create"),
    "token ls": (0, "token", "ls"),
    "clients ls": (0, "clients", "ls"),
    "runs ls": (0, "runs", "ls"),
    "status": (0, "status"),
    "audit": (0, "audit"),
    "admin-token create": (0, "admin-token", "create", "me"),
    "upgrade": (0, "upgrade"),
}


@pytest.fixture(scope="module")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("new") / "fed"
    assert main(["coordinator", "init", "--home", str(path), "--host", "localhost"]) == 0
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_command_leaves_a_home_that_opens(new_home: Path, tmp_path: Path, name: str) -> None:
    home = Path(shutil.copytree(new_home, tmp_path / "fed"))
    if name == "upgrade":
        (home / "schema.json").write_text('{"schema": 1, "fedpeft": "0.0"}')
    expected, *words = COMMANDS[name]
    words = [str(tmp_path / "b.tar") if word == "BACKUP" else str(word) for word in words]
    assert main(["coordinator", *words, "--home", str(home)]) == expected
    open_registry(home / "registry.sqlite", CoordinatorHome(home).audit).close()
