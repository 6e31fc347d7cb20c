"""Writes tests/vectors/round.json: one whole secure sum of three devices, every byte of it.

    python tests/vectors/generate.py

Seeded entropy makes it repeatable; a test compares its output with the file. ``verify.py`` checks the file without
any of the code that wrote it.
"""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import REPLIES, REQUESTS, Open, RoundOffer, SummedBlock
from fedpeft.testing.secagg import Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec
from fedpeft.wire import decode, encode

__all__ = ["TARGET", "generate"]

TARGET = Path(__file__).with_name("round.json")


def plain(value: object) -> object:
    """Bytes as hex, tuples as lists, messages as objects."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def generate() -> str:
    """The file's text."""
    fleet = make_fleet(3, seed=20261122)
    blocks = [
        SummedBlock(block_id=BlockId("sixteen"), bits=16, ranges=(SumRange(length=5, max_abs=9.0, exact=True),)),
        SummedBlock(block_id=BlockId("lanes"), bits=21, ranges=(SumRange(length=7, max_abs=300.0, exact=True),)),
    ]
    rng = np.random.default_rng(1)
    inputs = {
        ParticipantId(i): {
            BlockId("sixteen"): rng.integers(-9, 10, 5).astype(np.float32),
            BlockId("lanes"): rng.integers(-300, 301, 7).astype(np.float32),
        }
        for i in (1, 2, 3)
    }
    a = Round(fleet=fleet, spec=make_spec(fleet, blocks, run_id="vectors"), inputs=inputs)
    state, roots = a.open(), {}
    offer = state.requests[ParticipantId(1)]
    assert isinstance(offer, RoundOffer)
    while isinstance(state, Open):
        following = a.finish_stage(state)
        if state.stage == "fit":
            roots = {str(m): ledger.load("vectors").root.value.hex() for m, ledger in fleet.ledgers.items()}
        state = following
    exchanges = [
        {
            "device": member,
            "request": {"type": type(asked := decode(request, REQUESTS)).__name__, **plain(asked)},
            "reply": {"type": type(said := decode(reply, REPLIES)).__name__, **plain(said)},
        }
        for (member, request), reply in a.replies.items()
    ]
    document = {
        "source": "docs/protocol.md; written by tests/vectors/generate.py",
        "expected": "every reply follows from the roots, the requests and the inputs; the sums are the inputs' sums",
        "coordinator_public": fleet.coordinator.public.hex(),
        "spec": plain(a.spec) | {"mode": a.spec.mode.value},
        "offer": encode(offer).hex(),
        "roots": roots,
        "inputs": {str(m): {b: v.tolist() for b, v in vectors.items()} for m, vectors in inputs.items()},
        "exchanges": exchanges,
        "sums": {block: total.values.tolist() for block, total in state.sums.items()},
    }
    return json.dumps(document, indent=1, default=str) + "\n"


if __name__ == "__main__":
    TARGET.write_text(generate())
