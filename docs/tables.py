"""Writes the generated tables into the documents, between their markers: ``make docs``; a test holds them to it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fedpeft.catalogue.compositions import markdown_compositions
from fedpeft.catalogue.page import markdown
from fedpeft.planner.sizes import markdown_sizes
from fedpeft.testing.shapes import DECODER, MINILM
from fedpeft_sim.live_view import SAID, ClientLine, LiveView, Standing, lines_of

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"


def listing(name: str) -> Callable[[], str]:
    """A file that the tests run, as a block of code."""
    kind = {".py": "python", ".toml": ""}[Path(name).suffix]
    return lambda: f"```{kind}\n{(TESTS / name).read_text(encoding='utf-8')}```"


def live(clients: int) -> Callable[[], str]:
    """What a terminal of 80 by 24 shows of a round in which one client in fifty has failed and one in ten trains."""
    lines = {}
    for i in range(clients):
        standing = Standing.FAILED if i % 50 == 4 else Standing.BUSY if i % 10 == 3 else Standing.WAITING
        state = {Standing.FAILED: "failed: no answer within 120 s", Standing.BUSY: "training"}.get(
            standing, SAID[standing]
        )
        lines[f"client-{i + 1}"] = ClientLine(standing, state, 25_000 * (standing is Standing.WAITING), 70_000, 1.5)
    view = LiveView(
        title=f"round 3/24: attempt 1: asking {clients} devices",
        rounds=24,
        rounds_done=2,
        elapsed_s=95.0,
        left_s=990.0,
        clients=lines,
        methods=dict.fromkeys(lines, "lora r4"),
    )
    return lambda: "```text\n" + "\n".join(row.rstrip() for row in lines_of(view, 80, 24).plain.split("\n")) + "\n```"


TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "methods.md": {
        "methods": markdown,
        "sizes": lambda: markdown_sizes({"MiniLM-L6": (MINILM, 3), "SmolLM2-135M": (DECODER, 0)}),
        "compositions": markdown_compositions,
    },
    "attach.md": {"script": listing("e2e/scripts/train_birds.py")},
    "first-federation.md": {f"live-{clients}": live(clients) for clients in (6, 50, 500)},
    "tutorial-own-method.md": {
        **{name: listing(f"plugin/fedpeft_lab/{name}.py") for name in ("gains", "gains_torch")},
        "check_gains": listing("plugin/check_gains.py"),
    },
    "plugins.md": {
        name: listing(f"plugin/fedpeft_lab/{name}.py")
        for name in ("gains", "gains_torch", "signs", "signs_step", "fasttext")
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
