"""Who is let in, who counts, and what an operator sees: look-alikes, used-up tokens, ended certificates, lost files."""

import shutil
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedpeft.cli import main
from fedpeft.clock import SystemClock
from fedpeft.deployment.window import outside_window
from fedpeft.errors import ConfigInvalid, IntegrityFailed, NotEnrolled
from fedpeft.ids import NodeId
from fedpeft_client.enrolment.membership import leave
from fedpeft_client.home import DeviceHome
from fedpeft_server.enrolment.active_devices import ActiveDevices
from fedpeft_server.enrolment.certificate_authority import Authority, renew_server_certificate
from fedpeft_server.enrolment.registry import Status, open_registry

Coordinator = Any  # see conftest.py
Join = Callable[..., tuple[DeviceHome, object]]


class ShiftedClock(SystemClock):
    """This machine's clock, some days later."""

    def __init__(self, days: float) -> None:
        self._by = timedelta(days=days)

    def utc(self) -> datetime:
        return super().utc() + self._by


def applied(coordinator: Coordinator, device: Join, token: str, name: str) -> tuple[DeviceHome, str]:
    """A device that waits for approval, and its code."""
    home, _ = device(token, name)
    return home, coordinator.registry.device(name).code


def test_applications_that_are_turned_away_use_up_no_token(coordinator: Coordinator, device: Join) -> None:
    token = coordinator.token(uses=1, auto=False)
    for number in range(3):
        applied(coordinator, device, token, f"junk-{number}")
        coordinator.admission.deny(f"junk-{number}", "who are you?")
    _, code = applied(coordinator, device, token, "honest")
    assert coordinator.admission.approve("honest", code).status is Status.ACTIVE
    with pytest.raises(NotEnrolled, match="used-up"):
        device(token, "one-more")


def test_a_token_admits_no_more_devices_than_its_uses(coordinator: Coordinator, device: Join) -> None:
    token = coordinator.token(uses=1, auto=False)
    _, first = applied(coordinator, device, token, "first-of-two")
    _, second = applied(coordinator, device, token, "second-of-two")
    coordinator.admission.approve("first-of-two", first)
    with pytest.raises(ConfigInvalid, match="all 1 spent"):
        coordinator.admission.approve("second-of-two", second)


def test_so_many_applications_of_a_token_wait_and_no_more(
    coordinator: Coordinator, device: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpeft_server.enrolment.admission._MORE_WAITING", 1)
    token = coordinator.token(uses=1, auto=False)
    applied(coordinator, device, token, "waits-1")
    applied(coordinator, device, token, "waits-2")
    with pytest.raises(NotEnrolled, match="wait for the operator already"):
        device(token, "waits-3")


def test_organisations_that_read_the_same_are_one(coordinator: Coordinator, device: Join) -> None:
    token = coordinator.token(uses=10)
    said = ("Clinic-A", "clinic-a", "CLINIC-A ", "clinic-a.", "Clinic -A")
    for number, organisation in enumerate(said):
        device(token, f"of-clinic-{number}", organisation=organisation)
    found = {coordinator.registry.device(f"of-clinic-{number}").organisation for number in range(len(said))}
    assert found == {"Clinic-A"}


@pytest.mark.parametrize("alike", ["LOOKS", "looks.", "Looks"])
def test_a_name_that_reads_like_anothers_is_refused(coordinator: Coordinator, device: Join, alike: str) -> None:
    token = coordinator.token(uses=10)
    if coordinator.registry.find("looks") is None:
        device(token, "looks")
    with pytest.raises(NotEnrolled, match="looks the same"):
        device(token, alike)


def test_what_a_device_says_cannot_move_the_operators_cursor(
    coordinator: Coordinator, device: Join, capsys: pytest.CaptureFixture
) -> None:
    home, _ = device(coordinator.token(), "escaping")
    leave(home, "bye\x1b[2J\x1b]0;owned\x07\nward-0   revoked  fake line")
    assert main(["coordinator", "clients", "show", "escaping", "--home", str(coordinator.home.path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert not any(line.startswith("ward-0") for line in shown.splitlines())
    assert "\\x1b[2J" in shown


def test_a_registry_that_is_gone_is_not_begun_anew(coordinator: Coordinator, device: Join, tmp_path: Path) -> None:
    device(coordinator.token(), "known")
    audit = shutil.copy(coordinator.home.audit, tmp_path / "audit.jsonl")
    registry = tmp_path / "registry.sqlite"
    with pytest.raises(IntegrityFailed, match="restore it from a backup"):
        open_registry(registry, Path(audit))
    registry.touch()
    with pytest.raises(IntegrityFailed, match="restore it from a backup"):
        open_registry(registry, Path(audit))
    Path(audit).unlink()
    open_registry(registry, Path(audit)).close()


def test_a_device_whose_certificate_has_ended_is_told_so_and_not_counted(
    coordinator: Coordinator, device: Join
) -> None:
    device(coordinator.token(), "ended")
    found = coordinator.registry.device("ended")

    def seen(days: float) -> ActiveDevices:
        nodes: dict[bytes, NodeId] = {}
        return ActiveDevices(
            coordinator.registry,
            enrol=lambda key, _: nodes.setdefault(key, NodeId(len(nodes) + 1)),
            expel=lambda key: None,
            clock=ShiftedClock(days),
        )

    today, later = seen(0), seen(40)
    standing = later.standing(found.node_key)
    assert today.standing(found.node_key).revoked == ""
    assert "certificate of ended ended on" in standing.revoked
    assert "ask for a token" in standing.revoked
    assert (today.status(found), later.status(found)) == ("active", "expired")
    assert len(today.nodes()) > 0
    assert later.nodes() == set()
    node = coordinator.registry.device("ended").node_id
    assert (today.device(node) is not None, later.device(node)) == (True, None)


def test_the_servers_certificate_is_renewed_while_it_runs(coordinator: Coordinator) -> None:
    def shown() -> bytes:
        where = ("127.0.0.1", coordinator.home.settings().enrol_port)
        return ssl.get_server_certificate(where, ca_certs=str(coordinator.home.ca_certificate)).encode()

    before = shown()
    later = ShiftedClock(600)
    assert renew_server_certificate(coordinator.home, Authority.of_home(coordinator.home, SystemClock()), clock=later)
    assert shown() != before


def test_an_operator_approves_many_and_forgets_who_ended(
    coordinator: Coordinator, device: Join, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    token = coordinator.token(uses=3, auto=False)
    lines = [f"many-{number} {applied(coordinator, device, token, f'many-{number}')[1]}" for number in range(2)]
    (tmp_path / "codes").write_text("\n".join([*lines, "many-9 AAAA-AAAA", ""]))
    at = ["--home", str(coordinator.home.path)]
    assert main(["coordinator", "clients", "approve-all", str(tmp_path / "codes"), *at]) == 4, "one is unknown"
    assert {coordinator.registry.device(f"many-{number}").status for number in range(2)} == {Status.ACTIVE}
    assert main(["coordinator", "clients", "delete", "many-0", *at]) == 3
    key = coordinator.registry.device("many-0").node_key
    coordinator.admission.revoke("many-0", "gone")
    assert main(["coordinator", "clients", "delete", "many-0", *at]) == 0
    assert coordinator.registry.find("many-0") is None
    assert coordinator.registry.is_retired(key)
    capsys.readouterr()


def test_an_operator_renames_a_device_and_the_label_ends_with_its_key(
    coordinator: Coordinator, device: Join, capsys: pytest.CaptureFixture
) -> None:
    def says(*words: str) -> tuple[int, str]:
        code = main(["coordinator", "clients", *words, "--home", str(coordinator.home.path)])
        told = capsys.readouterr()
        return code, told.out + told.err

    token = coordinator.token(uses=3, auto=True)
    for name in ("label-a", "label-b"):
        applied(coordinator, device, token, name)
    assert says("rename", "label-a", "  Ward A,   third floor ") == (0, "label-a is called Ward A, third floor\n")
    assert "Ward A, third floor (label-a)" in says("ls")[1]
    assert coordinator.registry.find("label-a") is not None, "among devices it has the name that they signed for"
    for taken in ("ward a, THIRD floor", "WardA,third floor.", "Label-A"):
        code, told = says("rename", "label-b", taken)
        assert (code, "found it on label-a" in told) == (3, True)
    for wrong in ("x" * 65, "a\u202eb", "a\u200bb", "a\x00b", "a\udcffb"):
        assert says("rename", "label-b", wrong)[0] == 3
    assert says("rename", "label-b", "newcomer")[0] == 0
    with pytest.raises(NotEnrolled, match="operators call another device newcomer"):
        applied(coordinator, device, token, "newcomer")
    assert says("rename", "label-b", "")[0] == 0
    assert says("rename", "nobody", "x")[0] == 4
    coordinator.admission.revoke("label-a", "gone")
    coordinator.admission.delete("label-a")
    assert says("rename", "label-b", "Ward A, third floor")[0] == 0, "the label is free again"
    assert says("rename", "label-b", "") == (0, "label-b is called label-b\n")


@pytest.mark.parametrize(
    ("ours", "theirs", "works"),
    [
        ("0.1.0", "0.1.9", True),
        ("0.1.0", "0.2.0", False),
        ("1.2.0", "1.9.3", True),
        ("1.2.0", "2.0.0", False),
        ("0.1.0", "", False),
        ("0.1.0", "\x1b[2J", False),
    ],
)
def test_versions_outside_the_window_are_named(ours: str, theirs: str, works: bool) -> None:
    assert (outside_window(ours, theirs) == "") == works
