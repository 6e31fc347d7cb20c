"""What a device trains in a round: what its site names, or the most that fits it now.

The planner is asked anew before every round, because memory that others take and a battery that runs low are no
property of a run. How the base is held is decided once per run: to change it, the base would be loaded again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedpeft.base import ArtifactStore
from fedpeft.catalogue import TIERED
from fedpeft.config.model import Rounds
from fedpeft.planner import (
    DeviceLimits,
    DeviceProfile,
    Menu,
    Workload,
    available_bytes,
    estimate,
    menu_of,
    plan,
    probe,
    shape_of,
)
from fedpeft.planner.battery import battery_charge
from fedpeft.planner.hardware import resident_bytes
from fedpeft.round.plan import LearningPlan
from fedpeft_client.site import Site, SiteLimits, methods_of
from fedpeft_client.training.choice import Capacity
from fedpeft_client.training.examples import cacheable_examples
from fedpeft_client.training.model_pool import Residency

__all__ = ["CapacityPlanner", "Sensors"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """How the machine is asked: its make once, and before each round what is free and what is left.

    Args:
        profile: measures the machine.
        free_bytes: memory that the process may have: what is free and what it holds already.
        charge: of the battery, in [0, 1]; None on mains.
    """

    profile: Callable[[], DeviceProfile] = probe
    free_bytes: Callable[[], int] = lambda: available_bytes() + (resident_bytes() or 0)
    charge: Callable[[], float | None] = battery_charge


class CapacityPlanner:
    """The choice for one run.

    Args:
        site: what the device lends.
        run: the run.
        bases: where its base lies.
        train, held_out: how many examples there are.
        sensors: of the machine.

    Attributes:
        residency: how the base is held.
        capacity: what was chosen last.

    Raises:
        ConfigInvalid: nothing that the run offers fits this device.
    """

    def __init__(
        self, site: Site, run: LearningPlan, bases: ArtifactStore, *, train: int, held_out: int, sensors: Sensors
    ) -> None:
        limits = site.limits
        offered = site.trained(methods_of(run.adapter))
        self._site, self._sensors, self._menu = limits, sensors, None
        self.residency: Residency = limits.residency
        self.capacity = Capacity(methods=offered, rank=limits.rank if TIERED & {*offered} else None, head=limits.head)
        if limits.methods != "auto":
            return
        self._profile = sensors.profile().lending(limits.ram_mb)
        self._menu = _menu(site, run, bases, offered, train=train, held_out=held_out)
        chosen = plan(self._profile, _limits(limits), self._menu)
        self.capacity, self.residency = Capacity.of(chosen), chosen.workload.residency
        held = tuple(one for one in self._menu.workloads if one.residency == self.residency)
        self._menu = replace(self._menu, workloads=held)
        _log.info("%s", chosen.sentence)

    def now(self) -> Capacity:
        """What to train in the round that begins.

        Raises:
            ConfigInvalid: the machine has no room for anything now; it may have for another round.
        """
        if self._menu is None:
            return self.capacity
        free = self._profile.available_bytes if self._site.ram_mb else self._sensors.free_bytes()
        profile = replace(self._profile, available_bytes=max(1, min(free, self._profile.total_bytes)))
        charge = self._sensors.charge()
        menu = self._menu
        if charge is not None and charge < self._site.battery_floor:
            spent = [estimate(menu.shape, one, profile).round_s for one in menu.workloads]
            menu = replace(menu, workloads=(menu.workloads[spent.index(min(spent))],))
        chosen = plan(profile, _limits(self._site), menu)
        capacity = Capacity.of(chosen)
        if capacity != self.capacity:
            low = "" if menu is self._menu else f"The battery is at {charge:.0%}. "
            _log.info("%s%s", low, chosen.sentence)
        self.capacity = capacity
        return capacity


def _limits(limits: SiteLimits) -> DeviceLimits:
    rounds = Rounds()
    return DeviceLimits(
        uplink_bits_s=None if limits.uplink_mbit is None else limits.uplink_mbit * 1e6,
        fit_deadline_s=rounds.fit_deadline_s,
        upload_deadline_s=rounds.stage_deadline_s,
    )


def _menu(
    site: Site, run: LearningPlan, bases: ArtifactStore, offered: tuple[str, ...], *, train: int, held_out: int
) -> Menu:
    """All that the run offers and the site permits."""
    limits, shape = site.limits, shape_of(bases.get(run.base))
    like = Workload(
        adapter=run.adapter,
        methods=(),
        head=limits.head,
        classes=len(run.task.outputs),
        batch_size=run.train.batch_size,
        length=run.task.row_tokens,
        local_steps=run.train.local_steps,
        eval_examples=min(held_out, Rounds().eval_examples),
        micro_batch=limits.micro_batch,
        cached_examples=min(cacheable_examples(run.task.row_tokens, shape.hidden, limits.cache_mb), train),
    )
    workloads = tuple(
        choice
        for choice in menu_of(shape, run.adapter, like)
        if set(choice.methods) <= set(offered)
        and (choice.rank or 0) <= (limits.rank or 1024)
        and limits.residency in ("auto", choice.residency)
        and (choice.checkpointing or not (limits.checkpointing and choice.methods))
    )
    return Menu(shape=shape, workloads=workloads)
