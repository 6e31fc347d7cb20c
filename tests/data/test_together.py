"""Texts that belong together as rows of tokens: what is read, what is refused, what is left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedpeft.config.task import Task
from fedpeft.data import Records, encode
from fedpeft.data.tasks import inspect, task_for
from fedpeft.data.usable import encode_usable
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid
from fedpeft.tasks.conventions import aliases_in

TASK = Task(kind="embeddings", max_length=8)


def rows(*some: Mapping[str, object]) -> Records:
    return Records(some, tuple(f"a.jsonl:{line}" for line in range(1, len(some) + 1)))


class Deaf(WhitespaceTokenizer):
    """Makes nothing of some texts, as tokenizers do that normalize before they split."""

    def __call__(self, text: list[str], *more: Any, **named: Any) -> dict[str, list[list[object]]]:  # type: ignore[override]
        return super().__call__([one.replace("\u200b", "") for one in text], *more, **named)


def test_each_text_has_its_own_length_and_its_place_in_the_row() -> None:
    found = encode(
        rows(
            {"anchor": "a b c d e f g h i", "positive": "e"},
            {"anchor": "f", "positive": "g h", "negative": "i j k l m n o p q"},
        ),
        TASK,
        (),
        WhitespaceTokenizer(),
    )
    words = [
        [WhitespaceTokenizer.word_id(word) for word in text.split()]
        for text in ("a b c d e f g h e", "f g h i j k l m n o p")
    ]
    assert [ids.tolist() for ids in found.input_ids] == words
    assert [kinds.tolist() for kinds in found.segments or ()] == [[0] * 8 + [1], [0, 1, 1] + [2] * 8]
    assert found.truncated == 2


def test_a_text_without_tokens_is_refused_and_left_out_in_a_round() -> None:
    """Else its example would have a text less than its row says, and all that follow another's vector."""
    records = rows({"anchor": "a", "positive": "\u200b", "negative": "b"}, {"anchor": "c", "positive": "d"})
    with pytest.raises(DataInvalid, match=r"a\.jsonl:1"):
        encode(records, TASK, (), Deaf())
    found, why = encode_usable(records, TASK, Deaf())
    assert "1 of 2 rows" in why
    assert len(found) == 1
    assert found.contrast is not None
    np.testing.assert_array_equal((found.segments or ())[0], [0, 1])


@pytest.mark.parametrize(
    "column",
    [
        *("label", "labels", "score", "similarity", "similarity_score", "gold_label", "Rating"),
        *("is_duplicate", "is_selected", "relevance"),  # Quora's, MS MARCO's
    ],
)
def test_pairs_that_belong_together_more_or_less_are_refused(column: str) -> None:
    log = inspect(rows({"anchor": "a", "positive": "b", column: 0.1}), TASK).log
    with pytest.raises(DataInvalid, match=column):
        log.raise_if_any("rows")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("query", "passage"), {"anchor": "query", "positive": "passage"}),
        (("question1", "question2"), {"anchor": "question1", "positive": "question2"}),
        (("sentence1", "sentence2", "score"), {"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
        (
            ("anchor", "positive", "hard_negative"),
            {"negative": "hard_negative"},
        ),
        (("anchor", "positive"), {}),
        (("query", "answer", "prompt", "completion"), {}),
        (("question", "context"), {}),
    ],
)
def test_known_names_of_columns_are_read(there: tuple[str, ...], expected: dict[str, str]) -> None:
    assert aliases_in(there) == expected


def test_a_row_may_lack_the_negative_that_others_have() -> None:
    records = rows(
        {"anchor": "a", "positive": "b", "negative": "c"}, {"anchor": "d", "positive": "e", "negative": None}
    )
    inspect(records, TASK).log.raise_if_any("rows")
    assert task_for(records).name == "embeddings"
    assert [len(ids) for ids in encode(records, TASK, (), WhitespaceTokenizer()).input_ids] == [3, 2]


@pytest.mark.parametrize(("column", "text"), [("negative", "b"), ("positive", "a")])
def test_texts_that_teach_nothing_are_refused(column: str, text: str) -> None:
    row = {"anchor": "a", "positive": "b", "negative": "c"} | {column: text}
    with pytest.raises(DataInvalid, match="another text"):
        inspect(rows(row), TASK).log.raise_if_any("rows")
