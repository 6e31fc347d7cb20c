"""Rows of small public data sets, cut to what a busy CPU core trains on in minutes.

Each takes the folder in which the data sets lie; the demo's own tweets need none.
"""

import csv
import json
from collections import Counter
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


def banking_whole(data: Path) -> list[dict[str, str]]:
    """All training queries with 77 intents."""
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]


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


def speakers(data: Path) -> list[dict[str, str]]:
    """Three of the four loudest."""
    rows = shakespeare(data)
    names = list(dict.fromkeys(row["speaker"] for row in rows))[:3]
    return [row for row in rows if row["speaker"] in names]


def docstrings(data: Path) -> list[dict[str, str]]:
    """Of the three groups of modules with most of them; part of Python, not of ``data``."""
    records = load("builtin:stdlib-docstrings", {}, columns=("completion", "module_group")).records
    found = [records[index] for index in range(len(records))]
    rows = [{"text": str(one["completion"]), "group": str(one["module_group"])} for one in found]
    counted = Counter(row["group"] for row in rows).most_common(3)
    return [row for group, _ in counted for row in [one for one in rows if one["group"] == group][:60]]


def e2e(data: Path) -> list[dict[str, str]]:
    """A table of facts on a restaurant; a sentence that says them."""
    with (data / "e2e" / "devset.csv").open(encoding="utf-8", newline="") as file:
        return [{"prompt": row["mr"] + "\n", "completion": row["ref"]} for row in csv.DictReader(file)][:240]


_ALL = (airlines, tweets, banking, banking_whole, pubmedqa, stsb, shakespeare, speakers, docstrings, e2e)
READERS = {reader.__name__: reader for reader in _ALL}
