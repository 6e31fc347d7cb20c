"""Every class that is kept or sent has a tag of its own, over all packages: two that share one never meet in a test."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_two_messages_of_any_package_share_a_tag() -> None:
    found = Counter(
        int(tag, 16)
        for package in ("fedpeft", "server", "clients", "simulations")
        for file in (ROOT / package).rglob("*.py")
        for tag in re.findall(r"^@message\((0x[0-9A-Fa-f]+)\)", file.read_text(), re.MULTILINE)
    )
    assert len(found) > 30
    assert [hex(tag) for tag, count in found.items() if count > 1] == []
