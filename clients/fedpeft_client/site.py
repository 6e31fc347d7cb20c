"""site.toml: what a site lends and what it permits. It belongs to the site and can only be stricter than a run.

Read when the device starts and enforced on the device: a plan that breaks a rule is refused with the reason, and the
run goes on without this device. The coordinator never reads this file and cannot change it.
"""

import tomllib
import typing
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fedpeft.config.explain import key_of
from fedpeft.config.model import Adapter, MethodName, Section
from fedpeft.config.performance import MemoryUse
from fedpeft.errors import ConfigInvalid, OutsideHours, PolicyRefused, Problem
from fedpeft.files import read_text
from fedpeft.round.plan import LearningPlan

__all__ = ["Hours", "Site", "SiteData", "SiteLimits", "SiteNetwork", "SitePolicy", "methods_of"]


class SiteData(Section):
    """This device's examples; they never leave it."""

    source: str = Field(description="A JSONL, CSV or Parquet file, or a Hugging Face dataset directory.")
    map: dict[str, str] = Field(default_factory=dict, description='Our column name -> theirs, e.g. {text = "note"}.')
    persons: Literal["undeclared", "do-not-cross"] = Field(
        default="undeclared",
        description='"do-not-cross": the column `person` (`map` says what you call it) names whose a row is, and '
        "nobody in it has rows on another device. Runs that are private by people need it.",
    )
    holdout: float = Field(default=0.2, gt=0, lt=1, description="Share of the examples kept for evaluation.")


class SiteLimits(MemoryUse):
    """What this device lends to a run."""

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] | Literal["auto"] = Field(
        default="auto", description='What it trains, of the run\'s methods; "auto": the most that the planner fits.'
    )
    rank: int | None = Field(default=None, ge=1, description="For lora: a tier at which it stops; none: the full rank.")
    head: bool = Field(default=True, description="Whether it trains the class head.")
    ram_mb: int | None = Field(default=None, ge=1, description="For auto: memory of the training process in MiB.")
    uplink_mbit: float | None = Field(default=None, gt=0, description="For auto: megabits a second that it sends.")
    battery_floor: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="For auto: on a battery with less than this share left it trains the cheapest choice; 0: never.",
    )
    threads: int = Field(default=1, ge=1, le=256, description="Of training.")
    hours_at_most: float = Field(
        default=24.0,
        gt=0,
        le=24 * 30,
        description="Of one request to the training process, loading the base included; then it is ended.",
    )
    rest_after_s: float = Field(
        default=300.0,
        ge=0,
        description="So long after its last part in a round the training process ends and its memory is free; the "
        "next request starts it again. 0: it stays.",
    )
    bases_mb: int | None = Field(
        default=None,
        ge=1,
        description="Disk for bases in MiB: those used least recently make room. None: as the disk allows, none goes.",
    )


class SitePolicy(Section):
    """What this site demands of a run."""

    allow_bases: tuple[str, ...] = Field(default=(), description="Digests of bases (`sha256:...`); empty: any.")
    allow_methods: tuple[MethodName, ...] = Field(default=(), description="PEFT methods it trains; empty: any.")
    allow_fast: bool = Field(default=False, description="Whether the secure sum may drop its consistency round.")
    min_cohort: int = Field(default=3, ge=3, description="Runs that open sums of fewer organisations are refused.")
    min_examples: int = Field(default=1, ge=1, description="With fewer examples of its own it adds nothing.")
    declare_size: bool = Field(
        default=True,
        description="Say the number of examples to a factor of two, which is this device's weight. False: weigh as one "
        "example, and take no part in runs with example-level privacy, whose noise follows from the size.",
    )
    speak_of_failures: bool = Field(
        default=True,
        description="In runs without privacy: say that it could not train (nothing more), and be left out. False: add "
        "zeros, as in runs with privacy.",
    )
    min_corrupt_fraction: float = Field(default=0.0, ge=0, lt=0.5, description="Colluders that terms must assume.")
    min_colluders: int = Field(
        default=0,
        ge=0,
        description="Runs that the coordinator with so many devices could see through are refused.",
    )
    directory: Literal["follow", "confirm", "pinned", "off"] = Field(
        default="follow",
        description="Of devices met in rounds, names, organisations and keys may not change. New devices: follow: may "
        "come; confirm: count as colluders until `fedpeft client directory --confirm`, and more than a run assumes are "
        "refused; pinned: are refused. off: all as the coordinator says.",
    )
    max_state_step: float | None = Field(
        default=None,
        gt=0,
        description="Most by which a block of the state may move between two rounds: its root mean square, in learning "
        "rates times local steps. A state beyond is not trained on. None: any.",
    )
    refuse_imprints: bool = Field(
        default=False,
        description="Refuse runs without DP-SGD whose devices take one step of SGD through a narrow ReLU network: "
        "there a crafted state reads single examples from a sum of many devices.",
    )
    allow_starts: tuple[str, ...] = Field(
        default=(),
        description="A run begins with the state that plan and base make, or with one of these (digests, hex): an "
        "adapter that was trained before. The device's log names what it refused.",
    )
    min_noise_multiplier: float = Field(default=0.0, ge=0, description="Less noise on a sum is refused.")
    max_epsilon: float | None = Field(
        default=None, gt=0, description="Client-level budget of this device over its life; runs without are refused."
    )
    max_example_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="What any one example here may lose over this device's life, by DP-SGD; runs without are refused.",
    )
    max_person_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="What any one person here may lose over this device's life, by DP-SGD; runs that are not private "
        "by people are refused. Beside it no max_example_epsilon.",
    )
    delta: float = Field(default=1e-6, gt=0, lt=1, description="Of the three budgets above.")
    approve: Literal["rules", "ask"] = Field(
        default="rules",
        description="Which runs it joins. rules: those that keep to the rules here; ask: of these the ones whose plan "
        "its owner has approved (`fedpeft client runs pending`).",
    )
    hours: str = Field(
        default="",
        pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?$",
        description='When it trains, by this machine\'s clock, e.g. "20:00-06:00"; empty: always.',
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.max_person_epsilon is not None and self.max_example_epsilon is not None:
            raise ValueError("max_person_epsilon or max_example_epsilon: the ledger of DP-SGD has one budget")
        return self


class SiteNetwork(Section):
    """How this device reaches its coordinator."""

    proxy: str = Field(
        default="",
        description='An HTTP proxy, `http://HOST:PORT`; "off": none; empty: as https_proxy and no_proxy say.',
    )
    proxy_auth_file: str = Field(default="", description="A file with USER:PASSWORD for the proxy, its owner's alone.")


class Hours:
    """A span of the day that may pass midnight.

    Args:
        text: ``HH:MM-HH:MM``; empty is the whole day.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        start, _, end = text.partition("-")
        self._span = (time.fromisoformat(start), time.fromisoformat(end)) if text else None

    def __contains__(self, at: datetime) -> bool:
        if self._span is None:
            return True
        start, end = self._span
        moment = at.time()
        return start <= moment < end if start <= end else moment >= start or moment < end


class Site(Section):
    """The whole file."""

    data: SiteData
    limits: SiteLimits = SiteLimits()
    policy: SitePolicy = SitePolicy()
    network: SiteNetwork = SiteNetwork()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file.

        Raises:
            ConfigInvalid: it is missing or wrong; names every problem.
        """
        try:
            document = tomllib.loads(read_text(path))
        except OSError as error:
            raise ConfigInvalid(
                f"Expected the site's rules in {path}, found {error.strerror}; "
                "`fedpeft client join TOKEN --data FILE` writes them."
            ) from error
        except ValueError as error:
            raise ConfigInvalid(f"Expected TOML in {path}, found: {error}.") from error
        try:
            return cls.model_validate(_tuples(document))
        except ValidationError as error:
            problems = [
                Problem(
                    where=f"{path.name}: {key_of(fault['loc'])}", expected=fault["msg"], found=repr(fault["input"])[:80]
                )
                for fault in error.errors(include_url=False)
            ]
            raise ConfigInvalid(f"Expected the site's rules in {path}, found other.", problems=problems) from error

    def to_toml(self) -> str:
        """The file with every default written out; ``load`` reads it back."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def permit(self, plan: LearningPlan, *, now: datetime) -> None:
        """Returns when this site takes part in such a run now.

        Args:
            plan: what the run asks for.
            now: by this machine's clock, in its time zone.

        Raises:
            PolicyRefused: names the rule.
        """
        policy = self.policy
        if policy.allow_bases and plan.base not in policy.allow_bases:
            raise PolicyRefused(f"Expected a base that policy.allow_bases lists, found {plan.base[:19]}.")
        if plan.start and plan.start not in policy.allow_starts:
            raise PolicyRefused(
                f"Expected a run that starts from the base, or from a state in policy.allow_starts, found {plan.start}."
            )
        offered = methods_of(plan.adapter)
        if policy.allow_methods and offered and not self.trained(offered):
            raise PolicyRefused(f"Expected one of {', '.join(policy.allow_methods)}, the run has {', '.join(offered)}.")
        if policy.refuse_imprints and (shape := imprinting(plan)):
            raise PolicyRefused(
                f"Expected more than one local step, another optimizer, or DP-SGD with {shape}; found one step of SGD "
                "without noise: what enters a ReLU unit can be read from its gradient."
            )
        if policy.max_example_epsilon is not None and plan.privacy is None:
            raise PolicyRefused('Expected a run with privacy.unit = "example", found one that protects no example.')
        by_people = plan.privacy is not None and plan.privacy.unit == "person"
        if policy.max_person_epsilon is not None and not by_people:
            raise PolicyRefused('Expected a run with privacy.unit = "person", found one that protects no person.')
        if by_people:
            self._permit_people(plan)
        if not policy.declare_size and plan.privacy is not None:
            raise PolicyRefused("Expected a run whose noise does not follow from this device's size; see declare_size.")
        if now not in Hours(policy.hours):
            raise OutsideHours(f"Expected a time in {policy.hours}, found {now:%H:%M}.")

    def _permit_people(self, plan: LearningPlan) -> None:
        """Both sides must say that nobody is on two devices: neither can see it alone."""
        if plan.privacy is not None and plan.privacy.persons != "do-not-cross":
            raise PolicyRefused(
                'Expected a run that declares privacy.persons = "do-not-cross", found one that does not.'
            )
        if self.data.persons != "do-not-cross":
            raise PolicyRefused(
                'Expected data.persons = "do-not-cross" in site.toml for a run that is private by people, found '
                f'"{self.data.persons}": declare it if it is true, and name the column in data.map, e.g. '
                '{person = "patient"}.'
            )

    def trained(self, offered: tuple[str, ...]) -> tuple[str, ...]:
        """Of the run's methods those that this site trains."""
        allowed = self.policy.allow_methods or offered
        chosen = offered if self.limits.methods == "auto" else self.limits.methods
        return tuple(name for name in offered if name in allowed and name in chosen)


def methods_of(adapter: Adapter) -> tuple[str, ...]:
    """The PEFT methods that a run's adapter declares."""
    return tuple(name for name in typing.get_args(MethodName) if getattr(adapter, name) is not None)


def imprinting(plan: LearningPlan) -> str:
    """The methods by which a crafted state could read examples from one step's sum (Fowl et al. 2022); empty: none."""
    if plan.privacy is not None or plan.train.optimizer != "sgd" or plan.train.local_steps > 1:
        return ""
    adapter = plan.adapter
    return ", ".join(
        name for name in methods_of(adapter) if getattr(getattr(adapter, name), "activation", None) == "relu"
    )


def _tuples(value: object) -> object:
    """TOML's lists as the tuples that strict models want."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value
