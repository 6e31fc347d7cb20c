"""A run, FIT and history included, and five lies, by a coordinator written from docs/protocol.md alone."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpeft.round.transport import Stage
from fedpeft.testing import fleet as toy_fleet
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from tests.outsider.coordinator import Coordinator
from tests.outsider.messages import decode, encode
from tests.outsider.primitives import H, u4
from tests.outsider.work import fit, sha, state_digest, terms_for


class Run:
    """A run at devices that train, FIT and history included."""

    def __init__(self, n: int = 5) -> None:
        spec = toy_spec({"x": 3, "y": 2})
        self.learning, first = toy_plan(spec).to_json(), toy_state(spec)
        self.state = [(block.block_id, np.asarray(first[block.block_id])) for block in spec.blocks]
        self.first, self.links, self.sums = state_digest(self.state), [], []
        deltas = [{"x": one_hot(3, i % 3), "y": one_hot(2, i % 2)} for i in range(n)]
        self.deltas = deltas
        fleet = toy_fleet.enrol({f"d{i}": GivenTrainer(spec, delta) for i, delta in enumerate(deltas)})
        self.devices = {i: fleet.devices[node] for i, node in enumerate(sorted(fleet.devices), 1)}
        self.key = Ed25519PrivateKey.from_private_bytes(fleet.coordinator.secret_bytes())
        self.public = self.key.public_key().public_bytes_raw()
        profiles = [self.ask(i, "query.profile", encode("ProfileRequest", run_id="toy-run"))[1] for i in self.devices]
        self.people = [(p["device"], p["organisation"], p["identity"]) for p in profiles]

    def ask(self, i, kind, request):
        return decode(self.devices[i].handle(Stage(kind), request))

    def offered(self, state=None, work=None, **terms):
        """A coordinator of the next round, and the request for FIT."""
        signed, work_bytes, history = terms_for(
            self.learning,
            state or self.state,
            ["x", "y"],
            {"x": [3], "y": [2]},
            len(self.links) + 1,
            self.public,
            self.links,
            self.first if self.links else None,
            work,
        )
        outsider = Coordinator(self.key, self.people, signed | terms)
        sent = [] if self.links else state or self.state
        return outsider, fit(outsider, self.learning, work_bytes, history, sent, sums=self.sums)

    def fitted(self, outsider, request, who=None):
        """What each device answers FIT; its advert, if it is ready, goes to the coordinator."""
        found = {}
        for i in who or self.devices:
            kind, answer = self.ask(i, "train.fit", request)
            found[i] = answer["reason"] if kind == "Failure" else kind
            if kind == "Ready":
                outsider.on_advertise(i, answer["advertise"])
        return found

    def stage(self, kind, requests, take, *, lost=()):
        """The reasons of those who refuse."""
        refused = {}
        for i, request in requests.items():
            if i not in lost:
                payload = self.devices[i].handle(Stage(kind), request)
                name, answer = decode(payload)
                if name == "Refusal":
                    refused[i] = answer["reason"]
                take(i, payload)
        return refused

    def commit(self, outsider, sums) -> None:
        """The mean of what changed, and the link that says so."""
        opened = {block: sums[block] for block in ("x", "y")}
        self.state = [
            (
                block,
                np.float32(values.astype(float) + opened[block][0] / opened[block][1]) if block in opened else values,
            )
            for block, values in self.state
        ]
        words = {block: total[2].tobytes() for block, total in opened.items()}
        self.sums = [{"block_id": block, "values": values} for block, values in words.items()]
        self.links.append(
            {
                "round_id": len(self.links) + 1,
                "attempt": 1,
                "state": state_digest(self.state),
                "outcome": outsider.c3,
                "sums": H("sums", *[part for block in words for part in (block, sha(words[block]))]),
                "devices": len(self.people),
                "population": len(self.people),
                "survivors": u4(len(outsider.u3)),
                "weight": len(outsider.u3),
                "owners": b"".join(u4(total[1]) for total in opened.values()),
                "weights": b"",
                "clip": 0.0,
            }
        )

    def round(self, lost=()):
        outsider, request = self.offered()
        assert set(self.fitted(outsider, request).values()) == {"Ready"}
        assert not self.stage("train.share", outsider.share_requests(), outsider.on_shares)
        assert not self.stage("train.mask", outsider.mask_requests(), outsider.on_masked, lost=lost)
        assert not self.stage("train.consist", outsider.consist_requests(), outsider.on_agreement)
        assert not self.stage("train.reveal", outsider.reveal_requests(), outsider.on_revealed)
        assert outsider.excluded == {}
        return outsider, outsider.unmask()


def test_rounds_of_a_run_follow_from_the_document_with_their_work_and_history() -> None:
    run = Run()
    for lost in ((2,), (), (4,)):
        outsider, sums = run.round(lost)
        plain = sum(run.deltas[v - 1]["x"].astype(float) for v in outsider.u3)
        assert np.allclose(sums["x"][0], plain, atol=1e-6)
        assert set(sums) == {"x", "y", "metrics", "task-metrics", "train-loss"}
        run.commit(outsider, sums)


@pytest.mark.parametrize(
    "work", [{"learning_rate_factor": 0.0}, {"first_step": 1}, {"train": False}, {"blocks": ["x"]}, {"plan": b"p" * 32}]
)
def test_the_outsiders_other_work_is_refused(work) -> None:
    run = Run()
    assert set(run.fitted(*run.offered(work=work)).values()) == {"refused"}


def test_the_outsiders_wrong_states_are_refused() -> None:
    run = Run()
    crafted = [(block, values + np.float32(0.5) if block == "x" else values) for block, values in run.state]
    assert set(run.fitted(*run.offered(state=crafted)).values()) == {"refused"}
    run = Run()
    run.commit(*run.round())
    run.state = [
        (block, np.nextafter(values, np.float32(9)) if block == "x" else values) for block, values in run.state
    ]
    run.links[0]["state"] = state_digest(run.state)
    assert set(run.fitted(*run.offered()).values()) == {"refused"}


def test_the_outsiders_other_terms_for_one_device_give_no_common_sum() -> None:
    run = Run()
    outsider, request = run.offered()
    other, for_one = run.offered(stage_deadline_s=61.0)
    assert run.fitted(outsider, request, (2, 3, 4, 5)) | run.fitted(other, for_one, (1,)) == dict.fromkeys(
        range(1, 6), "Ready"
    )
    outsider.adverts[1] = other.adverts[1]
    refused = run.stage("train.share", outsider.share_requests(), outsider.on_shares)
    assert refused == dict.fromkeys((2, 3, 4, 5), "bad-roster") | {1: "wrong-round"}


def test_a_device_that_the_outsider_showed_fewer_sharers_is_not_unmasked() -> None:
    run = Run(9)
    outsider, request = run.offered()
    run.fitted(outsider, request)
    run.stage("train.share", outsider.share_requests(), outsider.on_shares)
    everybody, kept = dict(outsider.cipher), {}
    outsider.cipher = {v: everybody[v] for v in sorted(everybody)[: outsider.t + 1]}
    lie = outsider.mask_requests()[1]
    run.stage("train.mask", {1: lie}, lambda i, reply: kept.update({i: decode(reply)[1]}))
    outsider.cipher = everybody
    requests = outsider.mask_requests()
    run.stage("train.mask", requests, outsider.on_masked, lost=(1,))
    outsider.masked[1] = kept[1]
    assert run.stage("train.consist", outsider.consist_requests(), outsider.on_agreement) == {1: "wrong-round"}
    refused = run.stage("train.reveal", outsider.reveal_requests(), outsider.on_revealed)
    assert refused == dict.fromkeys(range(2, 10), "bad-agreement") | {1: "out-of-order"}


def test_two_survivor_sets_of_the_outsider_get_no_quorum() -> None:
    run = Run(9)
    outsider, request = run.offered()
    run.fitted(outsider, request)
    run.stage("train.share", outsider.share_requests(), outsider.on_shares)
    run.stage("train.mask", outsider.mask_requests(), outsider.on_masked)
    masked, refused = dict(outsider.masked), {}
    for survivors, asked in ((range(1, 10), (1, 2, 3, 4, 9)), (range(1, 9), (5, 6, 7, 8))):
        outsider.masked = {v: masked[v] for v in survivors}
        requests = outsider.consist_requests()
        assert not run.stage("train.consist", {v: requests[v] for v in asked}, outsider.on_agreement)
        outsider.t = outsider.T = 0  # the coordinator that lies goes on without its quorum
        reveal = outsider.reveal_requests()
        refused |= run.stage("train.reveal", {v: reveal[v] for v in asked}, outsider.on_revealed)
    assert refused == dict.fromkeys(range(1, 10), "bad-agreement")
