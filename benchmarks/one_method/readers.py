"""Rows of small public data sets, cut to what a busy CPU core trains on in minutes.

Each takes the folder in which the data sets lie; the demo's own tweets need none.
"""

import csv
import json
from pathlib import Path

from fedpeft.data import load

__all__ = ["READERS"]


def airlines(data: Path) -> list[dict[str, str]]:
    """The demo's tweets, about 120 an airline."""
    return tweets(data, 120)


def tweets(data: Path, each: int = 300) -> list[dict[str, str]]:
    """The demo's tweets, about 300 an airline."""
    records = load("builtin:airline-tweets", {}, columns=("text", "label", "airline")).records
    rows: dict[str, list[dict[str, str]]] = {}
    for index in range(len(records)):
        row = {name: str(records[index][name]) for name in ("text", "label", "airline")}
        rows.setdefault(row["airline"], []).append(row)
    return [row for own in rows.values() for row in own[:: max(1, len(own) // each)]]


def banking(data: Path) -> list[dict[str, str]]:
    """Queries with 77 intents: every eighth, to keep rounds short."""
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)][::8]


def pubmedqa(data: Path) -> list[dict[str, str]]:
    """A question with its answer in a sentence; yes, no or maybe."""
    rows = json.loads((data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8")).values()
    return [{"text": f"{row['QUESTION']} {row['LONG_ANSWER']}", "label": row["final_decision"]} for row in rows]


def stsb(data: Path) -> list[dict[str, str]]:
    """Two sentences; whether people find them similar (3 of 5 or more)."""
    with (data / "stsb" / "en-dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [{"text": f"{a} / {b}", "label": "similar" if float(score) >= 3 else "different"} for a, b, score in rows]


def shakespeare(data: Path) -> list[dict[str, str]]:
    """Turns of the four speakers with most text."""
    turns: dict[str, list[str]] = {}
    for turn in (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8").split("\n\n"):
        name, _, words = turn.partition("\n")
        if name.endswith(":") and len(words) > 80:
            turns.setdefault(name[:-1], []).append(words)
    loudest = sorted(turns, key=lambda name: -len("".join(turns[name])))[:4]
    return [{"speaker": name, "text": words} for name in loudest for words in turns[name][:40]]


def e2e(data: Path) -> list[dict[str, str]]:
    """A table of facts on a restaurant; a sentence that says them."""
    with (data / "e2e" / "devset.csv").open(encoding="utf-8", newline="") as file:
        return [{"prompt": row["mr"] + "\n", "completion": row["ref"]} for row in csv.DictReader(file)][:240]


READERS = {reader.__name__: reader for reader in (airlines, tweets, banking, pubmedqa, stsb, shakespeare, e2e)}
