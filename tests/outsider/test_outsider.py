"""docs/protocol.md is enough: a coordinator and a device written from it alone complete rounds with fedpeft's own."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpeft.ring import SumRange
from fedpeft.secagg import Mode, Participant, RoundSpec, SummedBlock
from fedpeft.secagg import coordinator as real_coordinator
from fedpeft.secagg import device as real_device
from fedpeft.secagg.coordinator_state import Open, Summed
from fedpeft.secagg.graph import masking_degree, sharing_degree
from fedpeft.secagg.messages import REPLIES, REQUESTS
from fedpeft.secagg.policy import DevicePolicy, Enrolled
from fedpeft.secagg.primitives import IdentityKey
from fedpeft.wire import codec
from tests.outsider.coordinator import Coordinator
from tests.outsider.device import Device
from tests.outsider.graphs import frac_ceil, masking, sharing
from tests.outsider.messages import CONTEXTS, decode
from tests.outsider.primitives import NO_SHARE
from tests.outsider.vectors import levels, limits

HERE = Path(__file__).parent
BLOCKS = [
    {
        "block_id": "a",
        "ranges": [
            {"length": 5, "max_abs": 2.0, "exact": False},
            {"length": 3, "max_abs": 7.0, "exact": True},
        ],
        "bits": 20,
    },
    {"block_id": "bö", "ranges": [{"length": 9, "max_abs": 4.0, "exact": False}], "bits": 16},
]
TERMS = {
    "run_id": "run",
    "round_id": 1,
    "attempt": 1,
    "mode": "full",
    "blocks": BLOCKS,
    "min_cohort": 3,
    "corrupt_fraction": 0.1,
    "dropout_fraction": 0.1,
    "stage_deadline_s": 30.0,
    "noise": None,
    "work": b"w" * 32,
    "history": b"h" * 32,
}


def group(n: int):
    """A coordinator's key, devices' keys, rows of the roster, and inputs; the first device owns no second block."""
    keys = [Ed25519PrivateKey.generate() for _ in range(n + 1)]
    people = [(f"d{i}", f"ö{i}", key.public_key().public_bytes_raw()) for i, key in enumerate(keys[1:])]
    rng = np.random.default_rng(0)
    inputs = [
        {"a": np.r_[rng.uniform(-1, 1, 5), rng.integers(-7, 8, 3)].astype(np.float32), "bö": rng.normal(size=9)}
        for _ in range(n)
    ]
    del inputs[0]["bö"]
    return keys[0], keys[1:], people, inputs


def expect_sum(found, members, block, inputs, n):
    """Within one step a device of the plain sum, and equal in exact ranges."""
    step = np.array([0 if exact else most / levels(block["bits"], n) for most, exact in limits(block)])
    plain = sum(np.asarray(inputs[v - 1][block["block_id"]], np.float32).astype(float) for v in members)
    assert (np.abs(found - plain) <= len(members) * step + 1e-12).all()


class Ours:
    """fedpeft's device behind bytes."""

    def __init__(self, name, organisation, key, coordinator, inputs, size):
        self.key = IdentityKey.from_bytes(key.private_bytes_raw())
        self.inputs = {block: np.asarray(vector, np.float32) for block, vector in inputs.items()}
        self.enrolled = Enrolled(device=name, organisation=organisation)
        self.policy, self.size, self.state = DevicePolicy(coordinator_key=coordinator), size, None

    def on(self, payload):
        request = codec.decode(payload, REQUESTS)
        if self.state is None:
            step = real_device.begin(
                request,
                owns=set(self.inputs),
                identity=self.key,
                enrolled=self.enrolled,
                policy=self.policy,
                entropy=os.urandom,
                weight_class=self.size,
            )
        else:
            step = real_device.answer(self.state, request, identity=self.key, inputs=self.inputs, rounding=os.urandom)
        self.state = step.state
        return codec.encode(step.reply)


def stage(devices, requests, take, *, lost=(), late=()):
    """Each request to its device; some get none, the replies of some do not come back."""
    for i, request in requests.items():
        if i not in lost:
            reply = devices[i].on(request)
            if i not in late:
                take(i, reply)


@pytest.mark.parametrize(
    ("n", "lost", "late"),
    [(6, (), ()), (6, (2,), (3,)), pytest.param(150, (2, 60), (3,), marks=pytest.mark.slow, id="circulant graphs")],
)
def test_a_coordinator_written_from_the_document_opens_the_sum_of_fedpefts_devices(n, lost, late) -> None:
    key, keys, people, inputs = group(n)
    outsider = Coordinator(key, people, TERMS)
    public = key.public_key().public_bytes_raw()
    devices = {i: Ours(*people[i - 1][:2], keys[i - 1], public, inputs[i - 1], i % 64) for i in range(1, n + 1)}
    stage(devices, {i: outsider.offer() for i in devices}, outsider.on_advertise)
    stage(devices, outsider.share_requests(), outsider.on_shares)
    stage(devices, outsider.mask_requests(), outsider.on_masked, lost=lost)
    stage(devices, outsider.consist_requests(), outsider.on_agreement, late=late)
    stage(devices, outsider.reveal_requests(), outsider.on_revealed)
    assert outsider.excluded == {}
    for block, (values, count, _) in outsider.unmask().items():
        members = [v for v in outsider.u3 if block in inputs[v - 1]]
        assert count == len(members)
        expect_sum(values, members, outsider.blocks[block], inputs, n)


def test_a_share_that_never_opened_is_reported_and_done_without() -> None:
    key, keys, people, inputs = group(6)
    outsider = Coordinator(key, people, TERMS)
    public = key.public_key().public_bytes_raw()
    devices = {i: Ours(*people[i - 1][:2], keys[i - 1], public, inputs[i - 1], 0) for i in range(1, 7)}
    stage(devices, {i: outsider.offer() for i in devices}, outsider.on_advertise)
    stage(devices, outsider.share_requests(), outsider.on_shares)
    outsider.cipher[6][5] = bytes(len(outsider.cipher[6][5]))
    stage(devices, outsider.mask_requests(), outsider.on_masked)
    assert outsider.masked[5]["unopened"] == [6]
    stage(devices, outsider.consist_requests(), outsider.on_agreement)
    stage(devices, outsider.reveal_requests(), outsider.on_revealed)
    assert {of for of, share in outsider.shares[5].items() if share == NO_SHARE} == {(6, "a"), (6, "bö")}
    expect_sum(outsider.unmask()["a"][0], range(1, 7), BLOCKS[0], inputs, 6)


@pytest.mark.parametrize(
    ("n", "lost"),
    [
        (9, {"MaskRequest": (2,), "ConsistRequest": (3,)}),
        (6, {"RoundOffer": (2,)}),
        pytest.param(
            150, {"MaskRequest": (2, 9), "ConsistRequest": (3,)}, marks=pytest.mark.slow, id="circulant graphs"
        ),
    ],
)
def test_a_device_written_from_the_document_is_in_the_sum_of_fedpefts_coordinator(n, lost) -> None:
    key, keys, people, inputs = group(n)
    rng, public = np.random.default_rng(1), key.public_key().public_bytes_raw()
    devices = {i: Device(*people[i - 1][:2], keys[i - 1], public, inputs[i - 1], i % 64, rng) for i in range(1, n + 1)}
    blocks = [
        SummedBlock(block_id=b["block_id"], bits=b["bits"], ranges=tuple(SumRange(**part) for part in b["ranges"]))
        for b in BLOCKS
    ]
    rows = [
        Participant(participant_id=i, device=device, organisation=organisation, identity=identity)
        for i, (device, organisation, identity) in enumerate(people, 1)
    ]
    terms = TERMS | {"mode": Mode.FULL, "blocks": tuple(blocks), "participants": tuple(rows)}
    state = real_coordinator.open_round(
        RoundSpec(**terms), identity=IdentityKey.from_bytes(key.private_bytes_raw()), entropy=os.urandom
    )
    while isinstance(state, Open):
        requests = {i: codec.encode(state.requests[i]) for i in sorted(state.requests)}
        for i, request in requests.items():
            if i not in lost.get(decode(request)[0], ()):
                state = real_coordinator.receive(state, i, codec.decode(devices[i].on(request), REPLIES))
        state = real_coordinator.close_stage(state)
    assert isinstance(state, Summed), state
    assert set(state.rejected) == {i for some in lost.values() for i in some}
    assert {reason.reason.value for reason in state.rejected.values()} == {"dropped-out"}
    assert set(state.sums) == {"a", "bö"}
    for block in BLOCKS:
        total = state.sums[block["block_id"]]
        expect_sum(total.values, total.members, block, inputs, n)


@pytest.mark.parametrize("n", [129, 151, 200])
@pytest.mark.parametrize(("corrupt", "dropout"), [(0.1, 0.1), (0.2, 0.1), (0.49, 0.49), (0.0, 0.0)])
def test_degrees_read_from_the_document_are_those_of_the_code(n, corrupt, dropout) -> None:
    """151 at 49 % and 49 %: with k = n - 1 allowed the threshold would be another one."""
    degree = sharing_degree(n, corrupt, dropout)
    assert degree is not None
    assert sharing(n, corrupt, dropout) == (degree.neighbours, degree.threshold)
    degree = masking_degree(n, n, corrupt, dropout, 3)
    assert masking(n, frac_ceil(corrupt, n), 3, dropout) == (degree and (degree.neighbours, degree.threshold))


def test_the_document_names_the_context_of_every_message_of_a_sum() -> None:
    assert set(CONTEXTS) == {kind.__name__ for kind in (*REQUESTS, *REPLIES)} - {"Refusal"}


def test_the_outsider_reads_nothing_of_fedpeft() -> None:
    for file in HERE.glob("*.py"):
        if not file.name.startswith("test_"):
            assert not re.search(r"^\s*(from|import) fedpeft", file.read_text(), re.MULTILINE), file.name
