"""The device's home."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.errors import IntegrityFailed, NotEnrolled
from fedpeft_client.home import DeviceHome, Enrolment, default_device_home

ENROLMENT = Enrolment(
    device="ward-a",
    organisation="clinic",
    host="::1",
    fleet_port=1,
    service_port=2,
    coordinator_key="00" * 32,
    ca_fingerprint="11" * 32,
)


def test_an_enrolment_comes_back_as_it_was_written_and_only_the_owner_reads_it(tmp_path: Path):
    home = DeviceHome(tmp_path)
    home.write_enrolment(ENROLMENT)
    assert home.enrolment() == ENROLMENT
    assert home.enrolment_file.stat().st_mode & 0o777 == 0o600
    assert (ENROLMENT.fleet_url, ENROLMENT.service_target) == ("https://[::1]:1", "[::1]:2")
    assert home.bases() == tmp_path / "bases"
    home.write_enrolment(replace(ENROLMENT, bases="/cache"))
    assert home.bases() == Path("/cache")


def test_who_is_not_enrolled_or_was_put_out_hears_what_to_do(tmp_path: Path):
    home = DeviceHome(tmp_path)
    with pytest.raises(NotEnrolled, match="client join"):
        home.enrolment()
    home.token.touch()
    with pytest.raises(NotEnrolled, match="approval"):
        home.enrolment()
    home.write_enrolment(replace(ENROLMENT, left="it was revoked: lost"))
    with pytest.raises(NotEnrolled, match="revoked: lost"):
        home.enrolment()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": 1}'])
def test_a_damaged_enrolment_is_refused(text: str, tmp_path: Path):
    home = DeviceHome(tmp_path)
    home.enrolment_file.write_text(text)
    with pytest.raises(IntegrityFailed, match="join again"):
        home.last_enrolment()


def test_fedpeft_home_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path))
    assert default_device_home() == tmp_path
