"""The public names: light to import, typed, documented, and documented truly."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedpeft

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"


def test_importing_fedpeft_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import fedpeft; print(sorted(set(sys.modules) - before))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [name for name in ast.literal_eval(answer.stdout) if not name.startswith("importlib")]
    assert loaded == ["fedpeft"]


def test_the_api_itself_loads_no_model_library() -> None:
    code = "import sys, fedpeft; fedpeft.simulate; print(sorted({'torch', 'transformers', 'flwr'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_types_name_what_there_is() -> None:
    stub = ast.parse((ROOT / "fedpeft" / "__init__.pyi").read_text())
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*typed, "__version__"} == set(fedpeft.__all__)
    assert set(fedpeft.__all__) <= set(dir(fedpeft))
    with pytest.raises(AttributeError, match="simulat"):
        _ = fedpeft.simulat  # type: ignore[attr-defined]


def test_every_public_name_is_in_the_document() -> None:
    text = PAGE.read_text()
    assert [name for name in fedpeft.__all__ if name not in text and name not in UNDOCUMENTED] == []


UNDOCUMENTED = {"__version__", "Adapter", "Callback", "Result"}
"""Classes whose objects the document shows under the names that make them."""


@pytest.mark.torch
@pytest.mark.e2e
def test_every_block_of_the_document_runs(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    (tmp_path / "my-model").symlink_to(toys / "my-model")
    lines = [f"the {'red' if i % 2 else 'blue'} bird {i},{'ab'[i % 2]}\n" for i in range(90)]
    (tmp_path / "notes.csv").write_text("note,dx\n" + "".join(lines))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102
    assert len(blocks) >= 7


@pytest.mark.torch
@pytest.mark.e2e
def test_every_cell_of_the_notebook_runs(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    (tmp_path / "my-model").symlink_to(toys / "my-model")
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells), "outputs are of somebody's machine"
    names: dict[str, object] = {}
    for number, cell in enumerate(code):
        exec(compile(cell, f"cell {number}", "exec"), names)  # noqa: S102
    assert len(code) == 6
