"""Method, rule, data format and tracker of another package, installed for real, in one run of `fedpeft simulate`."""

import contextlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from fedpeft.catalogue import TAKEN
from fedpeft.cli import main
from fedpeft.config.adapter import Adapter
from fedpeft.errors import ResourceMissing, SpecMismatch
from fedpeft.round.plan import LearningPlan
from fedpeft_server.run.run_view import read_run
from tests.api.conftest import birds
from tests.forked_commands import start_command

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
RUN = """
[base]
model = "MODEL"
[task]
kind = "classify"
max_length = 16
[data]
source = "birds.ft"
partition = { by = "iid", clients = 3 }
[adapter]
gains = {}
head_start = "seed"
[train]
local_steps = 1
batch_size = 8
[rounds]
count = 2
[aggregate]
rule = "signs"
[track]
to = ["csv"]
"""
UNUSABLE = {
    "needy": "ValidationError: 1 validation error for Needy",
    "shadow": "ValueError: expected a section of its own, found Lora",
    "twin": "ValueError: expected a section of its own, found Gains",
    "bare": "TypeError: expected a section that derives from MethodSection",
}
USED = {
    "method gains": "fedpeft-lab 0.3",
    "rule signs": "fedpeft-lab 0.3",
    "format ft": "fedpeft-lab 0.3",
    "tracker csv": "fedpeft-lab 0.3",
}


def fedpeft_with(packages: Path, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and output of the command line where this folder's packages are installed too."""
    with contextlib.chdir(cwd), tempfile.TemporaryFile("w+") as said:
        known = {"PYTHONPATH": str(packages)}
        process = start_command(*arguments, output=said.fileno(), environment=known, server="libraries")
        code = process.wait(300)
        said.seek(0)
        return code, said.read()


@pytest.fixture(scope="module")
def plugged(toys: Path, plugin_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a plug-in of each kind."""
    folder = tmp_path_factory.mktemp("plugged")
    (folder / "birds.ft").write_text("".join(f"__label__{row['label']} {row['text']}\n" for row in birds()))
    (folder / "run.toml").write_text(RUN.replace("MODEL", str(toys / "my-model")))
    line = ["simulate", "run.toml", "--no-baselines", "--store", str(toys / "store"), "-q"]
    code, said = fedpeft_with(plugin_lab, *line, cwd=folder)
    assert code == 0, said
    assert "the method broken of fedpeft-lab 0.3 is left out: ModuleNotFoundError" in said
    assert "the method lora of fedpeft-lab 0.3 is left out: the name is fedpeft's own" in said
    for name, why in UNUSABLE.items():
        assert f"the method {name} of fedpeft-lab 0.3 is left out: {why}" in said
    (run,) = (folder / "runs").iterdir()
    return run


def test_a_run_is_made_of_plug_ins_and_its_records_say_so(plugged: Path) -> None:
    view = read_run(plugged)
    assert view.manifest.plugins == USED
    assert [row.devices_survived for row in view.rounds] == [3, 3, 3]
    assert not [event for event in view.events if event.kind == "round.aborted"]
    assert json.loads((plugged / "terms.json").read_text())["plan"]["plugins"] == {
        key: source for key, source in USED.items() if key.startswith(("method", "rule"))
    }
    assert (plugged / "track" / "csv" / "rounds.csv").is_file()
    assert "gains of fedpeft-lab 0.3" in (plugged / "report.html").read_text()


def test_the_plug_in_rule_made_the_state_of_the_plug_in_method(plugged: Path) -> None:
    from safetensors.numpy import load_file

    blocks = load_file(plugged / "checkpoints" / "r0002" / "global.safetensors")
    (gains,) = [values for name, values in blocks.items() if name.startswith("gains")]
    assert set(abs(gains) * 2**10) <= {0.0, 1.0, 2.0}
    assert gains.any()


def test_a_machine_without_the_plug_in_names_it_and_goes_no_further(
    plugged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = json.dumps(json.loads((plugged / "terms.json").read_text())["plan"], separators=(",", ":"))
    said = re.escape("Expected the plug-in method gains of fedpeft-lab 0.3, which this run needs, to be installed here")
    with pytest.raises(ResourceMissing, match=f"{said}; found none"):
        LearningPlan.from_json(plan)
    with pytest.raises(ResourceMissing, match=said):
        read_run(plugged).config()
    assert main(["simulate", "--resume", str(plugged)]) == ResourceMissing.exit_code
    assert "method gains of fedpeft-lab 0.3" in capsys.readouterr().err


def test_another_version_of_the_plug_in_does_not_resume(plugged: Path, plugin_lab: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(plugin_lab, newer)
    (record,) = newer.glob("fedpeft_lab-*.dist-info/METADATA")
    record.write_text(record.read_text().replace("\nVersion: 0.3\n", "\nVersion: 0.4\n"))
    code, said = fedpeft_with(newer, "simulate", "--resume", str(plugged), cwd=plugged.parents[1])
    assert code == ResourceMissing.exit_code, said
    assert "method gains of fedpeft-lab 0.3" in said
    assert "found fedpeft-lab 0.4" in said


def test_a_plan_names_exactly_the_plug_ins_of_its_methods_and_rule(plugged: Path) -> None:
    """A device that has none of them still refuses a plan that names one for nothing, and reads one that names none."""
    plain = LearningPlan.from_json(_plain(plugged))
    assert plain.to_json() == _plain(plugged)
    with pytest.raises(ResourceMissing, match="rule signs"):
        LearningPlan.from_json(_plain(plugged)[:-1] + ',"plugins":{"rule signs":"fedpeft-lab 0.3"}}')
    with pytest.raises(SpecMismatch, match="names the plug-ins"):
        LearningPlan.from_json(_plain(plugged)[:-1] + ',"plugins":{"colour red":"fedpeft-lab 0.3"}}')


def _plain(run: Path) -> str:
    """The plan without what other packages brought."""
    plan = json.loads((run / "terms.json").read_text())["plan"]
    del plan["plugins"], plan["adapter"]["gains"]
    plan["aggregate"]["rule"] = "nested"
    return json.dumps(plan, separators=(",", ":"))


def test_a_file_that_the_plug_in_cannot_read_is_named(plugin_lab: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.ft").write_text("__label__a fine\nno label here\n")
    code, said = fedpeft_with(plugin_lab, "data", "check", "bad.ft", cwd=tmp_path)
    assert code == 3, said
    assert "bad.ft: expected a file that fedpeft-lab 0.3 reads, found line 2 has no label" in said


def test_no_plug_in_can_take_the_name_of_something_else_in_the_adapter_section() -> None:
    assert {name for name in dir(Adapter) if not name.startswith("_")} | Adapter.model_fields.keys() <= TAKEN
