"""Every test that the documents and docstrings point to exists: a claim without its test is a broken build."""

import re
from pathlib import Path

from fedpeft.testing.message_tables import written_into

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_threat_model_names_exists() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    named = set(re.findall(r"test_[a-z0-9_]+(?!\.py)\b", re.sub(r"test_[a-z_]+\.py", "", text)))
    defined = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 30
    assert named <= defined, sorted(named - defined)
    for file in set(re.findall(r"(?:[a-z/]+/)?test_[a-z_]+\.py", text)):
        assert list((ROOT / "tests").rglob(Path(file).name)), file


def test_every_guarantee_in_a_docstring_names_a_test_that_exists() -> None:
    defined = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for package in ("ring", "secagg"):
        for file in (ROOT / "fedpeft" / package).glob("*.py"):
            for name in re.findall(r"\btest_[a-z0-9_]+(?!\w|\.py)", file.read_text()):
                assert f"def {name}(" in defined or f"{name}.py" in file.read_text(), f"{file.name}: {name}"


def test_the_protocol_lists_every_message_with_its_tag() -> None:
    text = (ROOT / "docs/protocol.md").read_text()
    for module in ("messages", "offer"):
        source = (ROOT / f"fedpeft/secagg/{module}.py").read_text()
        for tag, name in re.findall(r"@message\((0x\w+)\)\n@dataclass[^\n]*\nclass (\w+)", source):
            assert re.search(rf"\| {tag} \| {name}\b", text), f"{tag} {name}"


def test_the_protocol_lists_every_field_of_every_message() -> None:
    """`python -m fedpeft.testing.message_tables` writes them."""
    text = (ROOT / "docs/protocol.md").read_text()
    assert written_into(text) == text
    assert "`spec` bytes; `roster` bytes; `coordinator_channel` bytes; `signature` bytes" in text
