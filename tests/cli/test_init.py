"""`fedpeft init`, the bundled scenarios and the wheel: a newcomer's first commands."""

import subprocess
from pathlib import Path

import pytest

from fedpeft.api.configuration import SCENARIOS, bundled
from fedpeft.cli import main
from fedpeft.config import load

ROOT = Path(__file__).resolve().parents[2]


def table(path: Path, rows: int = 60) -> Path:
    lines = "".join(f"note {i},{'ab'[i % 2]},{'xyz'[i % 3]}\n" for i in range(rows))
    path.write_text("note,dx,ward\n" + lines)
    return path


def test_init_writes_a_short_file_that_is_valid_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(tmp_path / "my notes.csv")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--data", data.name, "--map", "text=note,label=dx", "--out", "my run.toml"]) == 0
    assert "fedpeft simulate 'my run.toml'" in capsys.readouterr().out
    monkeypatch.chdir("/")
    config = load(tmp_path / "my run.toml", simulation=True)
    assert (config.data.source, config.data.map) == (str(data), {"text": "note", "label": "dx"})
    assert len((tmp_path / "my run.toml").read_text().splitlines()) < 40


def test_init_takes_the_clients_from_a_column(tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    data = str(table(tmp_path / "a.csv"))
    assert main(["init", "--data", data, "--map", "text=note,label=dx", "--column", "ward", "--out", str(out)]) == 0
    assert load(out, simulation=True).data.partition.column == "ward"
    assert main(["init", "--data", data, "--map", "text=note,label=dx", "--column", "wrd", "--out", f"{out}2"]) == 3


def test_init_lowers_max_length_to_the_models_positions(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 64}')
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer.json").write_text("{}")
    out = tmp_path / "run.toml"
    data = str(table(tmp_path / "a.csv"))
    command = ["init", "--data", data, "--map", "text=note,label=dx", "--base", str(model), "--out", str(out)]
    assert main(command) == 0
    assert load(out, simulation=True).task.max_length == 64


@pytest.mark.parametrize(
    ("rows", "out", "code"), [(60, "there.toml", 2), (60, "no/folder.toml", 2), (5, "new.toml", 3)]
)
def test_init_refuses_before_it_writes(tmp_path: Path, rows: int, out: str, code: int) -> None:
    (tmp_path / "there.toml").write_text("mine")
    data = str(table(tmp_path / "a.csv", rows))
    assert main(["init", "--data", data, "--map", "text=note,label=dx", "--out", str(tmp_path / out)]) == code
    assert (tmp_path / "there.toml").read_text() == "mine"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_of_the_package_is_found_by_name_and_valid(name: str) -> None:
    assert load(bundled(Path(name)), simulation=True).run.name == name


@pytest.mark.parametrize("torch", ["torch==2.13.0", "torch==2.13.0 --index-url https://example.org/whl", "torch>=2.6"])
def test_make_hands_every_word_of_torch_to_pip(torch: str) -> None:
    answer = subprocess.run(
        ["make", "-n", "-B", "install", f"TORCH={torch}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = " ".join(f"'{word}'" for word in torch.split())
    assert any(line.endswith(words) for line in answer.stdout.splitlines())
