"""Enrolment from the command line, as operator and device owner type it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft.cli import main
from fedpeft_client.site import Site

Coordinator = Any  # see conftest.py


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process: exit code, and what it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def join_command(printed: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.startswith("fedpeft client join fp1.")]
    return line.split()[-1]


def test_init_makes_a_home_once(run: Callable, tmp_path: Path):
    home = tmp_path / "fed"
    code, printed = run("coordinator", "init", "--home", home, "--host", "fed.example")
    assert code == 0
    assert f"fedpeft coordinator up --home {home}" in printed
    assert (home / "pki/ca.key").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    before = (home / "pki/ca.crt").read_bytes()
    code, printed = run("coordinator", "init", "--home", home, "--host", "fed.example")
    assert code == 3
    assert "found one" in printed
    assert (home / "pki/ca.crt").read_bytes() == before


def test_one_port_for_all_is_said_and_not_beside_others(run: Callable, tmp_path: Path):
    code, printed = run("coordinator", "init", "--home", tmp_path / "one", "--host", "fed.example", "--port", 443)
    assert (code, "fed.example on port 443: open it" in printed) == (0, True)
    settings = json.loads((tmp_path / "one" / "coordinator.json").read_text())
    assert {settings[name] for name in ("fleet_port", "service_port", "enrol_port")} == {443}
    options = ("--host", "fed.example", "--port", 443, "--enrol-port", 9000)
    code, printed = run("coordinator", "init", "--home", tmp_path / "other", *options)
    assert (code, "give one port or three" in printed) == (2, True)
    options = ("--host", "fed.example", "--fleet-port", 9000, "--enrol-port", 9000)
    code, printed = run("coordinator", "init", "--home", tmp_path / "other", *options)
    assert (code, "different ports" in printed) == (3, True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("host", ["", "a b", "ümlaut"])
def test_a_host_that_no_certificate_can_name_is_refused(host: str, run: Callable, tmp_path: Path):
    code, printed = run("coordinator", "init", "--home", tmp_path / "fed", "--host", host)
    assert code == 3
    assert "Traceback" not in printed


def test_the_whole_ceremony(run: Callable, coordinator: Coordinator, tmp_path: Path):
    at = ("--home", coordinator.home.path)
    here = ("--home", tmp_path / "ward")
    (tmp_path / "notes.jsonl").write_text('{"text": "a", "label": "b"}\n')
    code, printed = run("coordinator", "token", "create", *at, "--organisation", "clinic")
    assert code == 0
    word = join_command(printed)
    joining = ("client", "join", word, *here, "--name", "ward-x", "--data", tmp_path / "notes.jsonl", "--wait", "0")
    code, printed = run(*joining)
    assert code == 0
    assert "not approved yet" in printed
    shown = next(line.split()[-1] for line in printed.splitlines() if "clients approve ward-x" in line)
    assert Site.load(tmp_path / "ward/site.toml").data.source == str(tmp_path / "notes.jsonl")
    assert run("client", "status", *here)[1].startswith("ward-x waits")
    assert json.loads(run("client", "status", *here, "--json")[1])["state"] == "waits for approval"
    assert shown in run("coordinator", "clients", "pending", *at)[1]
    assert run("coordinator", "clients", "approve", "ward-x", "--code", "AAAA-AAAA", *at)[0] == 3
    assert run("coordinator", "clients", "approve", "ward-x", "--code", shown, *at)[0] == 0
    code, printed = run("client", "join", *here)
    assert (code, "is enrolled" in printed) == (0, True)
    code, printed = run("client", "status", *here)
    assert (code, "answers" in printed) == (0, True)
    facts = json.loads(run("client", "status", *here, "--json")[1])
    assert (facts["device"], facts["state"], facts["organisation"]) == ("ward-x", "enrolled", "clinic")
    assert (facts["troubles"], facts["runs_waiting"], facts["process"]) == ([], 0, None)
    assert run("client", "rotate-key", *here)[0] == 0
    assert "active" in run("coordinator", "clients", "ls", *at)[1]
    assert "clinic" in run("coordinator", "clients", "show", "ward-x", *at)[1]
    assert run("coordinator", "clients", "revoke", "ward-x", "--reason", "lost", *at)[0] == 0
    code, printed = run("client", "status", *here)
    assert code == 4
    assert "lost" in printed
    assert run("client", "join", word, *here)[0] == 3


def test_tokens_are_listed_and_revoked_without_their_secret(run: Callable, coordinator: Coordinator, tmp_path: Path):
    at = ("--home", coordinator.home.path)
    code, printed = run("coordinator", "token", "create", *at, "--auto-approve", "--uses", 3, "--ttl", "2h")
    word = join_command(printed)
    token_id = printed.split("token ")[1].split(",")[0]
    assert f"{token_id}  good     0/3 used" in run("coordinator", "token", "ls", *at)[1]
    assert run("coordinator", "token", "revoke", token_id, *at)[0] == 0
    assert f"{token_id}  revoked" in run("coordinator", "token", "ls", *at)[1]
    code, printed = run("client", "join", word, "--home", tmp_path / "d", "--name", "late")
    assert code == 4
    assert "revoked" in printed
    assert word not in coordinator.home.audit.read_text()
    assert run("coordinator", "token", "create", *at, "--ttl", "soon")[0] == 2
    assert run("coordinator", "token", "revoke", "nothing", *at)[0] == 3


@pytest.mark.parametrize("word", ["fp1.", "fp1.!!!!", "hello", "fp1.QUJDREVGR0g"])
def test_a_word_that_is_no_token_exits_4_without_a_traceback_or_an_echo(word: str, run: Callable, tmp_path: Path):
    code, printed = run("client", "join", word, "--home", tmp_path)
    assert code == 4
    assert "copy the whole line" in printed
    assert "Traceback" not in printed


def test_leaving_from_the_command_line(run: Callable, coordinator: Coordinator, tmp_path: Path):
    here = ("--home", tmp_path / "d")
    word = tmp_path / "word"
    word.write_text(coordinator.token() + "\n")
    assert run("client", "join", "fp1.x", "--token-file", word, *here)[0] == 2
    assert run("client", "join", "--token-file", word, *here, "--name", "goer")[0] == 0
    assert run("client", "leave", *here, "--yes", "--reason", "done")[0] == 0
    code, printed = run("client", "status", *here)
    assert (code, "it left: done" in printed) == (4, True)


def test_who_is_nowhere_hears_what_to_do(run: Callable, tmp_path: Path):
    assert run("client", "status", "--home", tmp_path)[0] == 4
    assert run("client", "join", "--home", tmp_path)[0] == 2
    assert run("coordinator", "clients", "ls", "--home", tmp_path)[0] == 3
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_both_roles_loads_nothing_heavy():
    code = (
        "import sys; from fedpeft.cli import main\n"
        "assert main(['coordinator', 'clients', '--help']) == main(['client', 'join', '--help']) == 0\n"
        "heavy = {'torch', 'flwr', 'grpc', 'pydantic', 'cryptography', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert answer.stderr.strip() == "[]"


def test_doctor_finds_a_coordinator_fit_but_for_its_missing_base(run: Callable, coordinator: Coordinator):
    code, printed = run("doctor", "--role", "coordinator", "--home", coordinator.home.path)
    failed = [line for line in printed.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1, printed
    assert "bases" in failed[0]
    assert "the coordinator answers" in printed
    assert code == 3
    document = json.loads(run("doctor", "--role", "coordinator", "--home", coordinator.home.path, "--json")[1])
    assert document["exit_code"] == 3
    assert [one["check"] for one in document["checks"] if not one["sound"]] == ["bases"]


def test_doctor_names_a_readable_key_a_broken_audit_log_and_a_taken_port(run: Callable, tmp_path: Path):
    import socket

    home = tmp_path / "fed"
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        at = ("--home", home, "--host", "127.0.0.1", "--bind", "127.0.0.1", "--fleet-port", port)
        assert run("coordinator", "init", *at)[0] == 0
        (home / "pki/ca.key").chmod(0o644)
        (home / "audit.jsonl").write_text("{}\n")
        code, printed = run("doctor", "--role", "coordinator", "--home", home)
    failed = {line.split()[1] for line in printed.splitlines() if line.startswith("FAIL")}
    assert {"secrets", "audit", "fleet"} <= failed
    assert "chmod 600" in printed
    assert code != 0


def test_doctor_finds_what_a_device_lacks(run: Callable, coordinator: Coordinator, tmp_path: Path):
    here = ("--home", tmp_path / "d")
    assert run("doctor", "--role", "client", *here)[0] == 4
    (tmp_path / "rows.jsonl").write_text("{}\n")
    joining = ("client", "join", coordinator.token(), *here, "--name", "patient", "--data", tmp_path / "rows.jsonl")
    assert run(*joining)[0] == 0
    code, printed = run("doctor", "--role", "client", *here)
    failed = [line for line in printed.splitlines() if line.startswith("FAIL")]
    assert code == 5  # there is no gateway in this coordinator
    assert len(failed) == 1, printed
    assert "fleet port" in failed[0]
    assert "s from the coordinator's" in printed
    coordinator.admission.revoke("patient", "cured")
    code, printed = run("doctor", "--role", "client", *here)
    assert (code, "cured" in printed) == (4, True)
