"""Whose a row is, and on which side a person's rows are."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedpeft.config.model import Task
from fedpeft.data import Records, count_people, encode, encode_usable, load, split_people
from fedpeft.data.check import check_loaded
from fedpeft.data.people import NOBODY, note_nobodys, owners_of, people_in
from fedpeft.data.records import ProblemLog
from fedpeft.data.whitespace import WhitespaceTokenizer

TASK = Task(kind="classify", labels=("bird", "cat"))


def notes(*people: object) -> Records:
    rows = [{"text": f"note {n} on a cat", "label": "cat", "person": person} for n, person in enumerate(people)]
    return Records.of(rows, name="notes")


def test_a_row_without_a_person_is_nobodys() -> None:
    owners = owners_of(notes("a", "", None, "nan", " a ", 3, "3", 3.0, True, 2.5, "N/A"))
    assert owners is not None
    assert (owners == NOBODY).tolist() == [False, True, True, True, False, False, False, False, False, True, True]
    assert owners[0] == owners[4]
    assert owners[5] == owners[6] == owners[7]
    assert len({*owners.tolist()}) == 4
    assert owners_of(Records.of([{"text": "a", "label": "cat"}])) is None


def test_a_person_moves_no_other_between_the_sides() -> None:
    names = [f"patient {number % 40}" for number in range(120)]
    train, held_out = split_people(notes(*names), 0.3, 7)
    sides = [{row["person"] for row in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40
    assert 4 <= len(sides[1]) <= 20
    for gone in ("patient 3", "patient 11"):
        fewer = split_people(notes(*(name for name in names if name != gone)), 0.3, 7)
        assert [{row["person"] for row in side} for side in fewer] == [side - {gone} for side in sides]
    assert split_people(notes(*names), 0.3, 8)[1].rows != held_out.rows


def test_nobodys_rows_are_on_neither_side_and_count_as_no_person() -> None:
    records = notes("a", None, "b", "", "a")
    train, held_out = split_people(records, 0.5, 0)
    assert len(train) + len(held_out) == 3
    assert count_people(records) == 2


def test_what_training_sees_of_people_names_nobody_and_keeps_its_rows(tmp_path: Path) -> None:
    records = notes("Ada Lovelace", "Grace Hopper", "Ada Lovelace")
    whole = encode(records, TASK, TASK.labels, WhitespaceTokenizer())
    assert "Ada" not in repr(whole)
    assert whole.owners is not None
    assert whole.owners.tolist() == owners_of(records).tolist()  # type: ignore[union-attr]
    odd = Records.of([*records.rows[:1], {"text": "x", "label": "secret", "person": "b"}, *records.rows[2:]])
    some, _ = encode_usable(odd, TASK, WhitespaceTokenizer())
    assert some.owners is not None
    assert some.owners.tolist() == [whole.owners[0], whole.owners[2]]


def checked(folder: Path, rows: list[dict], column_map: dict[str, str]):
    path = folder / "notes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return check_loaded(load(str(path), column_map), TASK, holdout=0.2, seed=0, column_map=column_map)


def test_a_check_shows_examples_of_a_person_and_refuses_rows_without_one(tmp_path: Path) -> None:
    rows = [{"text": f"note {n} about", "label": "cat", "patient": who} for n, who in enumerate("aaaaabbc")]
    report = checked(tmp_path, [*rows, {"text": "whose", "label": "bird", "patient": None}], {"person": "patient"})
    assert report.people is not None
    assert (report.people.count, report.people.percentiles[50], report.people.percentiles[100]) == (3, 2, 5)
    assert [problem.expected for problem in report.problems] == ["whose row this is"]
    assert report.problems[0].where.endswith("notes.jsonl:9: person")
    assert checked(tmp_path, rows, {}).people is None


def test_data_without_the_column_says_how_to_name_it() -> None:
    log = ProblemLog()
    note_nobodys(Records.of([{"text": "a", "label": "cat"}]), log)
    assert "data.map" in log.problems[0].remedy
    assert people_in(Records.of([{"text": "a"}])) is None
    assert people_in(notes(None, None)).percentiles == {}  # type: ignore[union-attr]
    assert np.array_equal(owners_of(notes("a")), owners_of(notes("a")))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    from fedpeft.errors import DataInvalid

    with pytest.raises(DataInvalid):
        split_people(notes("a"), share, 0)
