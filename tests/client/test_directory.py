"""The site's own directory: what it remembers, what it refuses, and that nobody else writes it."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedpeft.cli import cli
from fedpeft.entropy import os_entropy
from fedpeft.errors import IntegrityFailed
from fedpeft.ids import ParticipantId
from fedpeft.secagg import IdentityKey, Participant
from fedpeft_client.enrolment.directory import SiteDirectory
from fedpeft_client.home import DeviceHome, Enrolment


def a_home(path: Path) -> DeviceHome:
    home = DeviceHome(path)
    home.keys.mkdir(parents=True)
    home.identity_seed.write_bytes(os_entropy(32))
    home.write_enrolment(
        Enrolment(
            device="ward-1",
            organisation="clinic-1",
            host="localhost",
            fleet_port=1,
            service_port=2,
            coordinator_key="00" * 32,
            ca_fingerprint="00" * 32,
        )
    )
    return home


def a_roster(count: int) -> list[Participant]:
    return [
        Participant(
            participant_id=ParticipantId(i),
            device=f"ward-{i}",
            organisation=f"clinic-{i}",
            identity=IdentityKey.generate(os_entropy).public,
        )
        for i in range(1, count + 1)
    ]


def test_the_first_roster_is_believed_and_remembered(tmp_path: Path) -> None:
    home, roster = a_home(tmp_path), a_roster(3)
    assert SiteDirectory(home, "confirm").admit(roster) == 0
    again = SiteDirectory(home, "confirm")
    assert [entry.device for entry in again.entries()] == ["ward-1", "ward-2", "ward-3"]
    assert again.admit(roster) == 0


@pytest.mark.parametrize("mode", ["follow", "confirm", "pinned"])
@pytest.mark.parametrize(
    "change",
    [
        {"organisation": "elsewhere"},
        {"identity": IdentityKey.generate(os_entropy).public},
        {"device": "ward-9"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_device_never_changes_its_organisation_key_or_name(tmp_path: Path, mode: str, change: dict) -> None:
    home, roster = a_home(tmp_path), a_roster(3)
    directory = SiteDirectory(home, mode)  # type: ignore[arg-type]
    directory.admit(roster)
    before = home.directory.read_bytes()
    judged = directory.admit([*roster[:2], replace(roster[2], **change)])
    assert isinstance(judged, str)
    assert "ward-3" in judged
    assert home.directory.read_bytes() == before, "a roster that is refused teaches nothing"


@pytest.mark.parametrize(("mode", "judged"), [("follow", 0), ("confirm", 2)])
def test_new_devices_are_followed_or_counted(tmp_path: Path, mode: str, judged: int) -> None:
    home, roster = a_home(tmp_path), a_roster(5)
    directory = SiteDirectory(home, mode)  # type: ignore[arg-type]
    directory.admit(roster[:3])
    assert directory.admit(roster) == judged
    assert directory.admit(roster) == judged, "being seen twice confirms nobody"
    assert directory.confirm() == 2
    assert directory.admit(roster) == 0


def test_a_pinned_directory_refuses_strangers(tmp_path: Path) -> None:
    home, roster = a_home(tmp_path), a_roster(4)
    SiteDirectory(home, "follow").admit(roster[:3])
    judged = SiteDirectory(home, "pinned").admit(roster)
    assert isinstance(judged, str)
    assert "ward-4" in judged


def test_a_changed_byte_of_the_file_is_noticed(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    SiteDirectory(home).admit(a_roster(3))
    content = home.directory.read_bytes()
    for place in (0, 64, len(content) - 3):
        home.directory.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(IntegrityFailed, match="directory"):
            SiteDirectory(home).entries()


def test_the_same_devices_give_the_same_fingerprint_at_every_site(tmp_path: Path) -> None:
    roster = a_roster(4)
    one, other = SiteDirectory(a_home(tmp_path / "one")), SiteDirectory(a_home(tmp_path / "other"))
    one.admit(roster)
    other.admit(roster[:3])
    assert one.fingerprint() != other.fingerprint()
    other.admit(roster[::-1])
    assert one.fingerprint() == other.fingerprint()


def test_the_command_lists_confirms_and_forgets(tmp_path: Path) -> None:
    home, roster = a_home(tmp_path), a_roster(4)
    directory = SiteDirectory(home)
    directory.admit(roster[:3])
    directory.admit([replace(roster[3], organisation="clinic\x1b[2J")])
    listed = CliRunner().invoke(cli, ["client", "directory", "--home", str(tmp_path)])
    assert listed.exit_code == 0, listed.output
    assert "not confirmed" in listed.output
    assert "\x1b" not in listed.output
    confirmed = CliRunner().invoke(cli, ["client", "directory", "--confirm", "--home", str(tmp_path)])
    assert "1 of them newly confirmed" in confirmed.output
    forgotten = CliRunner().invoke(cli, ["client", "directory", "--forget", "ward-4", "--home", str(tmp_path)])
    assert "3 devices" in forgotten.output
    unknown = CliRunner().invoke(cli, ["client", "directory", "--forget", "ward-4", "--home", str(tmp_path)])
    assert unknown.exit_code != 0
