"""The wheel, installed where nothing of the repository is: README's tour of own data works outside of it.

``FEDPEFT_PYTHONS`` names further interpreters, with a colon between them, that have fedpeft's dependencies.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = [sys.executable, *filter(None, os.environ.get("FEDPEFT_PYTHONS", "").split(":"))]
MODEL = (
    "from pathlib import Path; from fedpeft.testing.models import save_tiny, tiny_bert; "
    "save_tiny(tiny_bert(layers=1), Path('my-model'))"
)
TOUR = [
    ["data", "check", "notes.csv", "--map", "text=note,label=dx"],
    ["init", "--data", "notes.csv", "--map", "text=note,label=dx", "--model", "./my-model"],
    ["simulate", "run.toml", "--rounds", "2"],
    ["runs", "show", "latest"],
    ["adapter", "inspect", "latest"],
    ["adapter", "predict", "latest", "the red bird"],
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder / "source")], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tour_of_own_data_works_from_the_wheel_alone(python: str, wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    # Its dependencies are the interpreter's; nothing else of this path is.
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    environment |= {"PYTHONPATH": str(site), "FEDPEFT_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def ran(*line: str) -> str:
        done = subprocess.run(
            [python, *line], cwd=work, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    where = ran("-c", "import fedpeft, fedpeft_sim, fedpeft_client; print(fedpeft.__file__, fedpeft_client.__file__)")
    assert all(one.startswith(str(site)) for one in where.split())
    rows = [f"the {'red' if i % 2 else 'blue'} bird {i},{'ab'[i % 2]}\n" for i in range(60)]
    (work / "notes.csv").write_text("note,dx\n" + "".join(rows))
    ran("-c", MODEL)
    said = [ran("-c", "import sys; from fedpeft.cli import main; sys.exit(main())", *line) for line in TOUR]
    assert "committed" in said[2]
    assert said[5].split("\t")[0].strip() in ("a", "b"), said[5]
    assert list(work.glob("runs/*/report.html"))
