"""What a run has promised, as its records tell: heard from devices, or read from the coordinator's own ledger."""

import logging
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, fields

from fedpeft.config import RunConfig
from fedpeft.config.privacy import Privacy
from fedpeft.config.private_engine import engine_line
from fedpeft.errors import BudgetExhausted, IntegrityFailed
from fedpeft.ids import RoundId
from fedpeft.privacy import ExampleStatement, Release, SampledRelease, Statement, exceeds, read_ledger
from fedpeft.round.messages import FailureReason
from fedpeft.round.task import RoundOutcome
from fedpeft_server.privacy.client_level import LEDGER
from fedpeft_server.privacy.noise_plan import NoisePlan
from fedpeft_server.run.begun import recorded_engine
from fedpeft_server.run.records import EventRecord
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import RunView, read_run

__all__ = [
    "NOT_COUNTED",
    "STATED",
    "client_noise",
    "client_statement",
    "detail_of",
    "engine_lines",
    "hear_statements",
    "privacy_lines",
    "spent",
    "stated",
    "unstated",
    "warnings_of",
]

_log = logging.getLogger(__name__)

TYPICAL_PARAMETERS = 100_000
"""For a plan without a model; they change epsilon in the sixth digit."""

STATED = "privacy.stated"
"""The event that holds a device's statement."""

NOT_COUNTED = "privacy.not-counted"
"""The event that says why a statement counts as none."""

LATER = {"examples_per_person", "ours", "prv"}
"""What older records of one do not have."""


def hear_statements(run: RunDirectory, round_id: RoundId, outcome: RoundOutcome, *, needed: int) -> None:
    """Record what each device states about its examples; what none of this run can mean counts as nothing stated.

    Raises:
        BudgetExhausted: so many devices have spent the run's budget that no round can have ``needed`` of them.
    """
    for name, account in outcome.traffic.items():
        if account.statement is None:
            continue
        if why := misfit(account.statement, run.config.privacy):
            _log.warning("%s stated a loss of privacy with %s; round %d counts as not covered", name, why, round_id)
            run.record(NOT_COUNTED, round_id=round_id, client=name, detail={"reason": why})
        else:
            run.record(STATED, round_id=round_id, client=name, detail=detail_of(account.statement))
    refused = [name for name, one in outcome.traffic.items() if one.failure == FailureReason.REFUSED.value]
    if len(outcome.traffic) - len(refused) >= needed:
        return
    view = read_run(run.path)
    out_of_budget = spent(view.config(), stated(view), refused)
    if len(outcome.traffic) - len(out_of_budget) < needed:
        raise BudgetExhausted(
            f"Expected {needed} devices with privacy budget left for round {round_id}, found it spent on "
            f"{', '.join(out_of_budget)}; the rounds committed so far stand. Lost rounds count: what was trained in "
            "them has left its device, or may have."
        )


def misfit(statement: ExampleStatement, privacy: Privacy) -> str:
    """What of a statement no device that follows this plan can mean; empty: nothing."""
    if not statement.possible:
        return "numbers outside of their ranges"
    planned: dict[str, str | float | None] = {
        "unit": privacy.unit,
        "delta": privacy.delta,
        "l2_clip_norm": privacy.l2_clip_norm,
        "examples_per_person": privacy.examples_per_person if privacy.unit == "person" else 0,
    }
    if privacy.noise_multiplier is not None:
        planned["noise_multiplier"] = privacy.noise_multiplier
    differs = [name for name, value in planned.items() if getattr(statement, name) != value]
    return f"another {' and '.join(differs)} than the plan's" if differs else ""


def detail_of(statement: ExampleStatement) -> dict[str, float | int]:
    """A statement as the event's detail; what nobody found is left out."""
    return {name: value for name, value in asdict(statement).items() if value is not None}


def spent(config: RunConfig, statements: Mapping[str, ExampleStatement], names: Collection[str]) -> tuple[str, ...]:
    """Which of these devices cannot take another round within the run's budget, as their own statements tell.

    A device refuses without saying why; but what it has spent follows from rounds that everybody saw.
    """
    privacy, steps = config.privacy, config.train.local_steps
    found = []
    for name in sorted(names):
        last = statements.get(name)
        if privacy.unit not in ("example", "person") or privacy.epsilon is None or last is None:
            continue
        release = SampledRelease(
            noise_multiplier=last.noise_multiplier,
            sampling_rate=last.sampling_rate,
            steps=last.steps + steps,
            parameters=TYPICAL_PARAMETERS,
            unit=last.unit,
        )
        if exceeds([release], privacy.epsilon, last.delta):
            found.append(name)
    return tuple(found)


def stated(view: RunView) -> dict[str, ExampleStatement]:
    """Each device's last statement.

    Raises:
        IntegrityFailed: a record is not a statement.
    """
    return {event.client: statement for event, statement in _counted(view)}


def _counted(view: RunView) -> Iterator[tuple[EventRecord, ExampleStatement]]:
    """What was stated; without what an earlier version recorded and this one would not."""
    privacy = view.config().privacy
    names = {field.name for field in fields(ExampleStatement)}
    for event in view.events:
        if event.kind != STATED:
            continue
        if not names - LATER <= set(event.detail) <= names:
            raise IntegrityFailed(f"Expected a device's privacy statement, found {sorted(event.detail)}.")
        statement = ExampleStatement(**event.detail)  # type: ignore[arg-type]
        if not misfit(statement, privacy):
            yield event, statement


def privacy_lines(view: RunView) -> tuple[str, ...]:
    """What the run has spent and what that means, one fact a line; nothing for a run without privacy."""
    match view.config().privacy.unit:
        case "none":
            return ()
        case "client":
            return _client_lines(view)
        case "example" | "person":
            return _example_lines(view)


def client_noise(config: RunConfig, view: RunView | None) -> tuple[float, int]:
    """Noise multiplier and number of sums of a run by clients: as charged, or as it would be planned."""
    releases = [entry.release for entry in read_ledger(view.path / LEDGER)] if view else []
    if releases and isinstance(releases[0], Release):
        return releases[0].noise_multiplier, len(releases)
    planned = NoisePlan.of(config.privacy, config.secagg, rounds=config.rounds.count, parameters=TYPICAL_PARAMETERS)
    return planned.noise_multiplier, planned.rounds


def _example_lines(view: RunView) -> tuple[str, ...]:
    statements, correlated = stated(view), view.config().privacy.noise == "correlated"
    if not statements:
        return warnings_of(view) or ("no device has trained yet; nothing has been released",)
    worst = max(statements.values(), key=lambda one: one.opinions().charged)
    charged = {name: one.opinions().charged for name, one in statements.items()}
    counted = "turns" if correlated else "steps"
    parts = (
        f"{name} {charged[name]:.4g} (z {one.noise_multiplier:g}, q {one.sampling_rate:.3g}, {one.steps} {counted})"
        for name, one in sorted(statements.items(), key=lambda item: (-charged[item[0]], item[0]))
    )
    each = f"each device's epsilon, as it states it: {'; '.join(parts)}; the largest is above"
    lines = (*worst.lines(correlated=correlated), *engine_lines(view), each)
    return (*warnings_of(view), *lines)


def engine_lines(view: RunView) -> tuple[str, ...]:
    """Whose hooks had the gradients that were clipped; nothing where no single examples' were taken."""
    config = view.config()
    if config.privacy.unit not in ("example", "person"):
        return ()
    if "engine" not in tomllib.loads(view.resolved)["privacy"]:
        return ("gradients of single examples: by fedpeft's own hooks; this run began before there was another choice",)
    return (engine_line(config.adapter, config.privacy.engine, recorded=recorded_engine(view.path)),)


def unstated(view: RunView) -> dict[str, tuple[int, ...]]:
    """Who is in the sum of a round, having stated nothing of what its examples lost in it; and in which rounds.

    Such a device may have trained without noise: what the others promise says nothing about it.
    """
    said = {(event.client, event.round) for event, _ in _counted(view)}
    trained = [row for row in view.rounds if row.round <= view.config().rounds.count and not row.burnt]
    found: dict[str, tuple[int, ...]] = {}
    for row in trained:
        for client in row.clients:
            if client.state == "summed" and (client.client, row.round) not in said:
                found[client.client] = (*found.get(client.client, ()), row.round)
    return found


def warnings_of(view: RunView) -> tuple[str, ...]:
    """What belongs before the promise: what undoes it, and what it paid for without result."""
    if view.config().privacy.unit == "client":
        lost = len(read_ledger(view.path / LEDGER)) - sum(not row.burnt for row in view.rounds)
        return (f"{lost} of the releases were lost: charged, no sum committed",) if lost > 0 else ()
    silent = unstated(view)
    if not silent:
        return ()
    names = "; ".join(f"{name} in rounds {', '.join(map(str, rounds))}" for name, rounds in sorted(silent.items()))
    return (f"NOT COVERED: devices that were summed and stated nothing: {names}; no epsilon below holds for them",)


def _client_lines(view: RunView) -> tuple[str, ...]:
    said = client_statement(view)
    return (*warnings_of(view), *(("nothing has been released",) if said is None else said.lines()))


def client_statement(view: RunView) -> Statement | None:
    """What a run by clients has spent, as its ledger tells; None: nothing has been released."""
    config = view.config()
    releases = [entry.release for entry in read_ledger(view.path / LEDGER)]
    if not releases or not isinstance(releases[0], Release):
        return None
    made = NoisePlan(
        privacy=config.privacy,
        secagg=config.secagg,
        rounds=config.rounds.count,
        parameters=releases[0].parameters,
        noise_multiplier=releases[0].noise_multiplier,
    )
    return made.statement(releases)
