"""The ledger under crash, replay, restore and rivals."""

import hashlib
import math
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import BudgetExhausted, IntegrityFailed, ResourceMissing
from fedpeft.privacy import Budget, PrivacyLedger, Release, epsilon, opinions
from fedpeft.privacy.ledger import read_ledger

BUDGET = Budget(epsilon=8.0, delta=1e-5)
ONE = Release(noise_multiplier=4.0, shares=3, share_sigma=1e5, parameters=1000, devices=5)


def opened(folder: Path, budget: Budget = BUDGET) -> PrivacyLedger:
    return PrivacyLedger(folder / "ledger.jsonl", witness=folder / "elsewhere" / "witness", budget=budget)


def charged(folder: Path, count: int) -> None:
    with opened(folder) as ledger:
        for number in range(len(ledger.entries), count):
            ledger.charge(f"round {number}", ONE)


def test_what_is_spent_survives_a_restart(tmp_path: Path) -> None:
    charged(tmp_path, 3)
    with opened(tmp_path) as ledger:
        assert [entry.label for entry in ledger.entries] == ["round 0", "round 1", "round 2"]
        assert ledger.spent_by(lambda _: True, 1e-5) == epsilon([(ONE, 3)], 1e-5)
        assert ledger.spent() == opinions([ONE] * 3, 1e-5).charged


def test_a_charge_past_the_budget_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        number = 0
        while not ledger.would_exceed(ONE):
            ledger.charge(f"round {number}", ONE)
            number += 1
        before = ledger.path.read_bytes()
        with pytest.raises(BudgetExhausted, match="nothing was released") as refused:
            ledger.charge("one more", ONE)
        assert refused.value.exit_code == 7
        assert ledger.path.read_bytes() == before
        assert ledger.spent() <= BUDGET.epsilon < epsilon([(ONE, number + 1)], 1e-5)


def test_would_exceed_counts_what_is_still_to_come(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        fitting = next(n for n in range(1, 10_000) if epsilon([(ONE, n + 1)], 1e-5) > BUDGET.epsilon)
        assert not ledger.would_exceed(ONE, times=fitting)
        assert ledger.would_exceed(ONE, times=fitting + 1)


def test_a_repeated_label_is_charged_once(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.charge("round 1", ONE)
        ledger.charge("round 1", ONE)
        assert len(ledger.entries) == 1
        other = Release(noise_multiplier=1.0, shares=3, share_sigma=1e5, parameters=1000, devices=5)
        with pytest.raises(IntegrityFailed, match="found two"):
            ledger.charge("round 1", other)


@given(cut=st.integers(0, 2000))
@settings(max_examples=30, deadline=None)
def test_a_charge_that_returned_survives_a_kill_at_any_byte(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A kill while the third line is written: it may be there in part, in whole, with or without its witness."""
    folder = tmp_path_factory.mktemp("ledger")
    charged(folder, 2)
    two, witness = (folder / "ledger.jsonl").read_bytes(), (folder / "elsewhere" / "witness").read_bytes()
    charged(folder, 3)
    three = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(three[: len(two) + cut % (len(three) - len(two) + 1)])
    (folder / "elsewhere" / "witness").write_bytes(witness)
    with opened(folder) as ledger:
        assert [entry.label for entry in ledger.entries][:2] == ["round 0", "round 1"]
        assert len(ledger.entries) == (3 if (folder / "ledger.jsonl").read_bytes() == three else 2)
        ledger.charge("round 2", ONE)
        assert len(ledger.entries) == 3
    with opened(folder) as ledger:
        assert len(ledger.entries) == 3


def test_an_old_copy_of_the_journal_is_refused(tmp_path: Path) -> None:
    charged(tmp_path, 2)
    shutil.copy(tmp_path / "ledger.jsonl", tmp_path / "backup")
    charged(tmp_path, 4)
    shutil.copy(tmp_path / "backup", tmp_path / "ledger.jsonl")
    with pytest.raises(IntegrityFailed, match="older or another copy"):
        opened(tmp_path)


def test_a_journal_that_vanished_is_not_begun_anew(tmp_path: Path) -> None:
    charged(tmp_path, 2)
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(IntegrityFailed, match="older or another copy"):
        opened(tmp_path)


def test_an_old_copy_that_was_charged_differently_is_refused(tmp_path: Path) -> None:
    """Restored to two charges without its witness, charged twice elsewhere, and brought back."""
    charged(tmp_path, 2)
    fork = tmp_path / "fork"
    shutil.copytree(tmp_path, fork)
    charged(tmp_path, 4)
    with opened(fork) as ledger:
        ledger.charge("another", ONE)
        ledger.charge("and one more", ONE)
    shutil.copy(fork / "ledger.jsonl", tmp_path / "ledger.jsonl")
    with pytest.raises(IntegrityFailed, match="older or another copy"):
        opened(tmp_path)


def test_a_ledger_without_its_witness_is_refused(tmp_path: Path) -> None:
    charged(tmp_path, 3)
    (tmp_path / "elsewhere" / "witness").unlink()
    with pytest.raises(IntegrityFailed, match="witness, found none"):
        opened(tmp_path)


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_refused(tmp_path: Path, line: int) -> None:
    charged(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"noise_multiplier":4.0', b'"noise_multiplier":9.0')
    path.write_bytes(b"".join(lines))
    with pytest.raises(IntegrityFailed):
        opened(tmp_path)


def test_a_removed_line_is_refused(tmp_path: Path) -> None:
    charged(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(IntegrityFailed, match="continue the chain"):
        opened(tmp_path)


def test_two_processes_cannot_hold_one_ledger(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(ResourceMissing, match="another process"):
        opened(tmp_path)
    opened(tmp_path).close()


def test_a_full_disk_charges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charged(tmp_path, 1)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    real = os.write

    def short(descriptor: int, payload: bytes) -> int:
        if len(payload) < 20:
            raise OSError(28, "No space left on device")
        return real(descriptor, payload[: len(payload) // 2])

    with opened(tmp_path) as ledger:
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space"):
            ledger.charge("round 1", ONE)
        monkeypatch.undo()
        assert (tmp_path / "ledger.jsonl").read_bytes() == before
        ledger.charge("round 1", ONE)
    with opened(tmp_path) as ledger:
        assert len(ledger.entries) == 2


def test_a_line_has_one_form(tmp_path: Path) -> None:
    """Known answer: what is on disks out there stays readable, and a line's digest does not depend on who wrote it."""
    charged(tmp_path, 1)
    first = (
        '{"label":"round 0","previous":"' + 64 * "0" + '","release":{"devices":5,"noise_multiplier":4.0,'
        '"parameters":1000,"share_sigma":100000.0,"shares":3},"sequence":1}\n'
    )
    assert (tmp_path / "ledger.jsonl").read_text() == first
    head = hashlib.sha256(first.encode()).hexdigest()
    assert (tmp_path / "elsewhere" / "witness").read_text() == f"1 {head}\n"


def test_nobody_else_reads_a_journal_and_its_folder_is_on_the_disk_before_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    with opened(tmp_path / "new") as ledger:
        assert synced == [str(tmp_path / "new")]
        assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_torn_line_is_cut_off_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charged(tmp_path, 2)
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    (tmp_path / "ledger.jsonl").write_bytes(whole + b'{"label":')
    assert [entry.label for entry in read_ledger(tmp_path / "ledger.jsonl")] == ["round 0", "round 1"]
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    opened(tmp_path).close()
    assert (tmp_path / "ledger.jsonl").read_bytes() == whole
    assert str(tmp_path / "ledger.jsonl") in synced
    synced.clear()
    opened(tmp_path).close()  # nothing is torn any more
    assert str(tmp_path / "ledger.jsonl") not in synced


def test_one_charge_may_stand_without_its_witness_and_two_may_not(tmp_path: Path) -> None:
    """A crash between the first line and the first witness leaves the former."""
    charged(tmp_path, 1)
    (tmp_path / "elsewhere" / "witness").unlink()
    with opened(tmp_path) as ledger:
        assert len(ledger.entries) == 1
    charged(tmp_path, 2)
    (tmp_path / "elsewhere" / "witness").unlink()
    with pytest.raises(IntegrityFailed, match="witness, found none"):
        opened(tmp_path)


@pytest.mark.parametrize(("ahead", "right"), [(1, True), (2, False)])
def test_a_journal_is_at_most_one_charge_ahead_of_its_witness(tmp_path: Path, ahead: int, right: bool) -> None:
    charged(tmp_path, 2)
    witness = (tmp_path / "elsewhere" / "witness").read_bytes()
    charged(tmp_path, 2 + ahead)
    (tmp_path / "elsewhere" / "witness").write_bytes(witness)
    if right:
        with opened(tmp_path) as ledger:
            assert len(ledger.entries) == 3
    else:
        with pytest.raises(IntegrityFailed, match="older or another copy"):
            opened(tmp_path)


@pytest.mark.parametrize("count", ["x", "-1", "", "1"])
def test_a_witness_counts_charges_from_none_on(tmp_path: Path, count: str) -> None:
    """Whatever digest stands beside another count than that of the journal, here of nothing charged yet."""
    opened(tmp_path).close()
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    witness = tmp_path / "elsewhere" / "witness"
    witness.write_text("0 " + 64 * "0" + "\n")
    opened(tmp_path).close()
    witness.write_text(count + " " + 64 * "0" + "\n")
    with pytest.raises(IntegrityFailed, match="older or another copy"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["", "x\n", "-1 abc\n", "2\n", "3 abc\n", "9 abc\n"])
def test_a_witness_that_saw_something_else_is_believed(tmp_path: Path, text: str) -> None:
    charged(tmp_path, 3)
    (tmp_path / "elsewhere" / "witness").write_text(text)
    with pytest.raises(IntegrityFailed, match="older or another copy"):
        opened(tmp_path)


def test_an_unlimited_budget_is_never_exceeded(tmp_path: Path) -> None:
    loud = Release(noise_multiplier=1e-3, shares=3, share_sigma=1e5, parameters=1000, devices=5)
    with opened(tmp_path, Budget(epsilon=math.inf, delta=1e-5)) as ledger:
        assert not ledger.would_exceed(loud, times=10**6)
        ledger.charge("round 0", loud)
        assert len(ledger.entries) == 1


def test_a_journal_that_is_refused_is_let_go_and_may_be_closed_again(tmp_path: Path) -> None:
    charged(tmp_path, 2)
    path = tmp_path / "ledger.jsonl"
    right = path.read_bytes()
    path.write_bytes(right.replace(b"4.0", b"9.0"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(IntegrityFailed):
        opened(tmp_path)
    path.write_bytes(right)
    with opened(tmp_path) as ledger:
        with pytest.raises(ResourceMissing):
            opened(tmp_path)
        ledger.close()
        os.fstat(0), os.fstat(1)  # a second close takes nobody else's descriptor
    os.fstat(0), os.fstat(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_report_on_no_journal_lists_no_charge(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "none.jsonl") == ()


def test_a_line_that_is_no_charge_is_refused(tmp_path: Path) -> None:
    for line in (b"\xff\n", b"{}\n", b"[]\n", b'{"label": "x", "release": {"noise": 1}}\n', b"\n"):
        (tmp_path / "ledger.jsonl").write_bytes(line)
        with pytest.raises(IntegrityFailed, match="expected line 1 to continue the chain"):
            opened(tmp_path)


def test_steps_by_examples_are_written_as_before_and_steps_by_people_say_so(tmp_path: Path) -> None:
    """Ledgers outlive versions: a line by examples has the bytes that it had when there was no other unit."""
    from dataclasses import replace

    from fedpeft.privacy import SampledRelease

    by_examples = SampledRelease(noise_multiplier=10.0, sampling_rate=0.5, steps=2, parameters=10)
    by_people = replace(by_examples, unit="person")
    with opened(tmp_path) as ledger:
        ledger.charge("a", by_examples)
        ledger.charge("b", by_people)
        lines = ledger.path.read_text().splitlines()
    assert '"release":{"noise_multiplier":10.0,"parameters":10,"sampling_rate":0.5,"steps":2}' in lines[0]
    assert '"unit":"person"' in lines[1]
    with opened(tmp_path) as ledger:
        assert [entry.release for entry in ledger.entries] == [by_examples, by_people]


def test_a_budget_of_people_is_not_kept_by_steps_that_hide_examples_alone(tmp_path: Path) -> None:
    from fedpeft.privacy import SampledRelease

    by_examples = SampledRelease(noise_multiplier=100.0, sampling_rate=0.01, steps=1, parameters=1)
    budget = Budget(epsilon=8.0, delta=1e-5)
    with PrivacyLedger(tmp_path / "l", witness=tmp_path / "w" / "w", budget=budget, unit="person") as ledger:
        assert ledger.would_exceed(by_examples)
        assert not ledger.would_exceed(
            SampledRelease(noise_multiplier=100.0, sampling_rate=0.01, steps=1, parameters=1, unit="person")
        )
