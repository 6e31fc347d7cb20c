"""The two federations on which private training is compared."""

import csv
from pathlib import Path

import numpy as np

from fedpeft.data import load_records, split_holdout
from fedpeft.entropy import generator
from fedpeft.tuning.batches import Indices

__all__ = ["airlines", "banking"]


def airlines() -> tuple[list[dict[str, str]], dict[str, Indices], Indices]:
    """The demo's tweets: rows, the places of each airline's, the places of those to test on."""
    records = load_records("builtin:airline-tweets", {})
    by_airline: dict[str, list[int]] = {}
    for place, row in enumerate(records.rows):
        by_airline.setdefault(str(row["airline"]), []).append(place)
    rows: list[dict[str, str]] = []
    parts, test = {}, []
    for name, places in sorted(by_airline.items()):
        train, held = split_holdout(records.select(places), 0.2, seed=0)
        parts[name] = np.arange(len(rows), len(rows) + len(train.rows))
        rows += [{"text": str(row["text"]), "label": str(row["label"])} for row in train.rows]
        test += range(len(rows), len(rows) + len(held.rows))
        rows += [{"text": str(row["text"]), "label": str(row["label"])} for row in held.rows]
    return rows, parts, np.array(test)


def banking(folder: Path) -> tuple[list[dict[str, str]], dict[str, Indices], Indices]:
    """BANKING77, dealt to four devices; likewise."""
    rows, sizes = [], []
    for part in ("train", "test"):
        with (folder / "banking77" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            rows += [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
        sizes.append(len(rows))
    dealt = generator(0, "four devices").permutation(sizes[0])
    return rows, {f"device {i}": np.sort(dealt[i::4]) for i in range(4)}, np.arange(*sizes)
