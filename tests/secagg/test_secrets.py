"""No secret byte in a repr, a log, an exception, or a state that no longer needs it."""

import logging
import traceback

import pytest

from fedpeft.entropy import seeded_entropy
from fedpeft.ids import ParticipantId
from fedpeft.secagg import Open, Summed
from fedpeft.secagg.device_state import Advertised, Closed, secret_keys
from fedpeft.testing.secagg import STAGES, Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

ONE = ParticipantId(1)


def secrets_of(a: Round) -> list[bytes]:
    """Everything that device 1 must keep to itself, known here because the entropy is seeded."""
    state = a.fleet.ledgers[ONE].load("run")
    assert isinstance(state, Advertised)
    keys = secret_keys(state.root, state.participation)
    return [state.root.value, keys.mask_seed.value, *(seed.value for seed in keys.self_seeds)]


def shows(text: str | bytes, secret: bytes) -> bool:
    if isinstance(text, bytes):
        return secret in text
    return secret.hex() in text or repr(secret)[2:-1] in text


@pytest.mark.parametrize("stage", STAGES)
def test_no_secret_shows_in_the_repr_of_any_state_or_message(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    twin = make_fleet(5)  # the same seeded entropy, so the same secrets
    known = Round(fleet=twin, spec=make_spec(twin))
    known.reach("share")
    own = secrets_of(known)
    fleet = make_fleet(5)
    state = Round(fleet=fleet, spec=make_spec(fleet)).reach(stage)
    device = fleet.ledgers[ONE].load("run")
    texts = [repr(state), repr(device), str(device), caplog.text, repr(fleet), repr(state.terms)]
    try:
        raise ValueError(device)
    except ValueError:
        texts.append(traceback.format_exc())
    secrets = [*own, state.terms.channel_seed.value, fleet.identities[0].secret_bytes()]
    assert not any(shows(text, secret) for text in texts for secret in secrets)


def test_no_secret_travels_and_none_is_kept_longer_than_needed() -> None:
    """Wire bytes of the whole round, and the dumped state after each stage."""
    fleet = make_fleet(5)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    state, dumped = a.open(), {}
    own: list[bytes] = []
    while isinstance(state, Open):
        stage = state.stage
        state = a.finish_stage(state)
        own = own or secrets_of(a)
        dumped[stage] = fleet.ledgers[ONE].dumped["run"]
    assert isinstance(state, Summed)
    root, mask_seed, self_seed = own
    for (_, request), reply in a.replies.items():
        assert not any(shows(request, secret) or shows(reply, secret) for secret in own)
    assert root in dumped["fit"]
    assert root in dumped["share"]
    for stage in ("mask", "consist", "reveal"):
        assert not any(shows(dumped[stage], secret) for secret in (root, mask_seed, self_seed)), stage
    assert isinstance(fleet.ledgers[ONE].load("run"), Closed)
    assert b"<secret" not in dumped["reveal"]


def test_keys_come_from_the_entropy_given_and_nothing_else() -> None:
    offers = []
    for _ in range(2):
        fleet = make_fleet(5, seed=4)
        a = Round(fleet=fleet, spec=make_spec(fleet))
        reply = a.fleet.sessions[ONE].begin(
            a.open().requests[ONE], owns=frozenset({"b"}), entropy=seeded_entropy(1, "device")
        )
        offers.append(reply)
    assert offers[0] == offers[1]
