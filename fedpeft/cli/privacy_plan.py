"""`fedpeft privacy plan`: the noise for a budget, what signal it leaves to each method, and which one to take."""

import math
from collections.abc import Mapping
from typing import Literal

import click

from fedpeft.cli.options import FiniteFloat, json_option
from fedpeft.cli.privacy_planned import Planned, clip_advice, reach_advice

__all__ = ["plan"]

LEARNS = 0.3
"""Signal-to-noise below which a round learns next to nothing, even if all deltas point the same way."""

STEP_LEARNS, STEP_DROWNS = 3.0, 1.0
"""The same for a step of DP-SGD. Examples' gradients agree less than clients' deltas do: on the airlines and BANKING77,
runs whose steps had less than 1 stayed near the start, and those above 3 came within some points of no privacy
(benchmarks/privacy_utility.py)."""

LARGE_DELTA = 1e-3
"""From here on a plan says what delta alone allows."""

NONE_LEARNS = (
    "recommended: none of these. The noise hides all of them: more {many} per device, fewer steps, or a larger epsilon."
)

LARGE_BATCH = 1024
"""As measured there: the head alone with batches of some hundred to a thousand beats it with small ones."""


@click.command()
@click.option("--unit", type=click.Choice(["client", "example", "person"]), default="client", show_default=True)
@click.option("--epsilon", type=FiniteFloat(min=0, min_open=True), required=True, help="Epsilon of the whole run.")
@click.option(
    "--delta",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Delta. Default: N^-1.1, N: clients, or the upper end of the size class of examples or people.",
)
@click.option("--rounds", type=click.IntRange(min=1), required=True, help="Number of rounds.")
@click.option("--clients", type=click.IntRange(3, 10_000_000), required=True, help="Clients per round.")
@click.option(
    "--parameters", type=click.IntRange(min=1), multiple=True, help="Number of trained parameters to judge. Repeatable."
)
@click.option(
    "--min-cohort", type=click.IntRange(min=3), help="secagg.min_cohort. Default: four fifths of the clients."
)
@click.option(
    "--colluders",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Devices that may collude with the coordinator.",
)
@click.option("--bits", type=click.Choice(["16", "32"]), default="32", show_default=True, help="secagg.bits.")
@click.option(
    "--examples", type=click.IntRange(2, 1_000_000_000), help="With --unit example: examples on the smallest device."
)
@click.option(
    "--people", type=click.IntRange(2, 1_000_000_000), help="With --unit person: people on the smallest device."
)
@click.option(
    "--per-person",
    type=click.IntRange(1, 4096),
    default=8,
    show_default=True,
    help="With --unit person: examples per person and step.",
)
@click.option(
    "--local-steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="With unit example or person: local steps per round.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    help="With unit example or person: train.batch_size. Default: 1024, or all.",
)
@click.option(
    "--noise",
    type=click.Choice(["independent", "correlated"]),
    default="independent",
    show_default=True,
    help="With unit example or person: privacy.noise.",
)
@json_option
def plan(
    unit: str,
    epsilon: float,
    delta: float | None,
    rounds: int,
    clients: int,
    parameters: tuple[int, ...],
    min_cohort: int | None,
    colluders: int,
    bits: str,
    examples: int | None,
    people: int | None,
    per_person: int,
    local_steps: int,
    batch: int | None,
    noise: Literal["independent", "correlated"],
    as_json: bool,
) -> None:
    """Find the noise that a privacy budget needs. Also says which method still learns under it.

    \b
    Examples:
      fedpeft privacy plan --epsilon 8 --rounds 20 --clients 50
      fedpeft privacy plan --unit example --epsilon 3 --rounds 120 --clients 6 --examples 2000
      fedpeft privacy plan --unit person --epsilon 3 --rounds 120 --clients 6 --people 800
    """
    from fedpeft.privacy import SIZES

    sizes = {f"{size} parameters": size for size in sorted(parameters)} or dict(SIZES)
    where = "" if parameters else " (sizes on MiniLM-L6)"
    if unit != "client":
        option, units = ("--examples", examples) if unit == "example" else ("--people", people)
        if units is None:
            raise click.UsageError(f"Expected {option} with --unit {unit}: the noise follows from how many.")
        each = None if unit == "example" else per_person
        made = _by_device(epsilon, delta, (rounds, local_steps), clients, units, batch, sizes, where, each, noise)
    elif noise == "correlated":
        raise click.UsageError("Expected --unit example or person with --noise correlated: it is a device's own.")
    else:
        made = _for_clients(epsilon, delta, rounds, clients, sizes, where, min_cohort, colluders, bits)
    if as_json:
        made.say_json()
    else:
        made.say()


def _for_clients(
    epsilon: float,
    delta: float | None,
    rounds: int,
    clients: int,
    sizes: Mapping[str, int],
    where: str,
    min_cohort: int | None,
    colluders: int,
    bits: str,
) -> Planned:
    from fedpeft.config.derived import suggested_delta
    from fedpeft.config.model import Privacy, SecureAggregation
    from fedpeft.errors import ConfigInvalid, Problem
    from fedpeft.privacy import bit_noise, bit_weight, expected_noise, signal_to_noise
    from fedpeft_server.privacy.noise_plan import MOST_BIT_NOISE, NoisePlan

    delta = suggested_delta(clients) if delta is None else delta
    threshold = max(3, -(-4 * clients // 5)) if min_cohort is None else min_cohort
    checks = [
        (delta > 1 / clients, "--delta", f"at most 1 / {clients} clients", f"{delta:g}"),
        (threshold > clients, "--min-cohort", f"at most the {clients} clients", str(threshold)),
        (colluders >= threshold, "--colluders", f"fewer than the {threshold} that open a block", str(colluders)),
    ]
    problems = [Problem(where=at, expected=expected, found=found) for bad, at, expected, found in checks if bad]
    if problems:
        raise ConfigInvalid("Expected a plan that keeps its promise.", problems=problems)
    privacy = Privacy(unit="client", epsilon=epsilon, delta=delta, colluders=colluders)
    secagg, largest = SecureAggregation(min_cohort=threshold, bits=16 if bits == "16" else 32), max(sizes.values())
    made = NoisePlan.of(privacy, secagg, rounds=rounds, parameters=largest)
    z = made.noise_multiplier
    bit = bit_noise(bit_weight(1.0, z, clients), z, 1.0, clients)
    if bit <= MOST_BIT_NOISE:
        privacy = privacy.model_copy(update={"clip": "adaptive"})
        made = NoisePlan.of(privacy, secagg, rounds=rounds, parameters=largest + 1)
    made.mechanism(clients)  # refuses a ring that is too narrow
    statement, most = made.statement(), expected_noise(clients, threshold, colluders)
    remarks = [f"with all {clients} clients present a sum holds {most:.2f} times that noise; a higher threshold less"]
    if delta > LARGE_DELTA:
        remarks.append(
            f"delta {delta:.3g} is large: it would allow to publish one client in {1 / delta:.0f} outright; with so "
            "few clients the promise is weak whatever epsilon says"
        )
    ratios = {name: signal_to_noise(clients, made.noise_multiplier, size) for name, size in sizes.items()}
    recommended, advice = _client_advice(ratios)
    return Planned(
        facts={
            "unit": "client", "epsilon": statement.epsilon, "delta": delta, "noise_multiplier": made.noise_multiplier,
            "rounds": rounds,
        },
        promise=statement.lines(),
        remarks=(*remarks, clip_advice(bit, adaptive=privacy.clip == "adaptive")),
        about=f"best signal-to-noise ratio per round, n / (z sqrt d){where}",
        signals=ratios,
        sizes=sizes,
        learns=1.0,
        drowns=LEARNS,
        recommended=recommended,
        advice=(advice,),
        config=(
            f'[privacy]\nunit = "client"\nepsilon = {epsilon:g}\ndelta = {delta:.3g}\ncolluders = {colluders}\n'
            f'clip = "{privacy.clip}"\nl2_clip_norm = 1.0\n[aggregate]\nweight = "uniform"\n'
            f"[secagg]\nmin_cohort = {threshold}\n[rounds]\nmin_devices = {threshold}\ncount = {rounds}"
        ),
    )  # fmt: skip


def _by_device(
    epsilon: float,
    delta: float | None,
    length: tuple[int, int],
    devices: int,
    units: int,
    batch: int | None,
    sizes: Mapping[str, int],
    where: str,
    per_person: int | None,
    kind: Literal["independent", "correlated"],
) -> Planned:
    """By examples, or by people of whom a step looks at ``per_person`` examples; ``length``: rounds, steps in each."""
    from fedpeft.config.derived import suggested_delta
    from fedpeft.config.private_engine import engines_line
    from fedpeft.privacy import ExampleStatement, SampledRelease, sampled_epsilon, step_signal_to_noise, turns
    from fedpeft.round.example_privacy import noise_in_model, noise_of
    from fedpeft.round.plan import ExampleTerms
    from fedpeft.round.size_class import size_class, upper_end

    unit: Literal["example", "person"] = "example" if per_person is None else "person"
    many, steps = "examples" if per_person is None else "people", length[0] * length[1]
    declared = size_class(units)  # all that noise may follow from: the size to a factor of two
    delta = suggested_delta(math.ceil(upper_end(declared))) if delta is None else delta
    batch = min(LARGE_BATCH, units) if batch is None else batch
    terms = ExampleTerms(
        epsilon=epsilon,
        delta=delta,
        l2_clip_norm=1.0,
        noise_multiplier=None,
        steps=steps,
        unit=unit,
        examples_per_person=per_person or 1,
    )
    most = max(sizes.values())
    plain = noise_of(terms, batch, declared, most)  # refuses a delta above 1 / units, and a budget out of reach
    momentum, found, gain = 0.9 ** (1 / length[1]), plain, 1.0  # as of the lines for run.toml below
    if kind == "correlated":
        found = noise_of(terms.model_copy(update={"noise": kind, "momentum": momentum}), batch, declared, most)
        gain = noise_in_model(found, steps, momentum) / noise_in_model(plain, steps, momentum)
    z, rate, counted = found.noise_multiplier, found.sampling_rate, turns(0, steps, found.bands)
    cost = SampledRelease(
        noise_multiplier=z, sampling_rate=rate, steps=counted, parameters=most * found.bands, unit=unit
    )
    statement = ExampleStatement(
        epsilon=sampled_epsilon([(cost, 1)], delta),
        delta=delta,
        noise_multiplier=z,
        l2_clip_norm=1.0,
        sampling_rate=rate,
        steps=counted,
        examples_per_person=per_person or 0,
    )
    ratios = {
        name: step_signal_to_noise(plain.sampling_rate * units, plain.noise_multiplier * gain, size, devices=devices)
        for name, size in sizes.items()
    }
    recommended, advice = _device_advice(ratios, many, batch, units)
    correlated = 'noise = "correlated"\n' if kind == "correlated" else ""
    people = "" if per_person is None else f'persons = "do-not-cross"\nexamples_per_person = {per_person}\n'
    return Planned(
        facts={
            "unit": unit, "epsilon": statement.opinions().charged, "delta": delta, "noise_multiplier": z,
            "sampling_rate": rate, "steps": steps, "bands": found.bands, "noise_left": gain,
        },
        promise=(*statement.lines(correlated=kind == "correlated"), engines_line()),
        remarks=() if kind == "independent" else (reach_advice(found.bands, gain),),
        about=f"signal to noise of a step at best, devices together, q N sqrt(n) / (z sqrt d), for {devices} devices "
        f"of {units} {many}{where}",
        signals=ratios,
        sizes=sizes,
        learns=STEP_LEARNS,
        drowns=STEP_DROWNS,
        recommended=recommended,
        advice=advice,
        config=(
            f'[privacy]\nunit = "{unit}"\n{people}{correlated}epsilon = {epsilon:g}\ndelta = {delta:.3g}\n'
            f"l2_clip_norm = 1.0\n"
            f'[aggregate]\nserver_optimizer = "momentum"\n'
            f'[train]\noptimizer = "sgd"\nbatch_size = {batch}\ndecay = "cosine"\nlocal_steps = {length[1]}\n'
            f"[rounds]\ncount = {length[0]}"
        ),
    )  # fmt: skip


def _device_advice(
    ratios: Mapping[str, float], many: str, batch: int, units: int
) -> tuple[str | None, tuple[str, ...]]:
    """The head, or nothing."""
    first = next(iter(ratios))
    if ratios[first] < STEP_DROWNS:
        return None, (NONE_LEARNS.format(many=many),)
    line = (
        f"recommended: {first}, with batches as large as these: far ahead of every adapter on BANKING77, about "
        "level with the best on the airlines, and what the head reads is computed once (docs/privacy.md)"
    )
    if batch < (larger := min(LARGE_BATCH, units)):
        return first, (line, f"train.batch_size = {larger} leaves more signal for the same epsilon")
    return first, (line,)


def _client_advice(ratios: Mapping[str, float]) -> tuple[str | None, str]:
    """The largest method that still learns, or None; and what to say."""
    good = [name for name, ratio in ratios.items() if ratio >= 1] or [
        name for name, ratio in ratios.items() if ratio >= LEARNS
    ]
    if good:
        return good[-1], f"recommended: {good[-1]}; always compare with training the head only"
    return None, (
        "recommended: none of these. The noise hides all of them: use more clients, fewer rounds, or a "
        "larger epsilon. "
        "Below a few hundred clients client-level privacy is expensive for anything but the smallest method; "
        "--unit example promises less, to each example, and costs less."
    )
