"""Rows trained once, with their bases written out for plain transformers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.using.every_task.rows import CHATML, ROWS, Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A row's run; shared: to be read."""
    from fedpeft.base import build
    from fedpeft.cli import main
    from fedpeft.testing.zoo import save_model

    folder = tmp_path_factory.mktemp("tasks")
    store = folder / "store"

    @cache
    def base(name: str) -> tuple[Path, Path, str]:
        more = {"max_position_embeddings": 320} if name == "llama" else {}  # for Alpaca's long template
        source, written = save_model(name, folder / name, **more), folder / f"{name}-base"
        if name == "llama":
            (source / "chat_template.jinja").write_text(CHATML)
        digest = build(str(source), quantize="int8", store=store).digest
        assert main(["base", "export", digest, "--out", str(written), "--store", str(store)]) == 0
        return source, written, digest

    @cache
    def of(name: str) -> Made:
        source, written, digest = base(ROWS[name].base)
        return make(ROWS[name], source, written, store, digest, folder / name.replace(", ", "-"))

    return of
