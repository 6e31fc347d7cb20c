"""Rows of preferences in TRL's conventions: what is the prompt, what is refused, which tokens are trained on."""

from typing import Any

import numpy as np
import pytest

from fedpeft.config.task import Task
from fedpeft.data import encode
from fedpeft.data.encode import IGNORED, measure
from fedpeft.data.holdout import _ranks
from fedpeft.data.preference.rows import is_wanted, sides_of
from fedpeft.data.records import Records
from fedpeft.data.tasks import detect, inspect, task_for
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention

TASK = Task(kind="preference", max_length=64)
USER, GOOD, BAD = (
    {"role": "user", "content": "sky?"},
    {"role": "assistant", "content": "blue it is"},
    {"role": "assistant", "content": "green or so"},
)
ROWS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "the sky is", "chosen": " blue it is", "rejected": " green or so"},
    "implicit": {"chosen": "the sky is blue it is", "rejected": "the sky is green or so"},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "implicit messages": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "a prompt beside conversations": {"prompt": "sky?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "a prompt in words": {"prompt": "sky?", "chosen": [GOOD], "rejected": [BAD]},
}


@pytest.mark.parametrize("name", ROWS)
def test_every_form_of_a_pair_is_read_alike(name: str) -> None:
    records = Records.of([ROWS[name]])
    assert task_for(records).prefers
    assert inspect(records, TASK).log.count == 0
    sides = sides_of(ROWS[name])
    if "messages" in name or "prompt" in name:
        assert [side and side.row["messages"] for side in sides] == [[USER, GOOD], [USER, BAD]]
        assert [side and side.context for side in sides] == [1, 1]
    else:
        assert [side and side.row for side in sides] == [
            {"prompt": "the sky is", "completion": " blue it is"},
            {"prompt": "the sky is", "completion": " green or so"},
        ]
    encoded = encode(records, TASK, (), WhitespaceTokenizer())
    (ids,), (labels,), (segments,) = encoded.input_ids, encoded.labels, encoded.segments or ()
    word = WhitespaceTokenizer.word_id
    for side, said in ((0, ("blue", "it", "is")), (1, ("green", "or", "so"))):
        own = segments == side
        trained = ids[own][np.asarray(labels)[own] != IGNORED]
        assert trained[:2].tolist() == [word(one) for one in said[:2]]
        assert len(said) <= len(trained) <= len(said) + 1, "the answer, and what closes it"


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("true", True),
        ("False", False),
        (2, None),
        ("yes", None),
        (None, None),
    ],
)
def test_an_answer_is_wanted_or_not(label: object, wanted: bool | None) -> None:
    assert is_wanted(label) is wanted
    row = {"prompt": "the sky is", "completion": " blue", "label": label}
    records = Records.of([row])
    assert detect(records) is Convention.PROMPT_COMPLETION_LABEL
    assert inspect(records, TASK).log.count == (wanted is None)
    if wanted is not None:
        first, second = sides_of(row)
        assert (first is not None, second is not None) == (wanted, not wanted)
        encoded = encode(records, TASK, (), WhitespaceTokenizer())
        assert encoded.segments is not None
        assert set(encoded.segments[0].tolist()) == {0 if wanted else 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "another answer than chosen"),
        ({"chosen": "a b", "rejected": "a b c"}, "answers that part before one ends"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "prompt"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [USER]}, "assistant turn"),
        ({"prompt": [{"role": "boss", "content": "x"}], "chosen": [GOOD], "rejected": [BAD]}, "role"),
        ({"prompt": 3, "chosen": [GOOD], "rejected": [BAD]}, "prompt"),
    ],
)
def test_what_prefers_nothing_is_refused(row: dict[str, object], said: str) -> None:
    log = inspect(Records.of([row]), TASK).log
    assert log.count
    with pytest.raises(DataInvalid, match=said):
        log.raise_if_any("preferences")


def test_a_label_beside_completions_is_still_refused_of_a_language_model() -> None:
    records = Records.of([{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(DataInvalid, match="preference"):
        inspect(records, Task(kind="causal-lm")).log.raise_if_any("examples")


def test_either_side_has_at_most_half_of_the_length() -> None:
    long = " ".join(f"w{i}" for i in range(40))
    records = Records.of([{"prompt": long, "chosen": " yes it does", "rejected": f" no {long}"}])
    encoded = encode(records, Task(kind="preference", max_length=32), (), WhitespaceTokenizer())
    assert encoded.truncated == 1
    assert encoded.segments is not None
    assert all((encoded.segments[0] == side).sum() <= 16 for side in (0, 1))
    assert max(measure(records, TASK, WhitespaceTokenizer()).lengths) > 100


def test_answers_to_one_prompt_stay_on_one_side_of_the_split() -> None:
    rows = [{"prompt": "p", "chosen": f"a{i}", "rejected": "b"} for i in range(3)]
    assert len(set(np.concatenate([*_ranks(Records.of(rows), 0)]).tolist())) == 1
