"""`fedpeft privacy`: what a budget costs before a run, and what a run has spent."""

from pathlib import Path

import click

from fedpeft.cli.options import json_option, run_argument, say_json
from fedpeft.cli.privacy_plan import plan
from fedpeft.cli.privacy_statement import verify
from fedpeft.terminal import counted

__all__ = ["command"]


@click.group(short_help="Plan a privacy budget, and report what a run has spent.")
def command() -> None:
    """Plan a privacy budget, and report what a run has spent (docs/privacy.md)."""


command.add_command(plan)
command.add_command(verify)


@command.command()
@run_argument
@click.option(
    "--statement",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a signed statement to FILE: .html, .json or any other name for text. The content is the same.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Home (a coordinator's or a device's) whose key signs the statement. Default: the home that contains RUN.",
)
@json_option
def report(run: Path, statement: Path | None, home: Path | None, as_json: bool) -> None:
    """Show the privacy budget that RUN has spent, and what it means."""
    from fedpeft_server.run.privacy_statements import privacy_lines
    from fedpeft_server.run.run_view import read_run

    view = read_run(run)
    if statement is not None:
        from fedpeft.cli.privacy_statement import issue

        issue(view, statement, home)
        return
    privacy = view.config().privacy
    if as_json:
        spent = [] if privacy.unit == "none" else list(privacy_lines(view))
        facts = {"unit": privacy.unit, "epsilon": privacy.epsilon, "delta": privacy.delta, "spent": spent}
        say_json({"run": str(run), "rounds": len(view.rounds), **facts})
        return
    click.echo(f"{view.manifest.run_id}: {counted(len(view.rounds), 'round')} committed")
    if privacy.unit == "none":
        click.echo("no differential privacy; whoever has the adapter may learn from it")
        return
    click.echo(f"budget: epsilon {privacy.epsilon:g} at delta {privacy.delta:g}; spent:")
    for line in privacy_lines(view):
        click.echo(f"  {line}")


@command.command()
@click.argument("target", metavar="RUN|CONFIG", type=click.Path(path_type=Path, exists=True))
@click.option("--canaries", type=click.IntRange(min=20, max=5000), default=500, show_default=True)
@click.option(
    "--examples", type=click.IntRange(min=2), help="For a CONFIG with unit example or person: how many one device has."
)
def audit(target: Path, canaries: int, examples: int | None) -> None:
    """Attack the released sums with canaries. Compares the leakage found with the claimed epsilon.

    A lower bound above the claim shows a bug (exit code 1). A bound below the claim proves nothing.
    """
    from fedpeft.config import load
    from fedpeft.entropy import os_entropy
    from fedpeft.errors import ConfigInvalid, RunFailed
    from fedpeft_server.run.privacy_statements import client_noise, stated
    from fedpeft_server.run.run_view import read_run

    view = read_run(target) if target.is_dir() else None
    config = view.config() if view else load(target, overrides=(), simulation=True)
    privacy, delta = config.privacy, min(config.privacy.delta or 1.0, 1e-5)
    if privacy.unit == "none":
        raise ConfigInvalid(
            'Expected privacy.unit = "client", "example" or "person", found "none"; nothing is claimed.'
        )
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
        from fedpeft.round.size_class import size_class
        from fedpeft.tuning import NoiseScale
        from fedpeft.tuning.canaries import audit_examples, audit_people

        terms = example_terms(config)
        statements = stated(view) if view else {}
        if statements:
            worst = max(statements.values(), key=lambda one: one.epsilon)
            z, rate, steps = worst.noise_multiplier, worst.sampling_rate, worst.steps
        elif examples is None or terms is None:
            raise click.UsageError("Expected --examples for a CONFIG: a device's noise follows from how many it has.")
        else:
            z, rate = noise_of(terms, config.train.batch_size, size_class(examples), 4 * canaries)
            steps = terms.steps
        many = "people" if privacy.unit == "person" else "examples"
        click.echo(f"{canaries} canary {many} over {steps} steps, noise multiplier {z:g}, sampling rate {rate:.4g}")
        scale = NoiseScale(l2_clip_norm=privacy.l2_clip_norm, noise_multiplier=z, sampling_rate=rate)
        if privacy.unit == "person":
            result = audit_people(
                scale,
                steps=steps,
                canaries=canaries,
                examples_per_person=privacy.examples_per_person,
                delta=delta,
                entropy=os_entropy,
            )
        else:
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
