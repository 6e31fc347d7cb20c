"""Writes the generated tables into the documents, between their markers: ``make docs``; a test holds them to it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fedpeft.catalogue.compositions import markdown_compositions
from fedpeft.catalogue.page import markdown
from fedpeft.planner.sizes import markdown_sizes
from fedpeft.testing.shapes import DECODER, MINILM

HERE = Path(__file__).parent
PLUGIN = HERE.parent / "tests" / "plugin"


def listing(name: str) -> Callable[[], str]:
    """A file of the example package, as a block of code."""
    kind = {".py": "python", ".toml": ""}[Path(name).suffix]
    return lambda: f"```{kind}\n{(PLUGIN / name).read_text(encoding='utf-8')}```"


TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "methods.md": {
        "methods": markdown,
        "sizes": lambda: markdown_sizes({"MiniLM-L6": (MINILM, 3), "SmolLM2-135M": (DECODER, 0)}),
        "compositions": markdown_compositions,
    },
    "plugins.md": {
        name: listing(f"fedpeft_lab/{name}.py") for name in ("gains", "gains_torch", "signs", "signs_step", "fasttext")
    },
}
"""Document -> marker -> what stands between ``<!-- MARKER: make docs -->`` and ``<!-- end of MARKER -->``."""


def written(document: str) -> str:
    """The document with its tables as the code has them now.

    Raises:
        ValueError: a marker is not there once.
    """
    text = (HERE / document).read_text(encoding="utf-8")
    for marker, table in TABLES[document].items():
        begin, end = f"<!-- {marker}: make docs -->\n", f"\n<!-- end of {marker} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"Expected the markers of {marker!r} once in docs/{document}; put them around its table.")
        made = begin + table() + end
        text = pattern.sub(lambda _, made=made: made, text)
    return text


if __name__ == "__main__":
    for name in TABLES:
        (HERE / name).write_text(written(name), encoding="utf-8")
