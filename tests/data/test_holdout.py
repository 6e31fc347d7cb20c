from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data import Records, split_each, split_holdout
from fedpeft.data.holdout import _ranks, _text_key, _text_keys
from fedpeft.errors import DataInvalid

labelled = st.lists(
    st.fixed_dictionaries({"text": st.sampled_from("abcdefghijklmnop"), "label": st.sampled_from("xyz")}), max_size=30
)
shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**63 - 1)


def numbered(n: int, label: str = "x") -> list[dict[str, object]]:
    return [{"text": f"{label} {i}", "label": label} for i in range(n)]


def key(row: dict[str, object]) -> int:
    return int(np.concatenate([*_ranks(Records.of([row]), 0)])[0])


def texts(records: Records) -> set[object]:
    return {row["text"] for row in records}


@given(labelled, shares, seeds)
def test_the_two_sides_are_disjoint_and_complete(rows: list[dict[str, object]], share: float, seed: int) -> None:
    records = Records.of(rows)
    train, held = split_holdout(records, share, seed)
    assert sorted([*train.origins, *held.origins]) == sorted(records.origins)
    assert not texts(train) & texts(held)


@given(labelled, shares, seeds, st.randoms())
def test_the_order_of_the_records_does_not_matter(
    rows: list[dict[str, object]], share: float, seed: int, shuffle: object
) -> None:
    records = Records.of(rows)
    shuffled = records.select(sorted(range(len(records)), key=lambda _: shuffle.random()))  # type: ignore[attr-defined]
    for side, again in zip(split_holdout(records, share, seed), split_holdout(shuffled, share, seed), strict=True):
        assert sorted(side.origins) == sorted(again.origins)


@given(labelled, shares, seeds)
def test_neither_side_is_empty_when_there_are_two_distinct_examples(
    rows: list[dict[str, object]], share: float, seed: int
) -> None:
    train, held = split_holdout(Records.of(rows), share, seed)
    distinct = len({row["text"] for row in rows})
    assert bool(train) == (distinct >= 1)
    assert bool(held) == (distinct >= 2)


@given(labelled, shares, seeds, st.data())
def test_split_each_moves_no_example_when_another_comes_or_goes(
    rows: list[dict[str, object]], share: float, seed: int, data: st.DataObject
) -> None:
    if not rows:
        return
    gone = data.draw(st.integers(0, len(rows) - 1))
    with_it = split_each(Records.of(rows), share, seed)
    without = split_each(Records.of(rows[:gone] + rows[gone + 1 :]), share, seed)
    for all_of, fewer in zip(with_it, without, strict=True):
        moved = Counter(map(str, all_of)) - Counter(map(str, fewer))
        assert not Counter(map(str, fewer)) - Counter(map(str, all_of))
        assert moved <= Counter([str(rows[gone])])


def test_split_each_holds_out_the_share_that_was_asked_for() -> None:
    train, held = split_each(Records.of(numbered(4000)), 0.25, 7)
    assert len(train) + len(held) == 4000
    assert 900 < len(held) < 1100  # 1000 +- 3.6 standard deviations


def test_each_side_keeps_the_order_of_the_records() -> None:
    train, held = split_holdout(Records.of(numbered(50)), 0.3, 0)
    for side in (train, held):
        numbers = [int(origin.split(":")[1]) for origin in side.origins]
        assert numbers == sorted(numbers)


def test_the_share_is_held_out_of_every_class() -> None:
    rows = numbered(50, "x") + numbered(20, "y") + numbered(10, "z")
    _, held = split_holdout(Records.of(rows), 0.2, 3)
    assert Counter(row["label"] for row in held) == {"x": 10, "y": 4, "z": 2}


def test_a_class_with_one_example_keeps_it_for_training() -> None:
    for seed in range(20):
        _, held = split_holdout(Records.of(numbered(10, "x") + numbered(1, "y")), 0.2, seed)
        assert {row["label"] for row in held} == {"x"}


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    records = Records.of(numbered(100))
    first, second = split_holdout(records, 0.5, 1)[1], split_holdout(records, 0.5, 2)[1]
    assert first.origins == split_holdout(records, 0.5, 1)[1].origins
    assert first.origins != second.origins
    assert 15 <= len(set(first.origins) & set(second.origins)) <= 35


def test_the_split_is_the_same_on_every_machine() -> None:
    _, held = split_holdout(Records.of(numbered(10)), 0.3, 0)
    assert [row["text"] for row in held] == ["x 1", "x 5", "x 7"]


def test_duplicates_that_differ_in_case_space_or_label_fall_on_one_side() -> None:
    same = ("Same", " same ", "SAME\n")
    rows: list[dict[str, object]] = [{"text": text, "label": label} for text in same for label in "xy"]
    for seed in range(10):
        train, held = split_holdout(Records.of(rows + numbered(3)), 0.5, seed)
        sizes = {sum(str(row["text"]).strip().lower() == "same" for row in side) for side in (train, held)}
        assert sizes == {0, 6}


ANY_TEXT = st.text(st.sampled_from('aB  "\\/\t\n\0\1\x1c\x7f\x85éİß\u3000\ud800'), max_size=8)


@given(st.lists(ANY_TEXT | st.text("aB \"'\\\n", max_size=8) | st.none() | st.integers(), max_size=12))
def test_texts_have_the_same_keys_together_as_alone(values: list[object]) -> None:
    assert _text_keys(values) == [_text_key(value) for value in values]


def test_content_of_pairs_is_both_halves_and_of_alpaca_all_three() -> None:
    pair = {"prompt": "a", "completion": "b", "id": 1}
    assert key(pair) != key({**pair, "completion": "c"})
    assert key(pair) == key({**pair, "id": 2})
    alpaca = {"instruction": "a", "input": "b", "output": "c"}
    assert key(alpaca) != key({**alpaca, "input": "d"})


def test_white_space_inside_a_conversation_does_not_make_it_another() -> None:
    def turns(content: str) -> dict[str, object]:
        return {"messages": [{"role": "assistant", "content": content}]}

    assert key(turns("a  b\n")) == key(turns("A b"))


def test_records_of_no_convention_are_split_by_all_their_columns() -> None:
    assert len(set(np.concatenate([*_ranks(Records.of([{"q": 1}, {"q": 2}, {"q": 1}]), 0)]).tolist())) == 2


def test_values_that_json_cannot_hold_do_not_stop_the_split() -> None:
    rows: list[dict[str, object]] = [{"text": "\ud83d"}, {"text": np.nan}, {"text": b"\xff"}]
    train, held = split_holdout(Records.of(rows), 0.4, 0)
    assert len(train) + len(held) == 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(DataInvalid, match="0 < holdout"):
        split_holdout(Records.of(numbered(3)), share, 0)
    with pytest.raises(DataInvalid, match="0 < holdout"):
        split_each(Records.of(numbered(3)), share, 0)
