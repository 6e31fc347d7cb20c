"""A coordinator's home as one file: nothing but what was written comes back, and what comes back starts nothing."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, DataInvalid, FedpeftError, IntegrityFailed, ResourceMissing
from fedpeft.home_schema import keep_schema, schema_of
from fedpeft_client.home import SCHEMA as DEVICE_SCHEMA
from fedpeft_client.home import DeviceHome
from fedpeft_server.backup.archive import RECORD
from fedpeft_server.backup.restore import restore
from fedpeft_server.backup.save import back_up
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import SCHEMA, CoordinatorHome, Settings
from fedpeft_server.jobs.job_queue import JobQueue

CLOCK = SystemClock()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    """A home with a token and a base."""
    made = CoordinatorHome(tmp_path_factory.mktemp("fed"))
    initialise(made, Settings(hosts=("localhost",)), clock=CLOCK, entropy=os_entropy)
    registry = Registry(made.registry)
    about = {"host": "localhost", "enrol_port": 1, "ca_fingerprint": bytes(32), "ttl_s": 600.0, "uses": 1}
    Tokens(registry, CLOCK).create(**about, auto_approve=True, organisation="", entropy=os_entropy)  # type: ignore[arg-type]
    registry.close()
    (made.bases / "sha256").mkdir(parents=True)
    (made.bases / "sha256" / "weights").write_bytes(bytes(range(256)) * 9000)
    return made


@pytest.fixture(scope="module")
def archive(home: CoordinatorHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return back_up(home, tmp_path_factory.mktemp("backups"), clock=CLOCK)[0]


def test_a_home_comes_back_as_it_was_with_its_keys_and_without_good_tokens(
    home: CoordinatorHome, archive: Path, tmp_path: Path
) -> None:
    assert archive.stat().st_mode & 0o777 == 0o600
    restore(archive, tmp_path / "again", clock=CLOCK)
    again = CoordinatorHome(tmp_path / "again")
    assert again.settings() == home.settings()
    for name in ("pki/ca.key", "pki/identity.seed", "bases/sha256/weights"):
        assert (again.path / name).read_bytes() == (home.path / name).read_bytes()
    assert (again.path / "pki/ca.key").stat().st_mode & 0o777 == 0o600
    assert again.path.stat().st_mode & 0o777 == 0o700
    registry = Registry(again.registry)
    assert [token.revoked for token in Tokens(registry, CLOCK).ls()] == [True]
    registry.close()
    last = list(AuditLog(again.audit, CLOCK).records())[-1]
    assert (last.event.value, last.detail["nothing_since"]) == ("restored", 0)


def test_nothing_is_overwritten(home: CoordinatorHome, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceMissing, match="new file"):
        back_up(home, archive, clock=CLOCK)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceMissing, match="Expected nothing"):
        restore(archive, tmp_path, clock=CLOCK)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as tar:
        return [(entry, (tar.extractfile(entry) or io.BytesIO()).read()) for entry in tar]


def rewritten(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for entry, content in entries:
            tar.addfile(entry, io.BytesIO(content))
    return path


def entry(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, len(content), link
    return made, content


HOSTILE = {
    "a path above": entry("../escaped", b"x"),
    "an absolute path": entry("/tmp/fedpeft-escaped", b"x"),  # noqa: S108  the attack's
    "a link": entry("pki/link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": entry("pki/link", kind=tarfile.LNKTYPE, link="pki/ca.key"),
    "a device": entry("pki/null", kind=tarfile.CHRTYPE),
    "a file that the record does not name": entry("pki/another", b"x"),
    "a file twice": entry("coordinator.json", b"{}"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_archive_with_more_than_its_record_says_makes_no_home(what: str, archive: Path, tmp_path: Path) -> None:
    changed = rewritten(tmp_path / "changed.tar", [*members(archive), HOSTILE[what]])
    with pytest.raises(IntegrityFailed):
        restore(changed, tmp_path / "deep" / "home", clock=CLOCK)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["changed.tar", "deep"]


def test_no_changed_cut_or_missing_member_makes_a_home(archive: Path, tmp_path: Path) -> None:
    whole = members(archive)
    target = tmp_path / "home"
    for index in range(len(whole)):
        without = whole[:index] + whole[index + 1 :]
        with pytest.raises(IntegrityFailed):
            restore(rewritten(tmp_path / "changed.tar", without), target, clock=CLOCK)
        made, content = whole[index]
        flipped = content[:-1] + bytes([content[-1] ^ 1]) if content else b""
        if content and made.name != RECORD:
            changed = rewritten(tmp_path / "changed.tar", [*whole[:index], (made, flipped), *whole[index + 1 :]])
            with pytest.raises(IntegrityFailed):
                restore(changed, target, clock=CLOCK)
    payload = archive.read_bytes()
    for size in (0, 1, 511, 512, len(payload) // 2, len(payload) - 2 * 10240):
        (tmp_path / "changed.tar").write_bytes(payload[:size])
        with pytest.raises(FedpeftError):
            restore(tmp_path / "changed.tar", target, clock=CLOCK)
    assert [path.name for path in tmp_path.iterdir()] == ["changed.tar"]


def with_record(archive: Path, path: Path, **changes: object) -> Path:
    whole = members(archive)
    made, content = whole[-1]
    record = json.dumps({**json.loads(content), **changes}).encode()
    made.size = len(record)
    return rewritten(path, [*whole[:-1], (made, record)])


@pytest.mark.parametrize("changes", [{"format": 2}, {"schema": SCHEMA + 1, "fedpeft": "9.9.9"}])
def test_a_backup_of_a_later_version_is_refused_with_the_reason(
    changes: dict[str, object], archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityFailed, match="later"):
        restore(with_record(archive, tmp_path / "later.tar", **changes), tmp_path / "home", clock=CLOCK)


def test_a_backup_of_a_running_coordinator_is_never_taken_for_the_last_word(archive: Path, tmp_path: Path) -> None:
    ran = with_record(archive, tmp_path / "ran.tar", running=True)
    with pytest.raises(DataInvalid, match="ran while"):
        restore(ran, tmp_path / "home", clock=CLOCK, nothing_since=True)
    restore(ran, tmp_path / "home", clock=CLOCK)


def test_a_queued_run_of_a_restored_home_begins_only_when_it_is_told_to(home: CoordinatorHome, tmp_path: Path) -> None:
    queue = JobQueue(home.path / "queue")
    text = '[run]\nname = "held"\n[base]\nmodel = "m"\n[task]\nkind = "causal-lm"\n[adapter]\nlora = {}\n'
    job = queue.submit(text, source="run.toml")
    path, _ = back_up(home, tmp_path / "one.tar", clock=CLOCK, bases=False)
    restore(path, tmp_path / "home", clock=CLOCK)
    restore(path, tmp_path / "moved", clock=CLOCK, nothing_since=True)
    for name, waits in (("home", False), ("moved", True)):
        found = JobQueue(tmp_path / name / "queue").next()
        assert (found is not None) == waits
    held = JobQueue(tmp_path / "home" / "queue")
    assert held.resume(held.job(str(job.number))).state.value == "queued"


@pytest.mark.parametrize("role", ["coordinator", "client"])
def test_a_newer_home_is_refused_by_every_command_with_the_version_that_it_needs(
    role: str, home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = {"coordinator": SCHEMA, "client": DEVICE_SCHEMA}[role] + 1
    (tmp_path / "coordinator.json").write_text(home.settings().to_json())
    (tmp_path / "schema.json").write_text(json.dumps({"schema": newer, "fedpeft": "9.9.9"}))
    commands = {"coordinator": ("status", "up", "resume 1"), "client": ("status", "run", "runs ls")}[role]
    for command in commands:
        assert main([role, *command.split(), "--home", str(tmp_path)]) == 6
        assert "Use 9.9.9 or later" in capsys.readouterr().err


def test_a_home_of_before_schemas_is_of_the_first_one_and_is_marked_by_its_owner(tmp_path: Path) -> None:
    assert schema_of(tmp_path) == (1, "")
    keep_schema(tmp_path, 2)
    assert schema_of(tmp_path)[0] == 2
    with pytest.raises(IntegrityFailed):
        keep_schema(tmp_path, 1)
    (tmp_path / "schema.json").write_text('{"schema": "2"}')
    with pytest.raises(IntegrityFailed):
        DeviceHome(tmp_path).last_enrolment()
    with pytest.raises((IntegrityFailed, ConfigInvalid)):
        CoordinatorHome(tmp_path).settings()
