"""No file, function or folder of the product or its benchmarks grows past what a person holds in mind."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedpeft", "server/fedpeft_server", "clients/fedpeft_client", "simulations/fedpeft_sim")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
ALL = (*FILES, *BENCHMARKS)
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, FILES_OF_A_FOLDER = 320, 85, 25
A_FILE_PER_METHOD = {"fedpeft/catalogue", "fedpeft/methods"}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    over = {named(path) for path in ALL if path.read_text(encoding="utf-8").count("\n") > LINES_OF_A_FILE}
    assert over == set()


def test_no_function_is_longer_than_a_screen_or_two() -> None:
    over = [
        f"{named(path)}: {node.name}"
        for path in ALL
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > LINES_OF_A_FUNCTION
    ]
    assert over == []


def test_no_folder_holds_more_files_than_one_finds_a_way_in() -> None:
    counted = Counter(named(path.parent) for path in ALL if path.name != "__init__.py")
    over = {folder for folder, files in counted.items() if files > FILES_OF_A_FOLDER}
    assert over - A_FILE_PER_METHOD == set()
