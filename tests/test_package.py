"""What is installed: four names at the top, every public name there, nothing of Flower's or torch's by accident."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedpeft", "fedpeft_server", "fedpeft_client", "fedpeft_sim")
HEAVY = ("torch", "transformers", "peft", "opacus", "flwr", "ray")
LIGHT = (
    "fedpeft.config",
    "fedpeft.adapter",
    "fedpeft.wire",
    "fedpeft.ring",
    "fedpeft.secagg",
    "fedpeft.aggregate",
    "fedpeft.round.coordinator",
    "fedpeft.round.device.device",
    "fedpeft_server.run.federation",
    "fedpeft_server.report.page",
    "fedpeft_client.training.device_stores",
    "fedpeft_sim.plain_sum",
)


OF_AN_EXTRA = {"fedpeft_client.inference.harness": "lm_eval"}
"""Modules that nothing imports where the package of their extra is not installed."""


def sources() -> dict[str, Path]:
    """Module name -> file, from the tree: importing to find out would load torch."""
    found = {}
    for folder, package in zip((".", "server", "clients", "simulations"), PACKAGES, strict=True):
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_the_wheel_installs_four_names_and_no_other(tmp_path: Path) -> None:
    """A wheel that brought `server` or `tests` would shadow somebody's own."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    for resource in ("fedpeft/py.typed", "fedpeft_server/report/report.html"):
        assert any(name.endswith(resource.split("/")[-1]) and name.startswith(resource.split("/")[0]) for name in names)
    assert not any(name.endswith((".pyc", ".safetensors", ".jsonl")) for name in names)


@pytest.mark.torch
@pytest.mark.parametrize("name", sources())
def test_every_public_name_exists_and_every_module_says_what_it_is(name: str) -> None:
    if name in OF_AN_EXTRA:
        pytest.importorskip(OF_AN_EXTRA[name])
    module = importlib.import_module(name)
    assert module.__doc__, "a module header says what it is"
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public)
    missing = [entry for entry in public if not hasattr(module, entry)]
    assert missing == []


def test_every_module_of_one_idea_names_what_is_public() -> None:
    texts = {name: path.read_text() for name, path in sources().items()}
    defining = {name for name, text in texts.items() if "\ndef " in text or "\nclass " in text}
    assert {name for name in defining if "__all__" not in texts[name]} == set()


def test_what_needs_no_model_library_loads_none() -> None:
    """One process for all: the first line that names a library is that of the module which loads it."""
    looks = (f"import sys, {name}; print({name!r}, sorted(set({HEAVY!r}) & set(sys.modules)))" for name in LIGHT)
    command = [sys.executable, "-c", "\n".join(looks)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.splitlines() == [f"{name} []" for name in LIGHT]
