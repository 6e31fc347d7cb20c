"""Records on a disk that another version of fedpeft wrote: refused by name, never misread, and no bar to a new run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, make_dataclass
from enum import Enum

import numpy as np
import pytest

from fedpeft.errors import FedpeftError, IntegrityFailed
from fedpeft.ids import NodeId
from fedpeft.round.messages import Failure, FitRequest, Profile, ProfileRequest, Ready
from fedpeft.round.pending import PendingRound, load_round
from fedpeft.round.task import PublishedSums
from fedpeft.round.transport import Stage
from fedpeft.secagg import FileLedger, IdentityKey
from fedpeft.secagg.primitives import Secret
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, fit_request, toy_task
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import OtherVersion, decode, encode, form_of
from fedpeft.wire.codec import HEADER, _kept
from fedpeft_client.training.site_trainer import SizesSeen

SPEC = toy_spec({"head": 4})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(4))
NODE = NodeId(1000)


@pytest.fixture
def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)})


def of_another_version(record: bytes) -> bytes:
    """The record with another form; its fields are as they were."""
    form = bytes(byte ^ 0xFF for byte in record[HEADER.size : HEADER.size + 8])
    return record[: HEADER.size] + form + record[HEADER.size + 8 :]


def asked(fleet: ToyFleet, request: FitRequest) -> tuple[Ready | Failure, str]:
    told: list[str] = []
    fleet.devices[NODE]._tell = lambda trouble: told.append(trouble.cause)
    reply = decode(fleet.devices[NODE].handle(Stage.FIT, encode(request)), (Ready, Failure))
    assert isinstance(reply, Ready | Failure)
    return reply, " ".join(told)


def test_every_record_is_of_a_kept_kind() -> None:
    """What has a tag of a store record or of a coordinator's file, of both sides."""
    names = {kind.__name__ for kind in _kept}
    assert names >= {"OpenRound", "SeenLinks", "RunPin", "KeptBlocks", "AgreedRoster", "HeldBlocks", SizesSeen.__name__}
    assert names >= {"PendingRound", PublishedSums.__name__, "_PendingSum", "Masked", "_Marks"}


@pytest.mark.parametrize("kind", sorted(_kept, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_a_record_with_one_field_more_or_in_another_order_has_another_form(kind: type) -> None:
    own = [(field.name, field.type) for field in fields(kind)]
    for other in ([*own, ("more", int)], own[::-1] if len(own) > 1 else [("renamed", own[0][1])]):
        made = make_dataclass(kind.__name__, other, frozen=True, namespace={"__module__": kind.__module__})
        assert form_of(made) != form_of(kind)


def test_a_form_goes_down_to_the_fields_of_nested_records() -> None:
    @dataclass
    class Inner:
        a: int

    @dataclass
    class InnerGrown:
        a: int
        b: int

    def outer(inner: type) -> type:
        return make_dataclass("Outer", [("parts", tuple[inner, ...])])  # type: ignore[valid-type]

    assert form_of(outer(Inner)) != form_of(outer(InnerGrown))


def test_a_form_knows_the_values_of_an_enumeration() -> None:
    """A record with a reason that this version does not know could not be read."""

    def holding(values: list[str]) -> type:
        return make_dataclass("Holding", [("reason", Enum("Reason", [(one, one) for one in values]))])

    assert form_of(holding(["a", "b"])) != form_of(holding(["a"]))
    assert form_of(holding(["a", "b"])) == form_of(holding(["a", "b"]))


def test_records_of_another_version_are_refused_as_such(fleet: ToyFleet) -> None:
    asked(fleet, fit_request(fleet, PLAN, STATE))
    store = fleet.stores["d0"].values
    records = {key: value for key, value in store.items() if value[:2] == b"FP"}
    assert len(records) >= 3
    for value in records.values():
        kind = next(kind for kind in _kept if form_of(kind) == value[HEADER.size : HEADER.size + 8])
        assert decode(value, kind)
        with pytest.raises(OtherVersion, match="another version's"):
            decode(of_another_version(value), kind)
        with pytest.raises(FedpeftError):
            decode(value[: HEADER.size] + value[HEADER.size + 8 :], kind)  # as it was before records had forms


def aged(values: Mapping[str, bytes]) -> dict[str, bytes]:
    return {key: of_another_version(value) if value[:2] == b"FP" else value for key, value in values.items()}


def test_a_run_that_began_under_another_version_is_refused_by_name(fleet: ToyFleet) -> None:
    assert isinstance(asked(fleet, fit_request(fleet, PLAN, STATE))[0], Ready)
    fleet.stores["d0"].values = aged(fleet.stores["d0"].values)
    reply, cause = asked(fleet, fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, attempt=2)))
    assert isinstance(reply, Failure)
    assert "another version" in cause
    assert PLAN.run_id in cause


def test_one_record_of_another_form_is_enough_to_refuse_the_run(
    fleet: ToyFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is: the pin knows the forms of all of them."""
    assert isinstance(asked(fleet, fit_request(fleet, PLAN, STATE))[0], Ready)
    monkeypatch.setattr("fedpeft.round.device.pins.FORMS", b"another!")
    reply, cause = asked(fleet, fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, attempt=2)))
    assert isinstance(reply, Failure)
    assert "another version" in cause


def test_a_new_run_is_joined_whatever_an_older_version_left(fleet: ToyFleet) -> None:
    asked(fleet, fit_request(fleet, PLAN, STATE))
    fleet.stores["d0"].values = aged(fleet.stores["d0"].values)
    profile = decode(fleet.devices[NODE].handle(Stage.PROFILE, encode(ProfileRequest(run_id=PLAN.run_id))), Profile)
    assert (profile.held, profile.after) == ((), 0)
    plan = PLAN.model_copy(update={"run_id": "a-new-run"})
    assert isinstance(asked(fleet, fit_request(fleet, plan, STATE))[0], Ready)
    np.testing.assert_array_equal(
        fleet.trainers["d0"].received[-1][SPEC.blocks[1].block_id], STATE[SPEC.blocks[1].block_id]
    )  # type: ignore[union-attr]


def test_a_ledger_of_another_version_says_so_and_what_to_do(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = IdentityKey.from_bytes(bytes(range(32)))
    FileLedger.create(tmp_path / "ledger", key)
    monkeypatch.setattr("fedpeft.wire.codec.form_of", lambda kind: b"another!")
    with pytest.raises(FedpeftError, match=r"an earlier one's.*reset-ledger"):
        FileLedger(tmp_path / "ledger", key)


def test_a_pending_round_of_another_version_is_left_to_that_version() -> None:
    pending = PendingRound(round_id=4, attempt=1, members=(), accounts=(), summing=Secret(b"sum"))
    assert load_round(encode(pending), where="run/pending") == pending
    with pytest.raises(IntegrityFailed, match=r"run/pending: .*another version's.*finish the round with the version"):
        load_round(of_another_version(encode(pending)), where="run/pending")
