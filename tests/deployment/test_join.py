"""Joining a real coordinator over loopback: the ceremony, and everybody who tries to get round it."""

import shutil
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedpeft.clock import SystemClock
from fedpeft.deployment.token import JoinToken
from fedpeft.errors import ConfigInvalid, IntegrityFailed, NotEnrolled, ResourceMissing
from fedpeft.secagg.primitives import Secret
from fedpeft_client.connection.grpc_client import Link, Unreachable, pinned_authority
from fedpeft_client.enrolment.keys import new_device_key, public_key
from fedpeft_client.enrolment.membership import finish_rotation, leave, renew_if_due, rotate_key
from fedpeft_client.home import DeviceHome
from fedpeft_server.enrolment.registry import Status

Coordinator = Any  # see conftest.py
Join = Callable[..., tuple[DeviceHome, object]]


class ShiftedClock(SystemClock):
    """This machine's clock, set wrong."""

    def __init__(self, by_s: float) -> None:
        self._by = timedelta(seconds=by_s)

    def utc(self) -> datetime:
        return super().utc() + self._by


def test_an_automatic_token_enrols_a_device_and_its_keys_stay_private(coordinator: Coordinator, device: Join):
    token = coordinator.token(organisation="clinic")
    home, enrolment = device(token, "auto")
    assert (enrolment.device, enrolment.organisation) == ("auto", "clinic")
    known = coordinator.registry.device("auto")
    assert known.status is Status.ACTIVE
    assert known.node_key == public_key(home.device_key.read_bytes())
    assert known.identity == home.identity().public
    assert enrolment.coordinator_key == coordinator.home.identity().public.hex()
    for path in (home.device_key, home.identity_seed, home.enrolment_file, coordinator.home.ca_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.keys.stat().st_mode) == 0o700
    assert not home.token.exists()
    with Link.of_home(home) as link:
        link.greet()
    secret = JoinToken.from_text(token).secret.value
    written = [path.read_bytes() for path in coordinator.home.path.rglob("*") if path.is_file()]
    assert not any(secret in content or secret.hex().encode() in content for content in written)


def test_approval_needs_the_code_that_the_device_shows(coordinator: Coordinator, device: Join):
    token, codes = coordinator.token(auto=False), []
    home, enrolment = device(token, "ward-b", on_waiting=codes.append)
    assert enrolment is None
    assert codes == [coordinator.registry.device("ward-b").code]
    with pytest.raises(NotEnrolled, match="approval"):
        home.enrolment()
    with pytest.raises(ConfigInvalid, match="code"):
        coordinator.admission.approve("ward-b", "AAAA-AAAA")
    coordinator.admission.approve("ward-b", codes[0].lower().replace("-", ""))
    _, enrolment = device(token, "ward-b", home=home)
    assert enrolment is not None
    assert ("approved", "ward-b") in coordinator.events()


def test_a_device_that_waits_is_let_in_as_soon_as_it_is_approved(coordinator: Coordinator, device: Join):
    def approve(_seconds: float) -> None:
        waiting = coordinator.registry.device("ward-c")
        if waiting.status is Status.PENDING:
            coordinator.admission.approve("ward-c", waiting.code)

    _, enrolment = device(coordinator.token(auto=False), "ward-c", wait_s=60.0, pause=approve)
    assert enrolment.device == "ward-c"


def test_the_same_keys_get_the_same_answer_and_spend_one_use(coordinator: Coordinator, device: Join):
    token = coordinator.token()
    home, _ = device(token, "again")
    certificate = home.device_certificate.read_bytes()
    home.enrolment_file.unlink()  # as if the answer had been lost
    home.device_certificate.unlink()
    device(token, "again", home=home)
    assert home.device_certificate.read_bytes() == certificate


def test_another_key_on_a_spent_token_is_refused_and_audited(coordinator: Coordinator, device: Join):
    token = coordinator.token()
    device(token, "first")
    with pytest.raises(NotEnrolled, match="used up"):
        device(token, "thief")
    assert coordinator.events()[-1] == ("enrol-refused", "thief")


def test_a_wrong_pin_is_noticed_before_anything_is_sent(coordinator: Coordinator, device: Join, tmp_path: Path):
    before = len(coordinator.events())
    with pytest.raises(IntegrityFailed, match="nothing was sent"):
        device(coordinator.token(ca_fingerprint=bytes(32)), "victim")
    assert not (tmp_path / "victim").exists()
    assert len(coordinator.events()) == before


def test_only_a_handshake_reaches_an_impostor():
    """A plain TCP listener records every byte: there is a TLS ClientHello, and no token or name in it."""
    heard = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.extend(connection.recv(65536))

        thread = threading.Thread(target=listen)
        thread.start()
        token = JoinToken(
            host="127.0.0.1",
            enrol_port=listener.getsockname()[1],
            ca_fingerprint=bytes(32),
            token_id="the-token",
            secret=Secret(b"sixteen bytes!!!"),
            expires_utc=0,
        )
        with pytest.raises(Unreachable):
            pinned_authority(token)
        thread.join()
    assert heard[0] == 0x16
    assert b"the-token" not in heard
    assert b"sixteen" not in heard


def test_a_forged_secret_and_an_unknown_token_sound_the_same(coordinator: Coordinator, device: Join):
    token = JoinToken.from_text(coordinator.token())
    answers = []
    for forged in (replace(token, secret=Secret(bytes(16))), replace(token, token_id="ffffffff")):
        with pytest.raises(NotEnrolled) as refused:
            device(forged.to_text(), "forger")
        answers.append(str(refused.value))
    assert answers[0] == answers[1]
    assert "not-accepted" in answers[0]


@pytest.mark.parametrize("how", ["expired", "revoked"])
def test_a_token_that_is_over_is_refused_with_the_reason(how: str, coordinator: Coordinator, device: Join):
    text = coordinator.token()
    token_id = JoinToken.from_text(text).token_id
    if how == "expired":
        with coordinator.registry.change() as db:
            db.execute("UPDATE tokens SET expires_utc = 1 WHERE token_id = ?", (token_id,))
    else:
        coordinator.tokens.revoke(token_id)
    with pytest.raises(NotEnrolled, match=how):
        device(text, f"late-{how}")


def test_a_name_in_use_is_refused(coordinator: Coordinator, device: Join, tmp_path: Path):
    token = coordinator.token(uses=2)
    device(token, "taken")
    with pytest.raises(NotEnrolled, match="another device is called taken"):
        device(token, "taken", home=DeviceHome(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "organisation"), [("../x", ""), ("a b", ""), ("", ""), ("x" * 64, ""), ("ok", "a\nb")]
)
def test_names_that_could_mislead_are_refused(
    name: str, organisation: str, coordinator: Coordinator, device: Join, tmp_path: Path
):
    with pytest.raises(NotEnrolled, match="malformed"):
        device(coordinator.token(), name, organisation=organisation, home=DeviceHome(tmp_path / "d"))


@pytest.mark.parametrize(("seconds", "direction"), [(30.0, "ahead of"), (-86400.0, "behind"), (5.0, "ahead of")])
def test_a_wrong_clock_is_refused_with_its_offset(
    seconds: float, direction: str, coordinator: Coordinator, device: Join
):
    with pytest.raises(ResourceMissing, match=rf"{abs(seconds):.0f}\.\d s {direction}"):
        device(coordinator.token(), "clocked", clock=ShiftedClock(seconds))


def test_a_clock_two_seconds_off_is_good_enough(coordinator: Coordinator, device: Join):
    assert device(coordinator.token(), "nearly", clock=ShiftedClock(2.0))[1] is not None


def test_a_revoked_device_hears_why_and_its_keys_never_come_back(coordinator: Coordinator, device: Join):
    home, _ = device(coordinator.token(), "lost")
    coordinator.admission.revoke("lost", "stolen laptop")
    with Link.of_home(home) as link, pytest.raises(NotEnrolled, match=r"revoked by operator .*stolen laptop"):
        link.greet()
    home.write_enrolment(replace(home.enrolment(), left="revoked"))
    keys = home.device_key.read_bytes(), home.identity_seed.read_bytes()
    fresh, enrolment = device(coordinator.token(), "lost", home=home)
    assert enrolment is not None
    assert fresh.device_key.read_bytes() != keys[0]
    copied = DeviceHome(home.path.with_name("copy"))
    copied.keys.mkdir(parents=True)
    copied.device_key.write_bytes(keys[0])
    copied.identity_seed.write_bytes(keys[1])
    with pytest.raises(NotEnrolled, match="key-retired"):
        device(coordinator.token(), "clone", home=copied)


def test_a_denied_device_hears_why(coordinator: Coordinator, device: Join):
    token = coordinator.token(auto=False)
    home, _ = device(token, "stranger")
    coordinator.admission.deny("stranger", "not on the list")
    with pytest.raises(NotEnrolled, match="not on the list"):
        device(token, "stranger", home=home)


def test_leaving_ends_the_enrolment_on_both_sides(coordinator: Coordinator, device: Join):
    home, _ = device(coordinator.token(), "leaver")
    leave(home, "moving away")
    assert coordinator.registry.device("leaver").status is Status.LEFT
    assert not home.device_key.exists()
    with pytest.raises(NotEnrolled, match="moving away"):
        home.enrolment()
    assert coordinator.events()[-1] == ("left", "leaver")


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(coordinator: Coordinator, device: Join):
    home, _ = device(coordinator.token(), "renewer")
    before = home.device_certificate.read_bytes()
    assert not renew_if_due(home, SystemClock())
    assert renew_if_due(home, ShiftedClock(20.5 * 86400))
    assert home.device_certificate.read_bytes() != before
    with Link.of_home(home) as link:
        link.greet()


def test_a_rotated_key_replaces_the_old_one_at_its_first_use(coordinator: Coordinator, device: Join, tmp_path: Path):
    home, _ = device(coordinator.token(), "rotor")
    coordinator.registry.set_node("rotor", 77)
    old = DeviceHome(tmp_path / "old")
    shutil.copytree(home.path, old.path)
    rotate_key(home)
    known = coordinator.registry.device("rotor")
    assert known.node_key == public_key(home.device_key.read_bytes())
    assert known.node_id is None
    with Link.of_home(old) as link, pytest.raises(NotEnrolled, match="key-retired"):
        link.greet()
    with Link.of_home(home) as link:
        link.greet()


def test_a_rotation_whose_answer_was_lost_locks_nobody_out(coordinator: Coordinator, device: Join):
    from fedpeft_client.enrolment.keys import signing_request

    home, _ = device(coordinator.token(), "unlucky")
    home.device_key.with_name("device.key.next").write_bytes(key := new_device_key())
    with Link.of_home(home) as link:
        link.renew(signing_request(key))  # and then the power goes
        link.greet()
    rotate_key(home)
    assert home.device_key.read_bytes() == key
    assert list(home.keys.glob("*.next")) == []
    finish_rotation(home)


def test_a_key_of_another_device_cannot_be_renewed_into(coordinator: Coordinator, device: Join):
    from fedpeft_client.enrolment.keys import signing_request

    victim, _ = device(coordinator.token(), "owner")
    home, _ = device(coordinator.token(), "envious")
    with Link.of_home(home) as link:
        answer = link.renew(signing_request(victim.device_key.read_bytes()))
    assert answer.reason.value == "key-retired"


def test_who_has_no_certificate_gets_nothing_but_enrolment(coordinator: Coordinator):
    settings = coordinator.home.settings()
    authority = coordinator.home.ca_certificate.read_bytes()
    with Link(f"127.0.0.1:{settings.enrol_port}", authority=authority) as link:
        link.greet()
        for call in (lambda: link.renew(b""), lambda: link.manifest("x"), lambda: next(link.wakes())):
            with pytest.raises(NotEnrolled, match="certificate of an enrolled device"):
                call()
    with Link(f"127.0.0.1:{settings.service_port}", authority=authority) as link, pytest.raises(Unreachable):
        link.greet()


def test_a_second_service_on_the_same_ports_is_refused(coordinator: Coordinator):
    from fedpeft_server.service.grpc_service import FleetService

    second = FleetService(
        coordinator.home,
        coordinator.registry,
        coordinator.admission,
        coordinator.board,
        SystemClock(),
        gateway=socket.socket.close,
    )
    with pytest.raises(ResourceMissing, match=str(coordinator.home.settings().enrol_port)):
        second.start()


def test_an_enrolled_home_is_not_overwritten(coordinator: Coordinator, device: Join):
    home, _ = device(coordinator.token(), "settled")
    with pytest.raises(ConfigInvalid, match="leave"):
        device(coordinator.token(), "settled", home=home)


def test_one_address_cannot_ask_without_end_and_a_token_from_there_still_joins(
    coordinator: Coordinator, device: Join, monkeypatch: pytest.MonkeyPatch
):
    from fedpeft.deployment.messages import EnrolRequest
    from fedpeft_server.rate_limit import RateLimit

    settings = coordinator.home.settings()
    monkeypatch.setattr(coordinator.service._callers, "strangers", RateLimit(per_s=0.001, burst=3, clock=SystemClock()))
    with Link(f"127.0.0.1:{settings.enrol_port}", authority=coordinator.home.ca_certificate.read_bytes()) as link:
        for _ in range(3):
            link.enrol(EnrolRequest(application=b"", proof=b""))
        with pytest.raises(Unreachable, match="too many requests"):
            link.enrol(EnrolRequest(application=b"", proof=b""))
    _, enrolment = device(coordinator.token(), "behind-the-flood")
    assert enrolment.device == "behind-the-flood"


def test_a_token_holder_who_is_refused_again_and_again_fills_no_log(coordinator: Coordinator, device: Join):
    token = coordinator.token(uses=1000)
    before = len(coordinator.events())
    for _ in range(40):
        with pytest.raises(NotEnrolled, match="letters"):
            device(token, "not a name!")
    assert len(coordinator.events()) - before <= 20
