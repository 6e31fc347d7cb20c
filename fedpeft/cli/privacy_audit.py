"""`fedpeft privacy audit`: canaries against the noise, and what leaks of them against what is claimed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import json_option, say_json

if TYPE_CHECKING:
    from fedpeft.config import RunConfig
    from fedpeft.privacy import AuditResult
    from fedpeft_server.run.run_view import RunView

__all__ = ["audit"]

Facts = dict[str, str | int | float]
"""What is audited, for programs."""


@click.command()
@click.argument("target", metavar="RUN|CONFIG", type=click.Path(path_type=Path, exists=True))
@click.option("--canaries", type=click.IntRange(min=20, max=5000), default=500, show_default=True)
@click.option(
    "--examples", type=click.IntRange(min=2), help="For a CONFIG with unit example or person: how many one device has."
)
@json_option
def audit(target: Path, canaries: int, examples: int | None, as_json: bool) -> None:
    """Attack the released sums with canaries. Compares the leakage found with the claimed epsilon.

    A lower bound above the claim shows a bug (exit code 1). A bound below the claim proves nothing.
    """
    from fedpeft.config import load
    from fedpeft.errors import ConfigInvalid, RunFailed
    from fedpeft_server.run.run_view import read_run

    view = read_run(target) if target.is_dir() else None
    config = view.config() if view else load(target, overrides=(), simulation=True)
    delta = min(config.privacy.delta or 1.0, 1e-5)
    match config.privacy.unit:
        case "none":
            raise ConfigInvalid(
                'Expected privacy.unit = "client", "example" or "person", found "none"; nothing is claimed.'
            )
        case "client":
            about, facts, run = _of_clients(config, view, canaries, delta)
        case "example" | "person":
            about, facts, run = _on_device(config, view, canaries, delta, examples)
    if not as_json:
        click.echo(about)
    result = run()
    conclusive = result.most >= result.claimed
    if as_json:
        found = {"claimed": result.claimed, "lower_bound": result.bound, "confidence": 0.95, "saturation": result.most}
        said = {"refuted": result.refuted, "could_have_been_refuted": conclusive}
        say_json({"target": str(target), **facts, "canaries": canaries, "delta": delta, **found, **said})
    else:
        click.echo(f"claimed       epsilon {result.claimed:.3f} at delta {delta:g}, for exactly this noise")
        click.echo(f"lower bound   epsilon {result.bound:.3f} at 95 % confidence (one run, Steinke et al. 2023)")
        click.echo(f"saturation    epsilon {result.most:.3f}: with {canaries} canaries no bound can be larger")
    if result.refuted:
        raise RunFailed(
            f"Expected a leak below the claim of {result.claimed:.3f}, found at least {result.bound:.3f}: the noise of "
            "this build does not keep its promise. Do not release what it trained; report it (SECURITY.md)."
        )
    if as_json:
        return
    if conclusive:
        click.echo("not refuted, which is no proof; how small a leak is found depends on the claim and the canaries")
    else:
        click.echo("The claim lies above saturation: this audit could not have refuted it. Use a smaller epsilon.")


def _of_clients(
    config: "RunConfig", view: "RunView | None", canaries: int, delta: float
) -> tuple[str, Facts, Callable[[], "AuditResult"]]:
    from fedpeft.entropy import os_entropy
    from fedpeft.privacy import audit_clients
    from fedpeft_server.run.privacy_statements import client_noise

    z, releases = client_noise(config, view)
    return (
        f"{canaries} canary clients over {releases} sums, noise multiplier {z:g}",
        {"unit": "client", "noise_multiplier": z, "sums": releases},
        lambda: audit_clients(
            noise_multiplier=z,
            l2_clip_norm=config.privacy.l2_clip_norm,
            rounds=releases,
            canaries=canaries,
            delta=delta,
            entropy=os_entropy,
        ),
    )


def _on_device(
    config: "RunConfig", view: "RunView | None", canaries: int, delta: float, examples: int | None
) -> tuple[str, Facts, Callable[[], "AuditResult"]]:
    from fedpeft.entropy import os_entropy
    from fedpeft.round.example_privacy import noise_of
    from fedpeft.round.plan import example_terms
    from fedpeft.round.size_class import size_class
    from fedpeft.tuning import NoiseScale
    from fedpeft.tuning.canaries import audit_examples, audit_people
    from fedpeft_server.run.privacy_statements import stated

    privacy, terms, statements = config.privacy, example_terms(config), stated(view) if view else {}
    bands, momentum = 1, 0.0
    if statements and privacy.noise == "independent":
        worst = max(statements.values(), key=lambda one: one.epsilon)
        z, rate, steps = worst.noise_multiplier, worst.sampling_rate, worst.steps
    elif examples is None or terms is None:
        raise click.UsageError(
            "Expected --examples for a CONFIG, or a RUN with correlated noise: a device's noise follows from how many "
            "it has."
        )
    else:
        z, rate, bands = noise_of(terms, config.train.batch_size, size_class(examples), 4 * canaries)
        steps, momentum = terms.steps, terms.momentum if bands > 1 else 0.0
    scale = NoiseScale(
        l2_clip_norm=privacy.l2_clip_norm, noise_multiplier=z, sampling_rate=rate, bands=bands, momentum=momentum
    )

    def run() -> "AuditResult":
        if privacy.unit == "person":
            return audit_people(
                scale,
                steps=steps,
                canaries=canaries,
                examples_per_person=privacy.examples_per_person,
                delta=delta,
                entropy=os_entropy,
            )
        return audit_examples(scale, steps=steps, canaries=canaries, delta=delta, entropy=os_entropy)

    many = "people" if privacy.unit == "person" else "examples"
    return (
        f"{canaries} canary {many} over {steps} steps, noise multiplier {z:g}, sampling rate {rate:.4g}"
        + (f", correlated over {bands} steps" if bands > 1 else ""),
        {"unit": privacy.unit, "noise_multiplier": z, "sampling_rate": rate, "steps": steps, "bands": bands},
        run,
    )
