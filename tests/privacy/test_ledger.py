"""The ledger under crash, replay, restore and rivals."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import BudgetExhausted, IntegrityFailed, ResourceMissing
from fedpeft.privacy import Budget, PrivacyLedger, Release, epsilon

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
        assert ledger.spent() == epsilon([(ONE, 3)], 1e-5)


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
