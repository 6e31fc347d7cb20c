"""docs/tutorial-own-method.md: a method in a package, installed, checked and trained beside LoRA, as typed there."""

import shutil
import tomllib
from pathlib import Path

import pytest

from tests.tutorials.console import FENCE, Machines, steps
from tests.tutorials.test_three_machines import HOSPITALS, MINILM, written

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "tutorial-own-method.md"
PLUGIN = ROOT / "tests" / "plugin"


def blocks_that_begin(words: str) -> str:
    return next(block for _, block in FENCE.findall(DOCUMENT.read_text()) if block.startswith(words))


def machines_of(path: Path, lab: Path, model: str = "") -> Machines:
    """One laptop on which the package is installed; ``model`` in the place of the document's."""
    made = Machines(path, installed=lab)
    laptop = made.folder("laptop")
    written(laptop / "notes.csv", HOSPITALS)
    shutil.copy(PLUGIN / "check_gains.py", laptop)
    (laptop / "run.toml").write_text(blocks_that_begin("[base]").replace(MINILM, model or MINILM))
    return made


def test_every_command_prints_what_the_tutorial_shows(plugin_lab: Path, tmp_path: Path) -> None:
    """The fixture has typed ``pip install``, of the same package with more in it."""
    from fedpeft.testing.models import save_tiny, tiny_bert

    save_tiny(tiny_bert(layers=1), tmp_path / "my-model")
    machines = machines_of(tmp_path, plugin_lab, str(tmp_path / "my-model"))
    try:
        for step in steps(DOCUMENT):
            if not step.command.startswith("pip "):
                machines.typed(step)
    finally:
        machines.close()
    (report,) = (machines.folder("laptop") / "runs").glob("*/report.html")
    assert "gains of fedpeft-lab 0.3" in report.read_text()


def test_the_tutorials_package_is_a_part_of_the_one_that_the_tests_install() -> None:
    shown = tomllib.loads(blocks_that_begin("# fedpeft-lab"))
    installed = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    points, more = (one["project"].pop("entry-points")["fedpeft.methods"] for one in (shown, installed))
    assert shown == installed
    assert points.items() <= more.items()
