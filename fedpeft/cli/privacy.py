"""`fedpeft privacy`: what a budget costs before a run, and what a run has spent."""

from pathlib import Path

import click

__all__ = ["command"]

LEARNS = 0.3
"""Signal-to-noise below which a round learns next to nothing, even if all deltas point the same way."""


@click.group(short_help="Plan a privacy budget, and report what a run has spent.")
def command() -> None:
    """Plan a privacy budget, and report what a run has spent (docs/privacy.md)."""


@command.command()
@click.option(
    "--epsilon", type=click.FloatRange(min=0, min_open=True), required=True, help="The budget of a whole run."
)
@click.option("--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Default: clients^-1.1.")
@click.option("--rounds", type=click.IntRange(min=1), required=True, help="Rounds to train.")
@click.option("--clients", type=click.IntRange(min=3), required=True, help="Clients asked in each round.")
@click.option("--parameters", type=click.IntRange(min=1), multiple=True, help="Trained parameters; may be repeated.")
@click.option("--min-cohort", type=click.IntRange(min=3), help="secagg.min_cohort. Default: 4 of 5 clients.")
@click.option("--colluders", type=click.IntRange(min=0), default=1, show_default=True, help="Devices not trusted.")
@click.option("--bits", type=click.Choice(["16", "32"]), default="32", show_default=True, help="secagg.bits.")
def plan(
    epsilon: float,
    delta: float | None,
    rounds: int,
    clients: int,
    parameters: tuple[int, ...],
    min_cohort: int | None,
    colluders: int,
    bits: str,
) -> None:
    """Find the noise for a budget, and what signal it leaves to each method.

    \b
    Example:
      fedpeft privacy plan --epsilon 8 --rounds 20 --clients 50
    """
    from fedpeft.config.derived import suggested_delta
    from fedpeft.config.model import Privacy, SecureAggregation
    from fedpeft.errors import ConfigInvalid, Problem
    from fedpeft.privacy import SIZES, expected_noise, signal_to_noise
    from fedpeft_server.privacy import Plan

    delta = suggested_delta(clients) if delta is None else delta
    threshold = max(3, -(-4 * clients // 5)) if min_cohort is None else min_cohort
    checks = [
        (delta > 1 / clients, "--delta", f"at most 1 / {clients} clients", f"{delta:g}"),
        (threshold > clients, "--min-cohort", f"at most the {clients} clients", str(threshold)),
        (colluders >= threshold, "--colluders", f"fewer than the {threshold} that open a block", str(colluders)),
    ]
    problems = [Problem(where=where, expected=expected, found=found) for bad, where, expected, found in checks if bad]
    if problems:
        raise ConfigInvalid("Expected a plan that keeps its promise.", problems=problems)
    sizes = {f"{size} parameters": size for size in sorted(parameters)} or dict(SIZES)
    made = Plan.of(
        Privacy(unit="client", epsilon=epsilon, delta=delta, colluders=colluders),
        SecureAggregation(min_cohort=threshold, bits=16 if bits == "16" else 32),
        rounds=rounds,
        parameters=max(sizes.values()),
    )
    made.mechanism(clients)  # refuses a ring that is too narrow
    for line in made.statement().lines():
        click.echo(line)
    z = made.noise_multiplier
    most = expected_noise(clients, threshold, colluders)
    click.echo(f"with all {clients} clients present a sum holds {most:.2f} times that noise; a higher threshold less")
    click.echo("")
    where = "" if parameters else " (sizes on MiniLM-L6)"
    click.echo(f"signal to noise of a round at best, n / (z sqrt d){where}:")
    ratios = {name: signal_to_noise(clients, z, size) for name, size in sizes.items()}
    for name, size in sizes.items():
        verdict = "learns" if ratios[name] >= 1 else "noisy" if ratios[name] >= LEARNS else "drowns"
        click.echo(f"  {name:<34} d = {size:>9,}   {ratios[name]:8.3f}   {verdict}")
    click.echo("")
    click.echo(_advice(ratios))
    click.echo("")
    click.echo("[privacy]")
    click.echo(f'unit = "client"\nepsilon = {epsilon:g}\ndelta = {delta:.3g}\ncolluders = {colluders}')
    click.echo(f'[aggregate]\nweight = "uniform"\n[secagg]\nmin_cohort = {threshold}')
    click.echo(f"[rounds]\nmin_devices = {threshold}\ncount = {rounds}")


@command.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Say what RUN has spent, and what that means."""
    from fedpeft_server.promises import privacy_lines
    from fedpeft_server.run_view import read_run

    view = read_run(run)
    privacy = view.config().privacy
    click.echo(f"{view.manifest.run_id}: {len(view.rounds)} rounds committed")
    if privacy.unit == "none":
        click.echo("no differential privacy; whoever has the adapter may learn from it")
        return
    click.echo(f"budget: epsilon {privacy.epsilon:g} at delta {privacy.delta:g}; spent:")
    for line in privacy_lines(view):
        click.echo(f"  {line}")


def _advice(ratios: dict[str, float]) -> str:
    """The largest method that still learns."""
    good = [name for name, ratio in ratios.items() if ratio >= 1] or [
        name for name, ratio in ratios.items() if ratio >= LEARNS
    ]
    if good:
        return f"recommended: {good[-1]}; always compare with training the head only"
    return (
        "recommended: none of these. All drown: ask more clients, run fewer rounds, or allow a larger epsilon. "
        "Below a few hundred clients a client-level promise is expensive for anything but the smallest method."
    )


@command.command()
@click.argument("target", metavar="RUN|CONFIG", type=click.Path(path_type=Path, exists=True))
@click.option("--canaries", type=click.IntRange(min=20, max=5000), default=500, show_default=True)
@click.option("--examples", type=click.IntRange(min=2), help="For a CONFIG by examples: how many a device has.")
def audit(target: Path, canaries: int, examples: int | None) -> None:
    """Attack the noise of RUN or CONFIG with canaries, and compare what leaks with what is claimed.

    A bound above the claim refutes this build (exit code 1); one below proves nothing.
    """
    from fedpeft.config import load
    from fedpeft.entropy import os_entropy
    from fedpeft.errors import ConfigInvalid, RunFailed
    from fedpeft_server.promises import client_noise, stated
    from fedpeft_server.run_view import read_run

    view = read_run(target) if target.is_dir() else None
    config = view.config() if view else load(target, overrides=(), simulation=True)
    privacy, delta = config.privacy, min(config.privacy.delta or 1.0, 1e-5)
    if privacy.unit == "none":
        raise ConfigInvalid('Expected privacy.unit = "client" or "example", found "none"; nothing is claimed.')
    if privacy.unit == "client":
        from fedpeft.privacy import audit_clients

        z, releases = client_noise(config, view)
        click.echo(f"{canaries} canary clients over {releases} sums, noise multiplier {z:g}")
        result = audit_clients(
            noise_multiplier=z,
            l2_clip_norm=privacy.l2_clip_norm,
            rounds=releases,
            canaries=canaries,
            delta=delta,
            entropy=os_entropy,
        )
    else:
        from fedpeft.round.example_privacy import noise_of
        from fedpeft.round.plan import example_terms
        from fedpeft.tuning import NoiseScale
        from fedpeft.tuning.canaries import audit_examples

        terms = example_terms(config)
        statements = stated(view) if view else {}
        if statements:
            worst = max(statements.values(), key=lambda one: one.epsilon)
            z, rate, steps = worst.noise_multiplier, worst.sampling_rate, worst.steps
        elif examples is None or terms is None:
            raise click.UsageError("Expected --examples for a CONFIG: a device's noise follows from how many it has.")
        else:
            z, rate = noise_of(terms, config.train.batch_size, examples, 4 * canaries)
            steps = terms.steps
        click.echo(f"{canaries} canary examples over {steps} steps, noise multiplier {z:g}, sampling rate {rate:.4g}")
        scale = NoiseScale(l2_clip_norm=privacy.l2_clip_norm, noise_multiplier=z, sampling_rate=rate)
        result = audit_examples(scale, steps=steps, canaries=canaries, delta=delta, entropy=os_entropy)
    click.echo(f"claimed       epsilon {result.claimed:.3f} at delta {delta:g}, for exactly this noise")
    click.echo(f"lower bound   epsilon {result.bound:.3f} at 95 % confidence (one run, Steinke et al. 2023)")
    click.echo(f"saturation    epsilon {result.most:.3f}: with {canaries} canaries no bound can be larger")
    if result.refuted:
        raise RunFailed(
            f"Expected a leak below the claim of {result.claimed:.3f}, found at least {result.bound:.3f}: the noise of "
            "this build does not keep its promise. Do not release what it trained; report it (SECURITY.md)."
        )
    if result.most < result.claimed:
        click.echo("The claim lies above saturation: this audit could not have refuted it. Use a smaller epsilon.")
    else:
        click.echo("not refuted, which is no proof; how small a leak is found depends on the claim and the canaries")
