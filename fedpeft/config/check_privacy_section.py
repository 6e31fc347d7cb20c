"""Checks of [privacy] that the configuration alone can answer; what needs the adapter's size is checked at the start.

Whatever would make an epsilon a lie is refused here with the nearest setting that works.
"""

from collections.abc import Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.config import derived
from fedpeft.config.model import Privacy, RunConfig

__all__ = ["privacy_findings"]


def privacy_findings(config: RunConfig) -> Iterator[Finding]:
    """Every impossible combination around [privacy]."""
    privacy = config.privacy
    if privacy.unit == "none":
        for option in ("epsilon", "delta", "noise_multiplier"):
            if getattr(privacy, option) is not None:
                yield Finding(
                    key=f"privacy.{option}",
                    reads=("privacy.unit",),
                    expected='none of it while privacy.unit = "none"',
                    found=str(getattr(privacy, option)),
                    remedy='Set privacy.unit = "client", "example" or "person", or leave it out: '
                    "nothing is promised now.",
                )
    else:
        yield from _budget(config)
    if privacy.clip == "adaptive" and privacy.unit != "client":
        yield Finding(
            key="privacy.clip",
            reads=("privacy.unit",),
            expected=f'"fixed" under privacy.unit = "{privacy.unit}": only clients\' bits are summed',
            found='"adaptive"',
            remedy='Set privacy.unit = "client", or leave it out.',
        )
    if privacy.metrics == "noised" and privacy.unit != "client":
        yield Finding(
            key="privacy.metrics",
            reads=("privacy.unit",),
            expected=f'"suppressed" under privacy.unit = "{privacy.unit}": only clients\' are summed with noise',
            found='"noised"',
            remedy='Set privacy.unit = "client", or leave it out.',
        )
    yield from _noise(privacy)
    yield from _idle_options(privacy)
    yield from _person(config)
    yield from _engine(config)
    if privacy.unit == "none":
        return
    if privacy.unit in ("example", "person"):
        yield from _on_device(config)
        return
    if config.aggregate.weight != "uniform":
        yield Finding(
            key="aggregate.weight",
            reads=("privacy.unit",),
            expected='"uniform" under privacy.unit = "client": the noise is sized for one clip norm per device',
            found=f'"{config.aggregate.weight}"',
            remedy='Set aggregate.weight = "uniform".',
        )
    if config.rounds.over_select:
        yield Finding(
            key="rounds.over_select",
            reads=("privacy.unit",),
            expected='0 under privacy.unit = "client": how long a device takes depends on its data, and so would who '
            "is in the sum",
            found=f"{config.rounds.over_select:g}",
        )
    if config.secagg.mode == "off":
        yield Finding(
            key="secagg.mode",
            reads=("privacy.unit",),
            expected='"full" or "fast" under privacy.unit = "client": each device adds a share of the noise only',
            found='"off"',
        )
    if privacy.colluders >= config.secagg.min_cohort:
        yield Finding(
            key="privacy.colluders",
            reads=("secagg.min_cohort",),
            expected=f"fewer than secagg.min_cohort={config.secagg.min_cohort}, whose other shares make the noise",
            found=str(privacy.colluders),
            remedy="Raise secagg.min_cohort and rounds.min_devices, or assume fewer colluders.",
        )


def _noise(privacy: Privacy) -> Iterator[Finding]:
    """A device's own noise over its own steps: shares in a sum go with the devices that are in it."""
    if privacy.noise == "correlated" and privacy.unit not in ("example", "person"):
        yield Finding(
            key="privacy.noise",
            reads=("privacy.unit",),
            expected='"independent" unless privacy.unit = "example" or "person": of the noise in a secure sum nobody '
            "can take back what devices added that are not in the next one",
            found='"correlated"',
            remedy="Leave it out.",
        )
    elif privacy.noise == "correlated" and privacy.noise_multiplier is not None:
        yield Finding(
            key="privacy.noise_multiplier",
            reads=("privacy.noise",),
            expected='none of it with privacy.noise = "correlated": each device finds how far its noise reaches, and '
            "how much of it that takes",
            found=f"{privacy.noise_multiplier:g}",
            remedy="Leave it out.",
        )


def _idle_options(privacy: Privacy) -> Iterator[Finding]:
    """What would be read with an adaptive clip only."""
    fresh = Privacy()
    for option in ("clip_quantile", "clip_learning_rate") if privacy.clip == "fixed" else ():
        if (value := getattr(privacy, option)) != getattr(fresh, option):
            yield Finding(
                key=f"privacy.{option}",
                reads=("privacy.clip",),
                expected='none of it while privacy.clip = "fixed"',
                found=f"{value:g}",
                remedy='Set privacy.clip = "adaptive", or leave it out.',
            )


def _engine(config: RunConfig) -> Iterator[Finding]:
    """Opacus is asked for what it has, and only where gradients of single examples are taken."""
    privacy = config.privacy
    if privacy.unit not in ("example", "person"):
        if privacy.engine != "auto":
            yield Finding(
                key="privacy.engine",
                reads=("privacy.unit",),
                expected='none of it unless privacy.unit = "example" or "person"',
                found=f'"{privacy.engine}"',
                remedy="Leave it out: no gradients of single examples are taken.",
            )
        return
    if privacy.engine != "opacus":
        return
    for method in [method for method, _ in config.adapter.declared() if not method.opacus.able and not method.measures]:
        yield Finding(
            key="privacy.engine",
            reads=(f"adapter.{method.name}",),
            expected=f'"auto" or "fedpeft" with {method.name}: Opacus has no gradients of single examples of it, for '
            f"{method.opacus.why_not}",
            found='"opacus"',
            remedy="Leave privacy.engine out.",
        )


def _person(config: RunConfig) -> Iterator[Finding]:
    """Whose data is whose: said where it is promised, and only there."""
    privacy, fresh = config.privacy, Privacy()
    if privacy.unit != "person":
        for option in ("column", "persons", "examples_per_person"):
            if (value := getattr(privacy, option)) != getattr(fresh, option):
                yield Finding(
                    key=f"privacy.{option}",
                    reads=("privacy.unit",),
                    expected='none of it unless privacy.unit = "person"',
                    found=str(value),
                    remedy='Set privacy.unit = "person", or leave it out.',
                )
        return
    if privacy.persons != "do-not-cross":
        yield Finding(
            key="privacy.persons",
            reads=("privacy.unit",),
            expected='"do-not-cross" under privacy.unit = "person": each device bounds and hides what it has of a '
            "person, so somebody on k devices is promised k epsilon at best. Hashed ids that devices compare are not "
            "supported: whoever holds the key of the hash finds every person by trying names",
            found=f'"{privacy.persons}"',
            remedy='Declare privacy.persons = "do-not-cross" if it is true; else give each person to one device, or '
            'set privacy.unit = "client".',
        )
    mapped = config.data.map.get("person", privacy.column)
    if privacy.column and mapped != privacy.column:
        yield Finding(
            key="privacy.column",
            reads=("data.map",),
            expected=f'the column of the person as data.map has it, "{mapped}"',
            found=f'"{privacy.column}"',
            remedy="Name it in one of the two.",
        )


def _on_device(config: RunConfig) -> Iterator[Finding]:
    """A device's own noise: nothing of the secure sum matters to it, and nothing of the client-level noise applies."""
    privacy, fresh = config.privacy, Privacy()
    unit = f'privacy.unit = "{privacy.unit}"'
    if privacy.colluders != fresh.colluders:
        yield Finding(
            key="privacy.colluders",
            reads=("privacy.unit",),
            expected=f"no colluders under {unit}: each device adds all the noise for its own examples",
            found=str(privacy.colluders),
        )


def _budget(config: RunConfig) -> Iterator[Finding]:
    privacy = config.privacy
    clients = derived.known_clients(config) if privacy.unit == "client" else None
    whole = {"client": "clients", "person": "people of the smallest device"}.get(
        privacy.unit, "training examples of the smallest device"
    )
    limit = f"at most 1 / {whole}" if clients is None else f"at most 1 / {clients} clients"
    hint = "" if clients is None else f" (clients^-1.1 = {derived.suggested_delta(clients):.2g} is usual)"
    if privacy.epsilon is None:
        yield Finding(
            key="privacy.epsilon",
            reads=("privacy.unit",),
            expected=f'an epsilon for privacy.unit = "{privacy.unit}"',
            found="nothing",
            remedy="`fedpeft privacy plan` says what each costs.",
        )
    if privacy.delta is None:
        yield Finding(key="privacy.delta", reads=("privacy.unit",), expected=f"a delta, {limit}{hint}", found="nothing")
    elif clients is not None and privacy.delta > 1 / clients:
        yield Finding(
            key="privacy.delta",
            reads=("data.partition", "device"),
            expected=f"{limit}{hint}: a larger one would allow publishing one of them in full",
            found=f"{privacy.delta:g}",
        )
