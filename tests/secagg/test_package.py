"""The public surface, and the rules that the package keeps."""

import re
from pathlib import Path

import fedpeft.ring
import fedpeft.secagg

PACKAGES = [Path(fedpeft.secagg.__file__).parent, Path(fedpeft.ring.__file__).parent]


def test_everything_public_is_there_and_nothing_twice() -> None:
    for package in (fedpeft.ring, fedpeft.secagg):
        assert len(set(package.__all__)) == len(package.__all__)
        for name in package.__all__:
            assert hasattr(package, name)


def test_only_primitives_calls_the_cryptography_library() -> None:
    users = {
        file.name
        for package in PACKAGES
        for file in package.glob("*.py")
        if re.search(r"^\s*(from|import) cryptography", file.read_text(), re.M)
    }
    assert users == {"primitives.py"}


def test_the_state_machines_touch_no_clock_file_log_or_global_randomness() -> None:
    pure = [file for file in PACKAGES[0].glob("*.py") if file.name not in ("ledger.py", "session.py", "primitives.py")]
    for file in pure:
        assert not re.search(r"\bimport (os|time|logging|socket|random)\b|np\.random|\bopen\(", file.read_text()), (
            file.name
        )


def test_no_file_is_longer_than_300_lines() -> None:
    for package in PACKAGES:
        for file in package.glob("*.py"):
            assert len(file.read_text().splitlines()) <= 300, file.name
