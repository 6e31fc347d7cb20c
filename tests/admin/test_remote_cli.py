"""The same commands on the coordinator's machine and from another one: same answers, same refusals."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from administration import RUN, Port, run_of

from fedpeft.cli import main
from fedpeft.errors import NotEnrolled
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.enrolment.registry import Status
from fedpeft_server.home import SCHEMA, CoordinatorHome, Settings


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process: exit code, and what it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.fixture
def afar(port: Port, tmp_path: Path) -> Callable[[str], tuple[object, ...]]:
    """The options by which somebody with a role asks from another machine."""

    def options(role: str) -> tuple[object, ...]:
        file = tmp_path / role
        file.write_text(port.token(role) + "\n")
        return ("--coordinator", port.url, "--token-file", file)

    return options


@pytest.fixture
def here(port: Port) -> tuple[object, ...]:
    return ("--home", port.site.home.path)


READS = [
    "status --json", "runs ls", "runs show 1 --json", "clients ls --json", "clients show ward-a --json",
    "clients pending", "token ls", "admin-token ls --json", "audit --most 3",
]  # fmt: skip


def test_what_is_read_from_afar_is_what_is_read_on_the_machine(run, port, here, afar) -> None:
    port.device("ward-a")
    run_of(port)
    port.site.access.ls()
    options = afar("admin")
    for command in READS:
        (code, there), (_, from_afar) = (
            run("coordinator", *command.split(), *here),
            run("coordinator", *command.split(), *options),
        )
        if command == "status --json":  # here nobody answers on loopback; there the port itself does
            there, from_afar = (json.dumps(json.loads(text)["runs"]) for text in (there, from_afar))
        if command.startswith("clients"):
            there, from_afar = (text.replace('"online": null', '"online": false') for text in (there, from_afar))
        assert (code, there) == (0, from_afar), command


def test_a_day_of_an_operator_who_is_elsewhere(run, fresh, tmp_path) -> None:
    token = tmp_path / "token"
    token.write_text(fresh.token("admin", name="night-shift"))
    afar = ("--coordinator", fresh.url, "--token-file", token)
    code, printed = run("coordinator", "token", "create", "--uses", 2, "--organisation", "clinic", *afar)
    assert code == 0
    assert "fedpeft client join fp1." in printed
    token_id = printed.split("token ")[1].split(",")[0]
    assert f"{token_id}  good     0/2 used" in run("coordinator", "token", "ls", *afar)[1]
    assert run("coordinator", "token", "revoke", token_id, *afar)[0] == 0
    fresh.device("ward-b", Status.ACTIVE)
    assert run("coordinator", "clients", "revoke", "ward-b", "--reason", "lost", *afar)[0] == 0
    number = run_of(fresh)
    out = tmp_path / "adapter"
    assert run("coordinator", "runs", "download", number, "--out", out, *afar)[0] == 0
    assert (out / "adapter_model.safetensors").read_bytes() == b"weights " * 1000
    code, printed = run("coordinator", "runs", "show", number, *afar)
    assert (code, "devices 2/3" in printed) == (0, True)
    assert "night-shift" in run("coordinator", "audit", *afar)[1]
    assert [event for event, actor, _ in fresh.audited() if "night-shift" in actor] == [
        "token-created", "token-revoked", "revoked", "result-fetched",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "role", "code"),
    [
        ("clients approve nobody --code AAAA", "admin", 4),
        ("clients approve nobody --code AAAA", "viewer", 7),
        ("stop 99", "submitter", 3),
        ("token create --uses 200000", "admin", 3),
        ("runs download 99 --out x", "viewer", 7),
    ],
)
def test_a_refusal_from_afar_has_the_exit_code_that_it_has_on_the_machine(
    command: str, role: str, code: int, run, here, afar, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, printed = run("coordinator", *command.split(), *afar(role))
    assert found == code, printed
    assert "Traceback" not in printed
    if role != "viewer":
        assert run("coordinator", *command.split(), *here)[0] == code


def test_a_run_submitted_from_afar_names_no_path_of_the_coordinators_machine(run, port, afar, tmp_path) -> None:
    config = tmp_path / "run.toml"
    for base in ("/etc", "pypi:torch", "hub:a/b@" + "0" * 40, "../x"):
        config.write_text(
            f'[run]\nname = "x"\n[base]\nmodel = "{base}"\n[task]\nkind = "causal-lm"\n[adapter]\nlora = {{}}\n'
        )
        code, printed = run("coordinator", "submit", config, *afar("submitter"))
        assert (code, "sha256:" in printed) == (3, True)
    assert "x" not in {job.name for job in port.site.queue.jobs()}


def test_a_token_of_another_coordinator_is_shown_to_nobody(run, port, tmp_path) -> None:
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy

    other = CoordinatorHome(tmp_path / "other")
    initialise(other, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    code, printed = run("coordinator", "admin-token", "create", "me", "--home", other.path)
    token = tmp_path / "token"
    token.write_text(next(line for line in printed.splitlines() if line.startswith("fa1.")))
    code, printed = run("coordinator", "status", "--coordinator", port.url, "--token-file", token)
    assert (code, "nothing was sent" in printed) == (6, True)


@pytest.mark.parametrize(
    ("url", "token", "code"),
    [("http://localhost:1", "fa1.x", 3), ("https://localhost:1/path", "fa1.x", 3), ("https://localhost:1", "x", 3)],
)
def test_what_is_no_address_or_no_token_is_refused_without_a_traceback(url, token, code, run, tmp_path) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    found, printed = run("coordinator", "status", "--coordinator", url, "--token-file", file)
    assert (found, "Traceback" in printed) == (code, False)


def test_options_that_contradict_each_other_are_refused(run, port, tmp_path) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    assert run("coordinator", "status", "--coordinator", port.url)[0] == 2
    assert run("coordinator", "status", "--coordinator", port.url, "--token-file", file, "--home", tmp_path)[0] == 2


def test_a_home_of_before_is_brought_up_and_one_of_later_is_refused(run, tmp_path) -> None:
    home = CoordinatorHome(tmp_path / "fed")
    assert run("coordinator", "init", "--home", home.path, "--host", "localhost")[0] == 0
    kept = json.loads(home.settings_file.read_text())
    for later in ("admin_bind", "admin_port", "runs_at_once"):
        del kept[later]
    home.settings_file.write_text(json.dumps(kept))
    (home.path / "schema.json").unlink()
    code, printed = run("coordinator", "upgrade", "--home", home.path)
    assert (code, f"schema {SCHEMA}, was 1" in printed) == (0, True)
    assert json.loads(home.settings_file.read_text())["admin_port"] == 0
    assert "as it was" in run("coordinator", "upgrade", "--home", home.path)[1]
    (home.path / "schema.json").write_text(json.dumps({"schema": SCHEMA + 1, "fedpeft": "9.9.9"}))
    code, printed = run("coordinator", "upgrade", "--home", home.path)
    assert (code, "Use 9.9.9 or later" in printed) == (6, True)


def test_a_clone_without_a_device_names_whom_it_never_asks(run, fresh, tmp_path) -> None:
    for name in ("ward-a", "ward-b"):
        fresh.device(name, Status.ACTIVE)
    config, here = tmp_path / "run.toml", ("--home", fresh.site.home.path)
    config.write_text(RUN.replace("sha256:" + "0" * 64, "hub:somebody/model@" + "0" * 40))
    assert run("coordinator", "submit", config, "--without", "ward-c", *here)[0] == NotEnrolled.exit_code
    assert fresh.site.queue.jobs() == ()
    assert run("coordinator", "submit", config, "--without", "ward-a", *here)[0] == 0
    fresh.site.registry.delete(fresh.site.registry.device("ward-a"))
    assert run("coordinator", "runs", "clone", "1", "--without", "ward-b", *here)[0] == 0
    jobs = fresh.site.queue.jobs()
    assert [job.without for job in jobs] == [("ward-a",), ("ward-a", "ward-b")]
    first, second = (tomllib.loads(fresh.site.queue.text(job)) for job in jobs)
    assert first["run"].get("seed") != second["run"]["seed"], "or their first sums differ by what ward-b gave"
    assert {**second, "run": first["run"]} == first
    assert run("coordinator", "runs", "clone", "2", *here)[0] == 0
    assert tomllib.loads(fresh.site.queue.text(fresh.site.queue.jobs()[-1])) == second, "the same again is the same"
    assert "without ward-a, ward-b" in run("coordinator", "runs", "ls", *here)[1]
    assert [detail.get("without") for event, _, detail in audited(fresh)] == ["ward-a"] + 2 * ["ward-a, ward-b"]


def test_a_run_is_submitted_for_later_and_again_and_again_here_and_from_afar(run, port, fresh, tmp_path) -> None:
    config, here = tmp_path / "run.toml", ("--home", fresh.site.home.path)
    config.write_text(RUN.replace("sha256:" + "0" * 64, "hub:somebody/model@" + "0" * 40))
    code, printed = run("coordinator", "submit", config, "--at", "2026-12-08T02:00+01:00", "--every", "7d", *here)
    assert (code, "begins 2026-12-08T01:00+00:00, repeats every 604800 s" in printed) == (0, True), printed
    (job,) = fresh.site.queue.jobs()
    assert (job.start_at, job.every_s) == (1_796_691_600, 604_800)
    assert "begins 2026-12-08T01:00" in run("coordinator", "runs", "ls", *here)[1]
    shown = json.loads(run("coordinator", "runs", "ls", "--json", *here)[1])
    assert (shown[0]["start_at"], shown[0]["every_s"]) == (1_796_691_600, 604_800)
    assert run("coordinator", "submit", config, "--every", "1h", *here)[0] == 0
    assert fresh.site.queue.jobs()[1].start_at > 0, "from now on"
    for wrong in (("--at", "tomorrow"), ("--at", "2026-13-01"), ("--every", "7"), ("--every", "week")):
        assert run("coordinator", "submit", config, *wrong, *here)[0] == 2
    assert run("coordinator", "submit", config, "--every", "30s", *here)[0] == 3
    assert len(fresh.site.queue.jobs()) == 2


def audited(port: Port) -> list[tuple[str, str, dict[str, object]]]:
    """What was submitted, by the audit log."""
    records = port.site.audit.records()
    return [(r.event.value, r.actor, dict(r.detail)) for r in records if r.event.value == "run-submitted"]
