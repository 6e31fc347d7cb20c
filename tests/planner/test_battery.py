"""What the kernel's power supplies say."""

from pathlib import Path

import pytest

from fedpeft.planner.battery import battery_charge


def supply(folder: Path, name: str, **files: str) -> None:
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / file).write_text(f"{text}\n")


@pytest.mark.parametrize(("status", "capacity", "left"), [("Discharging", "37", 0.37), ("Discharging", "104", 1.0)])
def test_a_discharging_battery_has_its_capacity_left(tmp_path: Path, status: str, capacity: str, left: float) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status=status, capacity=capacity)
    assert battery_charge(tmp_path) == left


def test_of_two_batteries_the_fullest_counts(tmp_path: Path) -> None:
    for name, capacity in (("BAT0", "12"), ("BAT1", "80")):
        supply(tmp_path, name, type="Battery", status="Discharging", capacity=capacity)
    assert battery_charge(tmp_path) == 0.8


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_on_mains_nothing_is_running_out(tmp_path: Path, status: str) -> None:
    supply(tmp_path, "BAT0", type="Battery", status=status, capacity="3")
    assert battery_charge(tmp_path) is None


def test_what_does_not_tell_is_no_battery(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="?")
    supply(tmp_path, "BAT1", type="Battery", status="Discharging")
    assert battery_charge(tmp_path) is None
    assert battery_charge(tmp_path / "nothing") is None
