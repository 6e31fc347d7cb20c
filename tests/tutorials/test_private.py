"""docs/tutorial-private.md: people as the unit, planned, trained, evaluated in public and reported, as typed there."""

import csv
import re
from pathlib import Path

import pytest

from tests.tutorials.console import FENCE, Machines, steps
from tests.tutorials.test_three_machines import HOSPITALS, MINILM, NOTES

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "tutorial-private.md"
PATIENTS, NOTES_EACH = 200, 3


def written(path: Path, patients: int) -> None:
    """Made-up notes of so many patients of each hospital; the public ones are nobody's."""
    kinds = list(NOTES.items())
    with path.open("w", newline="") as file:
        into = csv.writer(file)
        into.writerow(["note", "dx", "patient", "hospital"])
        for hospital in HOSPITALS:
            for i in range(patients * NOTES_EACH):
                label, text = kinds[i % len(kinds)]
                into.writerow([text.format(i), label, f"{hospital}-{i // NOTES_EACH}", hospital])


def machines_of(path: Path, model: str = "") -> Machines:
    """One laptop with the files; ``model`` in the place of the document's, and then fewer rounds."""
    few = ("--rounds", "3", "--set", "train.batch_size=24") if model else ()
    made = Machines(path, more={"simulate": few})
    laptop = made.folder("laptop")
    written(laptop / "notes.csv", PATIENTS)
    written(laptop / "public.csv", 12)
    run = next(block for _, block in FENCE.findall(DOCUMENT.read_text()) if block.startswith("[run]"))
    (laptop / "private.toml").write_text(run.replace(MINILM, model or MINILM))
    return made


def test_every_command_prints_what_the_tutorial_shows(tmp_path: Path) -> None:
    from fedpeft.testing.models import save_tiny, tiny_bert

    save_tiny(tiny_bert(layers=1), tmp_path / "my-model")
    machines = machines_of(tmp_path, str(tmp_path / "my-model"))
    told = {step.command: machines.typed(step) for step in steps(DOCUMENT)}
    (plan,) = [said for command, said in told.items() if "privacy plan" in command]
    written_out = next(block for _, block in FENCE.findall(DOCUMENT.read_text()) if block.startswith("[run]"))
    planned = plan[plan.index("\n[privacy]\n") + 1 :]
    assert planned in written_out, "run.toml of the document holds the lines that the plan prints, as they are"


def test_how_sure_somebody_can_be_is_what_the_block_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = DOCUMENT.read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, str(DOCUMENT), "exec"), {})  # noqa: S102
    sure = re.findall(r"at most ([\d.]+)% sure", capsys.readouterr().out)
    assert len(sure) == 4
    assert re.findall(r"([\d.]+) %", text[text.index("That is") :][:80]) == sure
