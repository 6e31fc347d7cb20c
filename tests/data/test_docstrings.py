import ast
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedpeft.config.model import Task
from fedpeft.data import Records, docstrings, load_records, validate
from fedpeft.errors import ResourceMissing


@pytest.fixture(scope="module")
def functions() -> Records:
    return load_records("builtin:stdlib-docstrings")


def test_eight_groups_of_about_one_size(functions: Records) -> None:
    sizes = Counter(row["module_group"] for row in functions)
    assert set(sizes) == set(docstrings.MODULE_GROUPS)
    assert len(sizes) == 8
    assert 250 <= min(sizes.values()) <= max(sizes.values()) <= 450  # 280 to 382 with CPython 3.11.7


def test_every_pair_is_valid_and_of_moderate_length(functions: Records) -> None:
    validate(functions, Task(kind="causal-lm"))
    assert all(len(str(row["prompt"])) <= docstrings.MAX_PROMPT_CHARS for row in functions)
    assert all(20 <= len(str(row["completion"])) <= docstrings.MAX_COMPLETION_CHARS for row in functions)


def test_a_prompt_is_code_without_any_docstring(functions: Records) -> None:
    for row in functions:
        source = str(row["prompt"]).removesuffix(docstrings.PROMPT_END)
        nodes = [
            node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert nodes
        assert not any(ast.get_docstring(node) == row["completion"] for node in nodes)


def test_no_prompt_occurs_twice_and_no_test_module_occurs(functions: Records) -> None:
    assert len({row["prompt"] for row in functions}) == len(functions)
    assert not any("test" in str(row["module"]).split(".")[1:] for row in functions)


@pytest.mark.e2e
def test_another_process_finds_the_same_and_imports_none_of_it(functions: Records) -> None:
    code = (
        "import sys; from fedpeft.data import load_records; before = set(sys.modules);"
        "rows = load_records('builtin:stdlib-docstrings').rows;"
        "import hashlib; print(hashlib.sha256(repr(rows).encode()).hexdigest());"
        "print(sorted((set(sys.modules) - before) & {'mailbox', 'pdb', 'xmlrpc', 'wsgiref', 'unittest'}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert answer.stdout.split("\n")[:2] == [hashlib.sha256(repr(functions.rows).encode()).hexdigest(), "[]"]


def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "mailbox.py").write_text(source)
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path))


def test_only_documented_functions_with_a_body_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, pair = "word " * 80, "First paragraph, long enough.\\n\\n"
    stdlib(tmp_path, monkeypatch, f'''
class Box:
    async def good(self, x: int = 3) -> int:
        """Say what this function does."""
        def inner():
            """An inner docstring, long enough."""
            return 1
        def hollow():
            """Nothing but a docstring."""
        return inner()
    def bare(self):
        """Only a docstring, so nothing to read."""
    def undocumented(self):
        return 1
    def short(self):
        """Too short."""
        return 1
    def first(self):
        """{pair}{long}"""
        return 2
    def endless(self):
        """{long}"""
        return 3
''')  # fmt: skip
    good, inner, first = load_records("builtin:stdlib-docstrings")
    assert good["prompt"] == (
        "async def good(self, x: int=3) -> int:\n\n    def inner():\n        return 1"
        "\n\n    def hollow():\n        pass\n    return inner()"
        "\n\n# Docstring:\n"
    )
    assert good["completion"] == "Say what this function does."
    assert inner["completion"] == "An inner docstring, long enough."
    assert first["completion"] == "First paragraph, long enough."
    assert (good["module"], good["module_group"]) == ("mailbox", "mail")


def test_a_python_without_its_source_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ResourceMissing, match="source files"):
        load_records("builtin:stdlib-docstrings")


def test_a_source_file_that_does_not_parse_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdlib(tmp_path, monkeypatch, 'def f():\n    """Say what this function does."""\n    return 1\n')
    (tmp_path / "smtplib.py").write_text("def broken(:\n")
    assert len(load_records("builtin:stdlib-docstrings")) == 1
