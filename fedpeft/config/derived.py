"""Numbers that follow from a RunConfig: computed here and nowhere else, so that check and engine agree.

Invariants: pure functions of the configuration; no default lives here.
"""

import math

from fedpeft.config.aggregate import Aggregate
from fedpeft.config.model import Rounds, RunConfig, SecureAggregation
from fedpeft.config.rules import RULES

__all__ = [
    "MIN_VALUE_BITS",
    "NARROW",
    "WIDE",
    "fits_narrow_ring",
    "invited_devices",
    "known_clients",
    "largest_cohort",
    "method_names",
    "suggested_delta",
    "usual_bits",
    "value_bits",
    "wanted_devices",
    "with_head_start",
    "with_metric",
]

_ROUNDS_FOR_MEANS = 4
_REFRESH, _ROUNDS_FOR_REFRESH = 3, 6
"""What `head_refresh = "auto"` is where class means are taken: measured in docs/adr/0035-measured-rates.md."""
WIDE, NARROW = 32, 16
NARROW_LEVELS = 255
MIN_VALUE_BITS = 8
"""Bits one summand must keep: with fewer, rounding is coarser than max_abs / 127, worse than int8 gradients."""


def method_names(config: RunConfig) -> tuple[str, ...]:
    """The methods that [adapter] declares, in the order of the model."""
    return tuple(method.name for method, _ in config.adapter.declared())


def known_clients(config: RunConfig) -> int | None:
    """How many clients the configuration itself promises; None when only the data can tell."""
    if config.data.partition.by != "column" and config.data.partition.clients:
        return config.data.partition.clients
    names = [name for device in config.device for name in device.clients]
    return None if "*" in names else len(names)


def with_head_start(config: RunConfig) -> RunConfig:
    """The same run with ``adapter.head_start`` and ``head_refresh`` decided, once the labels are known.

    With few classes training the head from zero is as good (docs/adr/0009-class-means.md). Nothing is summed where the
    head stays on the device, and under privacy; and a short run, or a method that counts rounds, has none to spare; a
    gradient start needs a head that has a gradient. The means are measured again for whoever did not choose: with few
    classes, or unequal ones, a head that is trained is better, and there ``auto`` has trained it all along.
    """
    adapter, task = config.adapter, config.task
    if adapter.head_start != "auto":
        decided: dict[str, object] = {"head_refresh": adapter.refresh_every}
        return config.model_copy(update={"adapter": adapter.model_copy(update=decided)})
    if task.record.named_outputs and not task.labels:
        return config
    possible = (
        task.record.one_class
        and adapter.head
        and "head" not in config.aggregate.local
        and config.privacy.unit == "none"
        and config.rounds.count >= _ROUNDS_FOR_MEANS
        and not adapter.sketches
        and not any(method.counts_rounds for method, _ in adapter.declared())
    )
    start = "class-means" if possible and len(task.labels) > config.train.batch_size else "seed"
    refreshes = config.rounds.count >= _ROUNDS_FOR_REFRESH and adapter.head_learning_rate is None
    asked = _REFRESH if refreshes else 0  # a rate for the head asks for a head that is trained
    every = asked if adapter.head_refresh == "auto" else adapter.head_refresh
    decided = {"head_start": start, "head_refresh": every if start == "class-means" else 0}
    return config.model_copy(update={"adapter": adapter.model_copy(update=decided)})


def with_metric(config: RunConfig) -> RunConfig:
    """The same run with ``rounds.metric`` decided: the task's own where nobody chose."""
    if config.rounds.metric != "auto":
        return config
    rounds = config.rounds.model_copy(update={"metric": config.task.record.best})
    return config.model_copy(update={"rounds": rounds})


def wanted_devices(rounds: Rounds, available: int) -> int:
    """How many of the available devices make a round: the fraction, rounded up, but enough for a quorum.

    Example:
        >>> wanted_devices(Rounds(fraction=0.5), 7), wanted_devices(Rounds(fraction=0.1), 7)
        (4, 3)
    """
    # Safe: rounding to 9 digits first keeps 0.1 * 30 = 3.0000000000000004 at 3.
    wanted = math.ceil(round(rounds.fraction * available, 9))
    return min(available, max(rounds.min_devices, wanted))


def invited_devices(rounds: Rounds, available: int) -> int:
    """How many of the available devices a round asks: those wanted and the spare ones, as far as there are any.

    Example:
        >>> invited_devices(Rounds(fraction=0.5, over_select=0.3), 20), invited_devices(Rounds(over_select=0.3), 20)
        (13, 20)
    """
    return min(available, math.ceil(round((1 + rounds.over_select) * wanted_devices(rounds, available), 9)))


def largest_cohort(config: RunConfig) -> int:
    """The most devices whose vectors one sum may hold, as far as the configuration can tell."""
    clients = known_clients(config)
    return config.rounds.min_devices if clients is None else invited_devices(config.rounds, clients)


def suggested_delta(clients: int) -> float:
    """A delta well below 1 / clients.

    Example:
        >>> round(suggested_delta(1000), 7)
        0.0005012
    """
    return float(clients**-1.1)


def usual_bits(config: RunConfig, cohort: int) -> int:
    """Ring width of one lane of a usual block, whose deltas the learning rates bound; for estimates of bytes.

    Args:
        config: of ``secagg.bits = "auto"`` what ``fedpeft.round.ring_range`` takes for such a block.
        cohort: devices that are asked.
    """
    if config.secagg.bits != "auto":
        return config.secagg.bits
    return NARROW if fits_narrow_ring(config.aggregate, cohort) else WIDE


def fits_narrow_ring(aggregate: Aggregate, devices: int) -> bool:
    """Whether a ring of 16 bits leaves each of so many summands 255 levels either side of zero: up to 128 devices.

    With fewer a step of the ring is coarser than that of int8 gradients. A device that is weighed adds its delta times
    its share, which may be any: of 1/512 not one level would be left. So this holds where all weigh the same.
    """
    weighed = aggregate.weight != "uniform" or RULES[aggregate.rule].own_weight
    return not weighed and 2 * max(1, devices) * NARROW_LEVELS <= (1 << NARROW) - 1


def value_bits(secagg: SecureAggregation, cohort: int) -> int:
    """Bits of the ring left for one summand when ``cohort`` of them must not overflow it.

    Example:
        >>> value_bits(SecureAggregation(bits=16), 100)
        9
    """
    return secagg.noise_bits - max(0, math.ceil(math.log2(max(1, cohort))))
