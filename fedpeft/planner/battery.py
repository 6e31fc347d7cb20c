"""How much is left in the battery, where a device runs on one."""

from pathlib import Path

__all__ = ["battery_charge"]

_SUPPLIES = Path("/sys/class/power_supply")


def battery_charge(supplies: Path = _SUPPLIES) -> float | None:
    """The share that is left of the battery that this machine runs on, in [0, 1]; of several the fullest.

    None on mains, without a battery, and where the kernel does not tell (Linux's ``power_supply`` class is read).
    """
    left = []
    for supply in sorted(supplies.glob("*")):
        if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging":
            capacity = _text(supply / "capacity")
            if capacity.isdigit():
                left.append(min(int(capacity), 100) / 100)
    return max(left, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
