"""Every Guarantees line of fedpeft.privacy names a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_guarantee_names_a_test_that_exists() -> None:
    defined = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = {
        name
        for file in (ROOT / "fedpeft" / "privacy").glob("*.py")
        for name in re.findall(r"\btest_[a-z0-9_]+(?!\w|\.py)", file.read_text())
        if not (ROOT / "tests" / "privacy" / f"{name}.py").exists()
    }
    assert len(named) >= 10
    assert {name for name in named if f"def {name}(" not in defined} == set()


def test_the_page_and_the_configuration_name_the_same_options() -> None:
    from fedpeft.config.model import Privacy

    text = (ROOT / "docs" / "privacy.md").read_text()
    for option in ("unit", "l2_clip_norm", "colluders"):
        assert option in Privacy.model_fields
        assert f"`{option}`" in text or f"[privacy] {option}" in text
