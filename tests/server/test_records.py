"""Records survive the round trip through one line of JSON, and nothing else is taken for one."""

import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import IntegrityFailed
from fedpeft_server.run.records import (
    ClientRound,
    ClientState,
    Comparison,
    EventRecord,
    RoundMetrics,
    Summary,
    from_json,
    to_json,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**63 - 1)
clients = st.builds(
    ClientRound,
    client=st.text(),
    methods=st.text(),
    state=st.sampled_from(get_args(ClientState)),
    reason=st.text(),
    bytes_up=counts,
    bytes_down=counts,
    seconds=numbers,
)
rows = st.builds(
    RoundMetrics,
    round=counts,
    loss=st.none() | numbers,
    accuracy=st.none() | numbers,
    evaluators=counts,
    devices_invited=counts,
    devices_ready=counts,
    devices_survived=counts,
    bytes_up=counts,
    bytes_down=counts,
    seconds=numbers,
    skipped=st.dictionaries(st.text(), st.text(), max_size=2),
    rejected=st.dictionaries(st.text(), st.text(), max_size=2),
    clients=st.lists(clients, max_size=2).map(tuple),
    checkpoint=st.dictionaries(st.text(), st.text(), max_size=2),
)
EVENT = EventRecord(
    at="2026-11-22T12:00:00+00:00", kind="round.started", round=1, detail={"invited": 3, "note": "a\nb"}
)


@given(rows)
def test_a_row_comes_back_as_it_was_and_takes_one_line(row: RoundMetrics) -> None:
    line = to_json(row)
    assert "\n" not in line
    assert from_json(RoundMetrics, line, where="x") == row


def test_a_row_of_an_earlier_version_says_spared_of_a_device_that_was_not_needed() -> None:
    now = ClientRound(client="a", methods="lora r4", state="not_needed", bytes_up=0, bytes_down=9, seconds=1.0)
    earlier = to_json(now).replace('"not_needed"', '"spared"')
    assert '"spared"' in earlier
    assert from_json(ClientRound, earlier, where="x") == now


def test_a_row_of_before_sums_held_no_counts_says_that_there_were_evaluators_and_not_how_many() -> None:
    now = RoundMetrics(
        round=3, loss=0.1 + 0.2, accuracy=0.5, evaluators=1, devices_invited=4, devices_ready=4, devices_survived=4,
        bytes_up=1, bytes_down=2, seconds=0.5,
    )  # fmt: skip
    earlier = to_json(now).replace('"evaluators":1', '"examples":11')
    assert '"examples":11' in earlier
    assert from_json(RoundMetrics, earlier, where="x") == now
    none = from_json(RoundMetrics, earlier.replace('"examples":11', '"examples":0'), where="x")
    assert none.evaluators == 0


@pytest.mark.parametrize("examples", ["-1.5", "true", '"11"', "null", '11,"evaluators":1', '11,"examples":12'])
def test_a_row_with_anything_else_for_examples_is_refused(examples: str) -> None:
    row = RoundMetrics(
        round=3, loss=None, accuracy=None, evaluators=1, devices_invited=4, devices_ready=4, devices_survived=4,
        bytes_up=1, bytes_down=2, seconds=0.5,
    )  # fmt: skip
    with pytest.raises(IntegrityFailed, match="schema version 1"):
        from_json(RoundMetrics, to_json(row).replace('"evaluators":1', f'"examples":{examples}'), where="x")


def test_an_event_and_a_summary_come_back_as_they_were() -> None:
    compared = (Comparison(client="all", examples=9, alone=0.5, federated=0.75, centralised=None),)
    summary = Summary(outcome="finished", rounds=3, seconds=1.0, bytes_up=1, bytes_down=2, comparison=compared)
    assert from_json(EventRecord, to_json(EVENT), where="x") == EVENT
    assert from_json(Summary, to_json(summary), where="x") == summary


def test_the_schema_version_comes_first() -> None:
    assert next(iter(json.loads(to_json(EVENT)))) == "schema_version"


def test_a_loss_that_is_not_finite_becomes_null() -> None:
    row = RoundMetrics(
        round=1,
        loss=math.nan,
        accuracy=None,
        evaluators=0,
        devices_invited=0,
        devices_ready=0,
        devices_survived=0,
        bytes_up=0,
        bytes_down=0,
        seconds=0.0,
    )
    assert from_json(RoundMetrics, to_json(row), where="x").loss is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"rounds": 1}, "rounds"),
        ({"kind": 3}, "kind"),
        ({"round": "1"}, "round"),
        ({"round": 1.5}, "round"),
    ],
)
def test_anything_but_this_schema_is_refused_and_named(change: dict[str, object], message: str) -> None:
    text = json.dumps({**json.loads(to_json(EVENT)), **change})
    with pytest.raises(IntegrityFailed, match=rf"events\.jsonl:3: expected a EventRecord .*{message}"):
        from_json(EventRecord, text, where="events.jsonl:3")


def test_a_missing_field_is_refused() -> None:
    document = json.loads(to_json(EVENT))
    del document["at"]
    with pytest.raises(IntegrityFailed, match="at"):
        from_json(EventRecord, json.dumps(document), where="x")
