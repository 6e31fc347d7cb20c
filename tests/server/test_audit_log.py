"""The audit log: what it notices, and that several processes may write it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.errors import IntegrityFailed
from fedpeft.testing.clock import FakeClock
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "audit.jsonl", FakeClock())
    for name in ("a", "b", "c"):
        log.append(AuditEvent.APPROVED, actor="operator", subject=name, detail={"code": "4F2K", "round": 3})
    return log


def test_records_are_chained_and_come_back(log: AuditLog, tmp_path: Path):
    records = list(log.records())
    assert [(record.sequence, record.subject) for record in records] == [(0, "a"), (1, "b"), (2, "c")]
    assert records[2].previous == records[1].digest
    assert log.head() == records[2].digest
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("harm", ["change", "remove", "swap", "insert"])
def test_a_changed_removed_swapped_or_inserted_line_is_noticed(harm: str, log: AuditLog, tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    lines = path.read_text().splitlines()
    if harm == "change":
        lines[1] = lines[1].replace('"b"', '"x"')
    elif harm == "remove":
        del lines[1]
    elif harm == "swap":
        lines[0], lines[1] = lines[1], lines[0]
    else:
        lines.insert(1, lines[0])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(IntegrityFailed, match="line"):
        list(log.records())


def test_a_line_rewritten_with_a_fitting_digest_breaks_the_chain_behind_it(log: AuditLog, tmp_path: Path):
    from dataclasses import replace

    path = tmp_path / "audit.jsonl"
    first, *rest = list(log.records())
    forged = replace(first, subject="x").line()
    path.write_text("\n".join([forged, *(record.line() for record in rest)]) + "\n")
    with pytest.raises(IntegrityFailed, match="line 2"):
        list(log.records())


def test_a_torn_last_line_is_cut_off_and_the_chain_goes_on(log: AuditLog, tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes() + b'{"actor":"oper')
    assert len(list(log.records())) == 3
    log.append(AuditEvent.REVOKED, actor="operator", subject="a")
    assert [record.subject for record in log.records()] == ["a", "b", "c", "a"]


def test_a_last_line_that_is_no_record_stops_writing(log: AuditLog, tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    with pytest.raises(IntegrityFailed, match="backup"):
        log.append(AuditEvent.REVOKED, actor="operator", subject="a")


def test_what_devices_say_cannot_make_lines(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl", FakeClock())
    log.append(AuditEvent.ENROL_REFUSED, actor="1.2.3.4", subject='x"}\n{"event":"approved"' + "y" * 9999)
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "enrol-refused"
    assert len(line) < 1000


def test_two_processes_write_one_chain(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from fedpeft.testing.clock import FakeClock\n"
        "from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]), FakeClock())\n"
        "for i in range(20): log.append(AuditEvent.RENEWED, actor=sys.argv[2], subject=str(i))"
    )
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    records = list(AuditLog(path, FakeClock()).records())
    assert len(records) == 40
    assert {record.actor for record in records} == {"one", "two"}
