"""Every class that is kept or sent has a tag of its own, over all packages: two that share one never meet in a test."""

import hashlib
import re
from collections import Counter
from pathlib import Path

from fedpeft.testing.message_tables import message_tables
from fedpeft.wire.codec import VERSION

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


MESSAGES = {3: "7d70cca48a79362d"}
"""By version: a digest of every field and value of what travels in a round."""


def test_messages_that_changed_have_another_version() -> None:
    """Otherwise two releases take each other's messages for malformed ones, and no log says "update"."""
    digest = hashlib.sha256(message_tables().encode()).hexdigest()[:16]
    assert MESSAGES.get(VERSION) == digest, (
        f"A message of a round changed. Raise VERSION in fedpeft/wire/codec.py (and in docs/protocol.md) unless it is "
        f"unreleased, and write {digest} here."
    )
