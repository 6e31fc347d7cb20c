"""``builtin:stdlib-docstrings``: Python's own standard library as prompt -> completion pairs.

Every machine that can run fedpeft holds this data. Source files of the running interpreter are parsed,
never imported: prompt = a function's signature and body without its docstring, completion = the docstring
(or its first paragraph when the whole is long). A client is a group of modules, ``module_group``. The rows
follow from the files alone: same Python, same records, in the same order.
"""

import ast
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedpeft.data.records import Record, Records
from fedpeft.errors import ResourceMissing

__all__ = ["MODULE_GROUPS", "stdlib_docstrings"]

MODULE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "asyncio": ("asyncio", "selectors", "socket", "socketserver", "ssl"),
    "concurrency": ("multiprocessing", "concurrent", "threading", "_threading_local", "subprocess", "queue", "sched"),
    "debugging": ("unittest", "doctest", "pdb", "bdb", "trace", "traceback", "tracemalloc", "timeit", "pprint"),
    "files": (
        "pathlib", "os", "posixpath", "ntpath", "genericpath", "shutil", "tempfile", "fileinput", "_pyio",
        "tarfile", "zipfile", "gzip", "bz2", "lzma",
    ),
    "language": ("importlib", "inspect", "ast", "dis", "symtable", "pkgutil", "zipimport", "tokenize"),
    "mail": ("email", "mailbox", "smtplib"),
    "numbers": ("_pydecimal", "datetime", "calendar", "statistics", "fractions", "numbers", "random"),
    "web": ("http", "urllib", "html", "xml", "xmlrpc", "wsgiref"),
}  # fmt: skip
"""Client name -> top-level modules and packages, chosen so that clients are of about one size."""

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
MAX_PROMPT_CHARS = 800  # about 250 tokens of code
MIN_COMPLETION_CHARS = 20
MAX_COMPLETION_CHARS = 300  # about 75 tokens of prose
PROMPT_END = "\n\n# Docstring:\n"


def stdlib_docstrings() -> Records:
    """Columns ``prompt``, ``completion``, ``module_group`` and ``module``; functions in source order.

    Raises:
        ResourceMissing: this Python comes without its source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    rows: dict[str, Record] = {}
    for group, tops in MODULE_GROUPS.items():
        for top in tops:
            for path in _sources(root, top):
                for row in _functions(path, path.relative_to(root).with_suffix("").as_posix().replace("/", "."), group):
                    rows.setdefault(str(row["prompt"]), row)  # some functions are copied from module to module
    if not rows:
        raise ResourceMissing(f"Expected the standard library's source files in {root}, found none; use CPython's own.")
    return Records.of(rows.values(), name="builtin:stdlib-docstrings")


def _sources(root: Path, top: str) -> list[Path]:
    """The source files of a top-level module or package; empty if this Python lacks it."""
    if (root / f"{top}.py").is_file():
        return [root / f"{top}.py"]
    found = sorted((root / top).rglob("*.py"))
    return [path for path in found if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)]


def _functions(path: Path, module: str, group: str) -> Iterator[Record]:
    """One record for each documented function of moderate length."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # a file that is meant to be broken
        return
    functions = sorted(_defined_in(tree), key=lambda node: node.lineno)
    completions: list[str] = []
    for node in functions:
        docstring = ast.get_docstring(node)
        completions.append(_shorten(docstring or "") if len(node.body) > 1 else "")
        if docstring is not None:
            node.body = node.body[1:] or [ast.Pass()]
    # Only now is no docstring left in any body: an outer function's prompt would show that of an inner one.
    for node, completion in zip(functions, completions, strict=True):
        prompt = ast.unparse(node) + PROMPT_END if completion else ""
        if prompt and len(prompt) <= MAX_PROMPT_CHARS:
            yield {"prompt": prompt, "completion": completion, "module_group": group, "module": module}


def _defined_in(block: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function below a block; statements only, which is several times faster than ``ast.walk``."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(block, field, ()):
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                yield statement
            yield from _defined_in(statement)


def _shorten(docstring: str) -> str:
    """The whole if short, else the first paragraph; empty if even that is too long or says too little."""
    text = docstring.strip()
    if len(text) > MAX_COMPLETION_CHARS:
        text = text.split("\n\n", 1)[0].strip()
    return text if MIN_COMPLETION_CHARS <= len(text) <= MAX_COMPLETION_CHARS else ""
