"""Enrolled devices in memory, with the real secure sum, and the coordinator's first request to them.

Keys come from seeded entropy, which only tests may do, so that a failing run fails again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.config.model import Privacy, SecureAggregation
from fedpeft.entropy import Entropy, seeded_entropy
from fedpeft.ids import NodeId, ParticipantId, RoundId
from fedpeft.privacy import NoiseTerms
from fedpeft.ring import RingParams
from fedpeft.round.device.device import Device
from fedpeft.round.history import Past
from fedpeft.round.linking import burnt_link
from fedpeft.round.local import Identity, SumSession, Trainer
from fedpeft.round.messages import BlockPayload, FitRequest, Profile
from fedpeft.round.noise import planned_mechanism
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import Member, RoundTask
from fedpeft.round.terms import participants_of, round_terms
from fedpeft.round.transport import Stage
from fedpeft.round.work import Work, accept_work, state_digest, work_terms
from fedpeft.secagg.primitives import digest
from fedpeft.testing.network import Handle
from fedpeft.testing.secagg_fleet import DumpingLedger
from fedpeft.wire import encode

__all__ = [
    "CLIENT_PRIVACY",
    "DictStore",
    "ToyFleet",
    "enrol",
    "exact_terms",
    "fit_request",
    "toy_noise",
    "toy_past",
    "toy_task",
    "toy_terms",
    "toy_work",
]


class DictStore:
    """``DeviceStore`` in a dictionary that a test may look into."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        """See ``DeviceStore``."""
        return self.values.get(key)

    def write(self, key: str, value: bytes) -> None:
        """See ``DeviceStore``."""
        self.values[key] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyFleet:
    """Devices that know their coordinator.

    Args:
        coordinator: its signing key.
        names: node -> device name.
        organisations: device name -> who runs it.
        trainers: device name -> its trainer.
        keys: device name -> its enrolled key.
        stores, ledgers: device name -> what survives a restart.
        devices: node -> the running device.
        entropy: where everybody's keys come from.
        session: makes another half of the sum than the secure one, from the coordinator's key, to compare the two.
    """

    coordinator: secagg.IdentityKey
    names: Mapping[NodeId, str]
    organisations: Mapping[str, str]
    trainers: Mapping[str, Trainer]
    keys: Mapping[str, secagg.IdentityKey]
    entropy: Entropy
    stores: dict[str, DictStore] = field(default_factory=dict)
    ledgers: dict[str, DumpingLedger] = field(default_factory=dict)
    devices: dict[NodeId, Device] = field(default_factory=dict)
    session: Callable[[bytes], SumSession] | None = None

    def restart(self, node: NodeId, *, wiped: bool = False) -> None:
        """A new process of this device, with its store and ledger, or (``wiped``) with its key alone."""
        name = self.names[node]
        if wiped or name not in self.stores:
            self.stores[name], self.ledgers[name] = DictStore(), DumpingLedger()
        policy = secagg.DevicePolicy(coordinator_key=self.coordinator.public, allow_fast=True)
        key = self.keys[name]
        enrolled = secagg.Enrolled(device=name, organisation=self.organisations[name])
        secure = secagg.DeviceSession(ledger=self.ledgers[name], identity=key, enrolled=enrolled, policy=policy)
        self.devices[node] = Device(
            identity=Identity(device=name, organisation=self.organisations[name], public_key=key.public),
            trainer=self.trainers[name],
            session=self.session(self.coordinator.public) if self.session else secure,
            store=self.stores[name],
            entropy=self.entropy,
            rounding=lambda run_id, round_id: seeded_entropy(0, "rounding", name, round_id),
        )

    @property
    def handles(self) -> dict[NodeId, Handle]:
        """For a transport; a restarted device is found by its node."""
        return {node: partial(self._handle, node) for node in self.names}

    @property
    def nodes(self) -> Sequence[NodeId]:
        """Every node, ascending: the devices in order of their names."""
        return sorted(self.names)

    def members(self) -> list[Member]:
        """As the coordinator knows them after it asked for their profiles; it believes that they hold nothing."""
        return [
            Member(
                node=node,
                profile=Profile(
                    device=name,
                    organisation=self.organisations[name],
                    identity=self.keys[name].public,
                    methods=self.trainers[name].methods,
                    held=(),
                ),
            )
            for node, name in sorted(self.names.items())
        ]

    def _handle(self, node: NodeId, stage: Stage, payload: bytes) -> bytes:
        return self.devices[node].handle(stage, payload)


def enrol(
    trainers: Mapping[str, Trainer],
    *,
    organisations: Mapping[str, str] | None = None,
    session: Callable[[bytes], SumSession] | None = None,
    seed: int = 0,
) -> ToyFleet:
    """Devices 1000, 1001, ... in order of their names, each of its own organisation unless said otherwise."""
    entropy = seeded_entropy(seed, "toy fleet")
    fleet = ToyFleet(
        coordinator=coordinator_key(entropy),
        names={NodeId(1000 + index): name for index, name in enumerate(sorted(trainers))},
        organisations={name: (organisations or {}).get(name, name) for name in trainers},
        trainers=trainers,
        keys={name: secagg.IdentityKey.generate(entropy) for name in sorted(trainers)},
        entropy=entropy,
        session=session,
    )
    for node in fleet.names:
        fleet.restart(node)
    return fleet


def exact_terms(devices: int, *, mode: str = "full", min_cohort: int = 3) -> SecureAggregation:
    """Terms under which multiples of 2^-20 are encoded without rounding: one unit is 2^20 levels."""
    levels = RingParams(bits=32, addends=devices).levels
    return SecureAggregation.model_validate({"mode": mode, "max_abs": levels / 2.0**20, "min_cohort": min_cohort})


def toy_past(
    plan: LearningPlan, state: AdapterState, *, rounds: int, coordinator: bytes = b"", left: bytes = b""
) -> Past:
    """Rounds that were all burnt, so that the state is still the first one.

    Args:
        coordinator: its public key; that of ``enrol`` unless said otherwise.
        left: digest of the state that the last round left, if it was not burnt.
    """
    first = state_digest(state.digests)
    past = Past.begun(plan, first, coordinator or coordinator_key(seeded_entropy(0, "toy fleet")).public)
    for number in range(1, rounds + 1):
        task = RoundTask(round_id=RoundId(number), attempt=1, plan=plan, past=past)
        link = burnt_link(task, state=first, devices=3, population=3)
        if left and number == rounds:
            link = replace(link, state=left, outcome=b"\1" * 32)
        past = past.then(link)
    return past


NO_PAST = Past(first=b"", head=b"")


def toy_task(
    plan: LearningPlan,
    *,
    round_id: int = 1,
    attempt: int = 1,
    train: bool = True,
    state: AdapterState | None = None,
    past: Past | None = None,
) -> RoundTask:
    """What a coordinator would ask in this round, or, without training, in the run's last one.

    Args:
        state: which all rounds before have left as it was; ``fit_request`` fills it in, ``run_round`` needs it.
        past: another one.
    """
    number = RoundId(round_id if train else plan.rounds.count + 1)
    if past is None:
        past = NO_PAST if state is None else toy_past(plan, state, rounds=number - 1)
    return RoundTask(round_id=number, attempt=attempt, plan=plan, past=past)


def _with_past(task: RoundTask, state: AdapterState) -> RoundTask:
    if task.past != NO_PAST:
        return task
    return replace(task, past=toy_past(task.plan, state, rounds=max(0, task.round_id - 1)))


def coordinator_key(entropy: Entropy) -> secagg.IdentityKey:
    """The first thing that a fleet draws."""
    return secagg.IdentityKey.generate(entropy)


CLIENT_PRIVACY = Privacy(unit="client", epsilon=8.0, delta=0.01, noise_multiplier=1.0, colluders=0)
"""For a plan under client-level privacy whose clip norm is 1."""


def toy_noise(plan: LearningPlan, *, devices: int) -> NoiseTerms:
    """The noise that a coordinator would sign for so many devices; the plan has ``client_privacy``."""
    privacy = plan.client_privacy or CLIENT_PRIVACY
    made = planned_mechanism(privacy, plan.secagg, devices=devices, l2_clip_norm=1.0, z=1.0, parameters=1)
    return made.terms


def toy_work(plan: LearningPlan, adapter: AdapterSpec, *, round_id: int = 1) -> Work:
    """What a device would accept to do in this round, from no particular state."""
    terms = work_terms(plan, adapter, round_id, state=b"")
    pasts = [digest("toy past", bytes([number])) for number in range(round_id)]
    accepted = accept_work(plan, adapter, round_id, terms, bucket=0, controls=())
    return replace(accepted, history=pasts[-1], earlier=frozenset(pasts))


def toy_terms(
    members: Sequence[Member], plan: LearningPlan, state: AdapterState, task: RoundTask | None = None, **changes: object
) -> secagg.RoundSpec:
    """The terms that a coordinator would sign for these members; ``changes`` replace their fields."""
    task = _with_past(task or toy_task(plan), state)
    spec = round_terms(
        plan,
        state.spec,
        participants_of(members),
        task.work(state),
        round_id=task.round_id,
        attempt=task.attempt,
        stage_deadline_s=120.0,
        history=task.past.head,
        noise=task.noise,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def fit_request(
    fleet: ToyFleet,
    plan: LearningPlan,
    state: AdapterState,
    *,
    task: RoundTask | None = None,
    terms: secagg.RoundSpec | None = None,
    **changes: object,
) -> FitRequest:
    """The first request of a round to any device of the fleet; ``changes`` replace its fields.

    Args:
        terms: others than a coordinator would sign, signed.
    """
    task = _with_past(task or toy_task(plan), state)
    spec = terms or toy_terms(fleet.members(), plan, state, task)
    opened = secagg.open_round(spec, identity=fleet.coordinator, entropy=fleet.entropy)
    request = FitRequest(
        offer=encode(opened.requests[ParticipantId(1)]),
        learning=plan.to_json(),
        work=encode(task.work(state)),
        history=encode(task.past.since(0)),
        payloads=tuple(
            BlockPayload(block_id=block_id, values=state[block_id].astype("<f4").tobytes()) for block_id in state
        ),
        controls=task.control_payloads(),
    )
    return replace(request, **changes)  # type: ignore[arg-type]
