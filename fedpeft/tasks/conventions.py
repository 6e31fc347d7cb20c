"""Column conventions (TRL's, and Alpaca's): which columns of a data set carry an example."""

import enum
import re
from collections.abc import Collection, Mapping

__all__ = ["ALIASES", "KNOWN_COLUMNS", "READ_COLUMNS", "Convention", "aliases_in", "misread"]


class Convention(enum.Enum):
    """Which columns carry an example."""

    TEXT_PAIR_LABEL = "text+text_pair+label"
    TEXT_LABEL = "text+label"
    WORDS_TAGS = "words+tags"
    ANCHOR_POSITIVE_NEGATIVE = "anchor+positive+negative"
    ANCHOR_POSITIVE = "anchor+positive"
    SOURCE_TARGET = "source+target"
    PROMPT_CHOSEN_REJECTED = "prompt+chosen+rejected"
    CHOSEN_REJECTED = "chosen+rejected"
    PROMPT_COMPLETION_LABEL = "prompt+completion+label"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt+completion"
    ALPACA = "instruction/input/output"
    TEXT = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return _COLUMNS[self]

    @property
    def asked(self) -> tuple[str, ...]:
        """Those that hold what a model is given; the others hold what it is to answer.

        Of answers whose prompt is what both begin with, both.
        """
        answers = ("label", "tags", "target", "chosen", "rejected", "positive", "negative")
        return tuple(column for column in self.columns if column not in answers) or self.columns


_COLUMNS: Mapping[Convention, tuple[str, ...]] = {
    Convention.TEXT_PAIR_LABEL: ("text", "text_pair", "label"),
    Convention.TEXT_LABEL: ("text", "label"),
    Convention.WORDS_TAGS: ("words", "tags"),
    Convention.ANCHOR_POSITIVE_NEGATIVE: ("anchor", "positive", "negative"),
    Convention.ANCHOR_POSITIVE: ("anchor", "positive"),
    Convention.SOURCE_TARGET: ("source", "target"),
    Convention.PROMPT_CHOSEN_REJECTED: ("prompt", "chosen", "rejected"),
    Convention.CHOSEN_REJECTED: ("chosen", "rejected"),
    Convention.PROMPT_COMPLETION_LABEL: ("prompt", "completion", "label"),
    Convention.MESSAGES: ("messages",),
    Convention.PROMPT_COMPLETION: ("prompt", "completion"),
    Convention.ALPACA: ("instruction", "output"),  # `input` is optional, row by row
    Convention.TEXT: ("text",),
}
KNOWN_COLUMNS = (
    *("text", "text_pair", "label", "words", "tags", "source", "target"),
    *("prompt", "completion", "messages", "instruction", "input", "output", "person"),
    *("chosen", "rejected", "anchor", "positive", "negative"),
)

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
    ("question1", "question2"),
)
_SOURCES = (
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("meaning_representation", "human_reference"),
)
_TOGETHER = (
    *(("anchor", "positive"), ("query", "positive"), ("query", "passage"), ("query", "answer")),
    *(("sentence1", "sentence2"), ("question1", "question2")),
)
_APART = ("hard_negative",)
_LABELS, _SCORES = ("labels",), ("score", "similarity")
_WORDS, _TAGS = ("tokens",), ("ner_tags", "pos_tags", "labels")
ALIASES = tuple(
    dict.fromkeys(
        (
            *(name for pair in (*_PAIRS, *_SOURCES, *_TOGETHER[1:]) for name in pair),
            *_APART,
            *_LABELS,
            *_SCORES,
            *_WORDS,
            *_TAGS,
        )
    )
)
"""Names that published data sets use (GLUE, SNLI, SQuAD's kin, CoNLL)."""
READ_COLUMNS = (*KNOWN_COLUMNS, *ALIASES)


def aliases_in(there: Collection[str]) -> dict[str, str]:
    """Our column name -> theirs, for columns that are ours under a well-known name; only where all of an example is.

    A pair needs a label beside it, and a score counts as one beside a pair only: a corpus of texts with scores is none.

    Example:
        >>> aliases_in(["premise", "hypothesis", "label"])
        {'text': 'premise', 'text_pair': 'hypothesis'}
    """
    words = _first(there, "words", _WORDS)
    tags = _first(there, "tags", _TAGS)
    written = next(((one, other) for one, other in _SOURCES if one in there and other in there), None)
    if written is not None:
        return {"source": written[0], "target": written[1]}
    if words and tags:
        return {ours: theirs for ours, theirs in (("words", words), ("tags", tags)) if ours != theirs}
    pair = next(((one, other) for one, other in _PAIRS if one in there and other in there), None)
    pair = None if "text" in there else pair
    is_pair = pair is not None or {"text", "text_pair"} <= set(there)
    label = _first(there, "label", (*_LABELS, *(_SCORES if is_pair else ())))
    if label is None and not {"text", "prompt", "label"} & set(there):
        return _belonging(there)
    if label is None or not (is_pair or "text" in there):
        return {}
    found = {} if pair is None else {"text": pair[0], "text_pair": pair[1]}
    return found if label == "label" else {**found, "label": label}


def _belonging(there: Collection[str]) -> dict[str, str]:
    """Texts that belong together: pairs without a label, or with a text that does not belong to the first."""
    pair = next((pair for pair in _TOGETHER if {*pair} <= {*there}), None)
    if pair is None:
        return {}
    found = {"anchor": pair[0], "positive": pair[1]}
    if (other := _first(there, "negative", _APART)) is not None:
        found["negative"] = other
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def _first(there: Collection[str], ours: str, theirs: tuple[str, ...]) -> str | None:
    return next((name for name in (ours, *theirs) if name in there), None)


_HOW_FAR = re.compile(r"label|score|simil|relevan|duplicate|rating|grade|^is_|^target$|^class$", re.IGNORECASE)
"""Names of columns that say how far two texts belong together: Quora's, MS MARCO's, STS's and their like."""
_MISREAD: Mapping[Convention, tuple[tuple[str, str], ...]] = {
    Convention.TEXT: (("text_pair", "pairs are for classify and regression"),),
    Convention.PROMPT_COMPLETION: (
        (
            "label",
            'a label says which completions are wanted, and all would be learnt; task.kind = "preference" reads it',
        ),
    ),
    Convention.ALPACA: (("label", "a label says which outputs are wanted, and all would be learnt"),),
}


def misread(convention: Convention, there: Collection[str]) -> tuple[str, str] | None:
    """A column that changes what an example means and that this convention does not read, and why that matters."""
    if convention in (Convention.ANCHOR_POSITIVE, Convention.ANCHOR_POSITIVE_NEGATIVE):
        column = next((name for name in sorted(there) if name in (*_LABELS, *_SCORES) or _HOW_FAR.search(name)), None)
        if column is not None:
            return column, f"a {column} says how far texts belong together, and all would be taken to"
    return next(((column, why) for column, why in _MISREAD.get(convention, ()) if column in there), None)
