"""`methods = "auto"` in a `[[device]]`: the planner of real devices chooses what such clients train.

The plan rests on the config and the base alone, with one reference core in the place of this machine, so the same
run.toml trains the same blocks everywhere and a resumed run goes on with them.
"""

from dataclasses import replace

from fedpeft.base import BaseArtifact
from fedpeft.config import RunConfig
from fedpeft.config.derived import invited_devices, usual_bits
from fedpeft.config.model import Device
from fedpeft.errors import ConfigInvalid
from fedpeft.planner import REFERENCE, BaseShape, CapacityPlan, DeviceLimits, Menu, Workload, menu_of, plan, shape_of
from fedpeft_client.training.choice import Capacity
from fedpeft_client.training.examples import cacheable_examples
from fedpeft_sim.population import Client, Population

__all__ = ["plan_devices", "usual_workload"]


def plan_devices(population: Population, artifact: BaseArtifact) -> Population:
    """The population with the capacity of every client whose methods are ``auto`` planned.

    Raises:
        ConfigInvalid: nothing fits a device; says which, and what the least would need.
    """
    config = population.config
    if all(device.methods != "auto" for device in config.device):
        return population
    shape = shape_of(artifact)
    plans: dict[Device, CapacityPlan] = {}
    for index, device in enumerate(config.device):
        members = [client for client in population.clients if client.device == device]
        if device.methods == "auto" and members:
            plans[device] = _plan(config, shape, device, members, index, cohort=len(population.clients))
    clients = tuple(
        replace(client, capacity=Capacity.of(plans[client.device])) if client.device in plans else client
        for client in population.clients
    )
    sentences = {client.name: plans[client.device].sentence for client in clients if client.device in plans}
    return replace(population, clients=clients, plans=sentences)


def _plan(
    config: RunConfig, shape: BaseShape, device: Device, members: list[Client], index: int, *, cohort: int
) -> CapacityPlan:
    held_out = max(len(client.held_out) for client in members)
    like = replace(
        usual_workload(
            config,
            shape,
            length=config.task.row_tokens,
            evaluated=min(held_out, config.rounds.eval_examples or held_out),
            trained=max(len(client.train) for client in members),
        ),
        head=device.head,
    )
    profile = REFERENCE.lending(device.ram_mb)
    limits = DeviceLimits(
        uplink_bits_s=None if device.uplink_mbit is None else device.uplink_mbit * 1e6,
        fit_deadline_s=config.rounds.fit_deadline_s,
        upload_deadline_s=config.rounds.stage_deadline_s,
    )
    asked = invited_devices(config.rounds, cohort)
    menu = Menu(
        shape=shape,
        workloads=menu_of(shape, config.adapter, like),
        bits=usual_bits(config, asked),
        cohort=asked,
    )
    try:
        return plan(profile, limits, menu)
    except ConfigInvalid as refused:
        problems = [replace(problem, where=f"device[{index}]") for problem in refused.problems]
        raise ConfigInvalid('No method fits a device with methods = "auto".', problems=problems) from refused


def usual_workload(config: RunConfig, shape: BaseShape, *, length: int, evaluated: int, trained: int) -> Workload:
    """What a run asks of any of its devices; which methods one trains is still to be said.

    Args:
        length: tokens of an example.
        evaluated: held-out examples per round.
        trained: examples that may be cached.
    """
    return Workload(
        adapter=config.adapter,
        methods=(),
        classes=len(config.task.outputs),
        batch_size=config.train.batch_size,
        length=length,
        local_steps=config.train.local_steps,
        eval_examples=evaluated,
        cached_examples=min(cacheable_examples(length, shape.hidden, config.performance.cache_mb), trained),
    )
