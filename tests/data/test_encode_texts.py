"""Pairs, numbers, label sets and tagged words as tokens and targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config.model import Task
from fedpeft.data import Records, encode, encode_usable, validate
from fedpeft.data.encode_texts import first_pieces
from fedpeft.data.tasks import inspect, task_for
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid
from fedpeft.tasks.conventions import aliases_in

WORDS = WhitespaceTokenizer()
NUMBER = Task(kind="regression", range=(0.0, 5.0))
LABELS = Task(kind="multi-label", labels=("a", "b", "c"))
TAGS = Task(kind="token-classify", labels=("O", "B-x", "I-x"))


def test_a_pair_is_two_texts_and_its_score_a_number() -> None:
    records = Records.of(
        [{"text": "a b", "text_pair": "c", "label": "2.5"}, {"text": "d", "text_pair": "e", "label": 5}]
    )
    validate(records, NUMBER)
    found = encode(records, NUMBER, NUMBER.outputs, WORDS)
    assert [len(ids) for ids in found.input_ids] == [3, 2]
    assert found.labels.dtype == np.float32
    assert list(found.labels) == [2.5, 5.0]


def test_labels_are_lists_or_cells_and_may_be_none_at_all() -> None:
    records = Records.of(
        [{"text": "x", "label": ["a", "c"]}, {"text": "y", "label": "b; c"}, {"text": "z", "label": []}]
    )
    validate(records, LABELS)
    found = encode(records, LABELS, LABELS.labels, WORDS)
    assert np.asarray(found.labels).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]


class Halves:
    """A tokenizer of pieces of at most two letters, between two special tokens."""

    is_fast, chat_template = True, None
    bos_token_id = eos_token_id = eos_token = None

    def __call__(self, text, text_pair=None, *, return_offsets_mapping=False, truncation=False, max_length=None, **_):  # type: ignore[no-untyped-def]
        spans = [[(at, min(at + 2, end)) for begin, end in _words(one) for at in range(begin, end, 2)] for one in text]
        limit = max_length - 2 if truncation else None
        offsets = [[(0, 0), *line[:limit], (0, 0)] for line in spans]
        return {"input_ids": [[7] * len(line) for line in offsets], "offset_mapping": offsets}


def _words(text: str) -> list[tuple[int, int]]:
    import re

    return [match.span() for match in re.finditer(r"\S+", text)]


def test_the_first_piece_of_a_word_has_its_tag_and_the_others_none() -> None:
    records = Records.of([{"words": ["abcde", "f"], "tags": ["B-x", "O"]}, {"words": "ab cd", "tags": "B-x I-x"}])
    validate(records, TAGS)
    found = encode(records, TAGS, TAGS.labels, Halves())
    assert [list(one) for one in found.labels] == [[-100, 1, -100, -100, 0, -100], [-100, 1, 2, -100]]
    assert found.of_tokens


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.booleans())
def test_every_word_has_exactly_its_first_piece(lengths: list[int], spaces: bool) -> None:
    """Whether a tokenizer counts the space before a word to it, or drops it."""
    text = " ".join("x" * length for length in lengths)
    offsets = [(0, 0)]
    begins = {}
    for word, (begin, end) in enumerate(_words(text)):
        begins[word] = len(offsets)
        start = begin - 1 if spaces and begin else begin
        offsets += [(at, min(at + 3, end)) for at in range(start, end, 3)]
    assert first_pieces(lengths, [*offsets, (0, 0)]) == begins


@pytest.mark.parametrize(
    ("task", "row", "found"),
    [
        (NUMBER, {"text": "a", "label": "much"}, "'much'"),
        (NUMBER, {"text": "a", "label": 5.5}, "5.5"),
        (NUMBER, {"text": "a", "label": True}, "True"),
        (NUMBER, {"text": "a", "text_pair": " ", "label": 1}, "an empty text"),
        (LABELS, {"text": "a", "label": ["a", "d"]}, "'d'"),
        (LABELS, {"text": "a", "label": None}, "None"),
        (TAGS, {"words": ["a"], "tags": ["O", "O"]}, "2"),
        (TAGS, {"words": ["a"], "tags": ["B-y"]}, "'B-y'"),
        (Task(kind="causal-lm"), {"text": "a", "text_pair": "b"}, "text_pair"),
        (Task(kind="causal-lm"), {"prompt": "a", "completion": "b", "label": False}, "label"),
    ],
)
def test_what_a_task_cannot_use_is_refused_and_left_out_on_a_device(
    task: Task, row: dict[str, object], found: str
) -> None:
    records = Records.of([row], name="f")
    with pytest.raises(DataInvalid) as caught:
        validate(records, task)
    assert found in [problem.found for problem in caught.value.problems]
    encoded, why = encode_usable(records, task, Halves())
    assert len(encoded) == 0
    assert "1 of 1 rows" in why


def test_a_device_keeps_the_rows_that_fit_whatever_the_others_are() -> None:
    good = {"text": "a", "text_pair": "b", "label": 1.5}
    encoded, _ = encode_usable(
        Records.of([good, {"text": "a", "label": "?"}, {"text": "c", "label": 2}]), NUMBER, WORDS
    )
    assert list(encoded.labels) == [1.5, 2.0]
    assert [len(ids) for ids in encoded.input_ids] == [2, 1]


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (["sentence1", "sentence2", "score"], {"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
        (["premise", "hypothesis", "label"], {"text": "premise", "text_pair": "hypothesis"}),
        (["question", "context", "label"], {"text": "question", "text_pair": "context"}),
        (["question", "context", "answers"], {}),
        (["text", "score"], {}),
        (["text", "labels"], {"label": "labels"}),
        (["tokens", "ner_tags", "id"], {"words": "tokens", "tags": "ner_tags"}),
        (["text", "label"], {}),
    ],
)
def test_columns_of_published_data_are_read_under_our_names(there: list[str], read: dict[str, str]) -> None:
    assert aliases_in(there) == read


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "x"}, "classify"),
        ({"text": "a", "label": 3}, "classify"),
        ({"text": "a", "label": 3.5}, "regression"),
        ({"text": "a", "text_pair": "b", "label": "2.5"}, "regression"),
        ({"text": "a", "label": ["x", "y"]}, "multi-label"),
        ({"words": ["a"], "tags": ["O"]}, "token-classify"),
        ({"text": "a"}, "causal-lm"),
    ],
)
def test_columns_and_labels_say_which_task_it_is(row: dict[str, object], kind: str) -> None:
    assert task_for(Records.of([row])).name == kind


def test_an_unused_pair_is_named_among_the_problems_once() -> None:
    rows = [{"text": "a", "text_pair": "b"}] * 3
    assert inspect(Records.of(rows), Task(kind="causal-lm")).log.count == 1
