"""Enrolled devices in memory, with the real secure sum, and the coordinator's first request to them.

Keys come from seeded entropy, which only tests may do, so that a failing run fails again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.config.model import Rounds, SecureAggregation
from fedpeft.entropy import Entropy, seeded_entropy
from fedpeft.ids import NodeId, ParticipantId, RoundId
from fedpeft.ring import RingParams
from fedpeft.round.device import Device
from fedpeft.round.local import Identity, SumSession, Trainer
from fedpeft.round.messages import BlockDigest, BlockPayload, FitRequest, Profile
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import Member, RoundTask
from fedpeft.round.terms import round_terms
from fedpeft.round.transport import Stage
from fedpeft.testing.network import Handle
from fedpeft.testing.secagg import DumpingLedger
from fedpeft.wire import encode

__all__ = ["DictStore", "ToyFleet", "enrol", "exact_terms", "fit_request", "toy_task"]


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
        session: makes another half of the sum than the secure one, to compare the two.
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
    session: Callable[[], SumSession] | None = None

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
            session=self.session() if self.session else secure,
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
    session: Callable[[], SumSession] | None = None,
    seed: int = 0,
) -> ToyFleet:
    """Devices 1000, 1001, ... in order of their names, each of its own organisation unless said otherwise."""
    entropy = seeded_entropy(seed, "toy fleet")
    fleet = ToyFleet(
        coordinator=secagg.IdentityKey.generate(entropy),
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


def toy_task(plan: LearningPlan, *, round_id: int = 1, attempt: int = 1, train: bool = True) -> RoundTask:
    """What a coordinator would ask in this round."""
    return RoundTask(
        round_id=RoundId(round_id),
        attempt=attempt,
        plan=plan,
        train=train,
        first_step=(round_id - 1) * plan.train.local_steps,
        learning_rate_factor=1.0,
        eval_examples=0,
    )


def fit_request(
    fleet: ToyFleet,
    plan: LearningPlan,
    state: AdapterState,
    *,
    task: RoundTask | None = None,
    terms: SecureAggregation | None = None,
    **changes: object,
) -> FitRequest:
    """The first request of a round to any device of the fleet; ``changes`` replace its fields."""
    task, members = task or toy_task(plan), fleet.members()
    terms = terms or exact_terms(len(members))
    spec = round_terms(plan, state.spec, members, task, rounds=Rounds(), terms=terms)
    opened = secagg.open_round(spec, identity=fleet.coordinator, entropy=fleet.entropy)
    request = FitRequest(
        offer=encode(opened.requests[ParticipantId(1)]),
        learning=plan.to_json(),
        state=tuple(BlockDigest(block_id=block_id, sha256=state.digests[block_id]) for block_id in state),
        payloads=tuple(
            BlockPayload(block_id=block_id, values=state[block_id].astype("<f4").tobytes()) for block_id in state
        ),
        first_step=task.first_step,
        learning_rate_factor=task.learning_rate_factor,
        eval_examples=task.eval_examples,
        train=task.train,
        blocks=tuple(block.block_id for block in task.trained(state.spec)),
        bucket=0,
        controls=(),
    )
    return replace(request, **changes)  # type: ignore[arg-type]
