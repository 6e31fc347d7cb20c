"""Privacy of a simulated run: what is refused before it starts, what is said, and where its ledgers lie."""

from collections.abc import Callable
from contextlib import nullcontext

from fedpeft.adapter import AdapterSpec
from fedpeft.base import default_store
from fedpeft.config import RunConfig
from fedpeft.config.derived import invited_devices
from fedpeft.data import count_people
from fedpeft.errors import ConfigInvalid
from fedpeft.methods import blocks_for
from fedpeft.privacy import SampledRelease
from fedpeft.round.example_privacy import round_cost
from fedpeft.round.plan import LearningPlan
from fedpeft.round.size_class import size_class
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.privacy.noise_plan import plan_of, trainable_parameters
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_sim.devices import Ledgers
from fedpeft_sim.population import Client, Population

__all__ = ["expect_affordable", "ledgers_of", "open_privacy"]


def expect_affordable(plan: LearningPlan, population: Population, spec: AdapterSpec) -> None:
    """Refuses now what would fail in the first round.

    Raises:
        ConfigInvalid: no noise keeps the run within its budget, for the run or for one of its devices.
    """
    config = population.config
    if config.privacy.unit == "client":
        invited = invited_devices(config.rounds, len(population.clients))
        plan_of(config, trainable_parameters(spec)).mechanism(invited)
    for client in population.clients if plan.privacy is not None else ():
        _cost(plan, client, spec)


def open_privacy(
    plan: LearningPlan, population: Population, spec: AdapterSpec, run: RunDirectory, note: Callable[[str], None]
) -> ClientPrivacy | nullcontext[None]:
    """The coordinator's noise and ledger, if the run is private by clients; says what is promised, in any unit."""
    config = population.config
    if plan.privacy is not None:
        _announce(plan, population, spec, note)
    if config.privacy.unit != "client":
        return nullcontext()
    witness = default_store().parent / "privacy" / f"{run.manifest.run_id}.witness"
    privacy = ClientPrivacy.open(config, parameters=trainable_parameters(spec), run=run.path, witness=witness)
    for line in privacy.plan.statement().lines():
        note(f"privacy  {line}")
    return privacy


def ledgers_of(config: RunConfig, run: RunDirectory) -> Ledgers | None:
    """Where the virtual devices of this run keep their ledgers; the witnesses lie outside the run directory."""
    if config.privacy.unit not in ("example", "person") or config.privacy.delta is None:
        return None
    return Ledgers(
        journals=(run.path / "privacy" / "devices").resolve(),
        witnesses=(default_store().parent / "privacy" / run.manifest.run_id).resolve(),
        delta=config.privacy.delta,
    )


def _cost(plan: LearningPlan, client: Client, spec: AdapterSpec) -> SampledRelease | None:
    """A round's cost to the examples of one client."""
    capacity = client.capacity
    blocks = blocks_for(spec, methods=capacity.methods, rank=capacity.rank, head=capacity.head)
    try:
        return round_cost(
            plan, declared=size_class(_units(plan, client)), parameters=sum(spec[block].size for block in blocks)
        )
    except ConfigInvalid as refused:
        raise ConfigInvalid(
            f"Client {client.name} cannot take part in this run.", problems=refused.problems
        ) from refused


def _units(plan: LearningPlan, client: Client) -> int:
    """Training examples of a client, or the people they are of."""
    people = plan.privacy is not None and plan.privacy.unit == "person"
    return count_people(client.train) if people else len(client.train)


def _announce(plan: LearningPlan, population: Population, spec: AdapterSpec, note: Callable[[str], None]) -> None:
    terms = plan.privacy
    if terms is None:
        return
    people = terms.unit == "person"
    what, many = ("person", "people") if people else ("training example", "examples")
    note(
        f"privacy  {terms.unit}-level: at most epsilon {terms.epsilon:g} at delta {terms.delta:g} for any one {what} "
        f"of any one device, over {terms.steps} steps; nothing is measured during the run"
    )
    turn = " whose turn it is" if terms.noise == "correlated" else ""
    for client in population.clients:
        cost = _cost(plan, client, spec)
        if cost is not None:
            note(
                f"privacy  {client.name}: noise multiplier {cost.noise_multiplier:g}, a step takes each of its "
                f"{_units(plan, client)} {many}{turn} with probability {cost.sampling_rate:.3g}"
            )
