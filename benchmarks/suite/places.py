"""What the suite runs on: data sets, what `fedpeft init` is told about them, and the cells of its table."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.one_method.common import SMOLLM
from benchmarks.one_method.readers import READERS

__all__ = ["OURS", "PLACES", "Cell", "Place", "overrides_of", "template"]

OURS = "fedpeft"
SHORT_TEXTS = ("train.batch_size=8", "train.local_steps=6", "rounds.eval_examples=32")
SHORT_LM = ("train.batch_size=2", "train.local_steps=3", "task.max_length=48", "rounds.eval_examples=5")
"""What a cell is cut to where a busy core makes it, for every system alike; `--whole` leaves the template alone."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data set cut into clients.

    Args:
        source: ``builtin:NAME``, or the reader in ``one_method/readers.py`` that makes its rows.
        fewer: the reader of a short cell; empty: the same.
        model: of ``fedpeft init``; empty: its default.
        column: whose values are the clients; empty: equal random shares.
        partition: ``data.partition`` where it is not what ``init`` writes.
        short: see ``SHORT_TEXTS``.
        target: held-out accuracy, or loss where ``writes``, that ``rounds to target`` asks for.
        writes: a language model: scored by its loss.
    """

    source: str
    fewer: str = ""
    model: str = ""
    column: str = ""
    partition: str = ""
    short: tuple[str, ...] = SHORT_TEXTS
    target: float
    writes: bool = False


DISJOINT = "data.partition={by='shards', clients=10, shards_per_client=8}"
PLACES: Mapping[str, Place] = {
    "airlines": Place(source="builtin:airline-tweets", fewer="tweets", column="airline", target=0.75),
    "banking77": Place(source="banking_whole", target=0.80),
    "banking77, dirichlet 0.3": Place(
        source="banking_whole", partition="data.partition={by='dirichlet', clients=10, alpha=0.3}", target=0.75
    ),
    "banking77, shards": Place(source="banking_whole", partition=DISJOINT, target=0.70),
    "pubmedqa": Place(source="pubmedqa", target=0.60),
    "shakespeare": Place(source="speakers", model=SMOLLM, column="speaker", short=SHORT_LM, target=4.6, writes=True),
    "docstrings": Place(source="docstrings", model=SMOLLM, column="group", short=SHORT_LM, target=4.1, writes=True),
    "e2e": Place(
        source="e2e",
        model=SMOLLM,
        partition="data.partition={by='iid', clients=3}",
        short=SHORT_LM,
        target=2.2,
        writes=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of one system.

    Args:
        place: a key of ``PLACES``.
        system: ``fedpeft``, a peer with its rate, or a point of the grid (``grid rate=0.01 steps=3``).
        rounds: of the run; a schedule over rounds ends with it, so 5, 10 and 24 rounds are three runs.
        whole: the template's own batches and steps.
    """

    place: str
    system: str
    rounds: int
    seed: int = 0
    whole: bool = False

    @property
    def key(self) -> str:
        """Its name in the results."""
        size = "whole" if self.whole else "short"
        return f"{self.place} | {size} | {self.system} | {self.rounds} rounds | seed {self.seed}"


def overrides_of(cell: Cell) -> list[str]:
    """What is set beside the template, of every system alike but for a grid's own point."""
    place = PLACES[cell.place]
    common = [f"run.seed={cell.seed}", f"rounds.count={cell.rounds}"]
    common += [place.partition] if place.partition else []
    return common + list(() if cell.whole else place.short)


def template(cell: Cell, data: Path, folder: Path) -> Path:
    """The run.toml that `fedpeft init` writes for this data; its rows beside it.

    Raises:
        FileNotFoundError: the data set is not under ``data``.
    """
    place = PLACES[cell.place]
    source = place.source if cell.whole else place.fewer or place.source
    if source in READERS:
        rows: list[dict[str, Any]] = list(READERS[source](data))
        source = str(folder / f"{source}.jsonl")
        Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = ["--data", source, "--out", str(folder / "run.toml"), "--quiet"]
    told += ["--model", place.model] if place.model else []
    told += ["--column", place.column] if place.column else []
    subprocess.run([sys.executable, "-m", "fedpeft", "init", *told], check=True)
    return folder / "run.toml"
