"""Writes tests/privacy/vectors/correlated.json; needs jax_privacy 2.0, which fedpeft does not.

    python -m venv v && v/bin/pip install jax_privacy && JAX_PLATFORMS=cpu v/bin/python correlated_by_jax_privacy.py

Sizes of data sets divide by the number of groups: jax_privacy drops what is left over.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax_privacy.accounting import accountants, analysis
from jax_privacy.matrix_factorization import toeplitz

jax.config.update("jax_enable_x64", True)


def root(bands: int, momentum: float) -> jax.Array:
    """The closed form: Taylor coefficients of (1 - x)^-1/2 (1 - momentum x)^-1/2."""
    plain = [1.0]
    for j in range(1, bands):
        plain.append(plain[-1] * (2 * j - 1) / (2 * j))
    first = jnp.array(plain)
    return toeplitz.multiply(first, first * momentum ** jnp.arange(bands), n=bands, skip_checks=True)


def of_matrix(bands: int, momentum: float, steps: int) -> dict[str, object]:
    """One matrix, as jax_privacy measures it."""
    column, took_part = root(bands, momentum), -(-steps // bands)
    weights = jnp.cumsum(momentum ** jnp.arange(steps)) if momentum else jnp.ones(steps)
    errors = toeplitz.per_query_error(strategy_coef=column, n=steps, workload_coef=weights)
    squared = toeplitz.minsep_sensitivity_squared(column, min_sep=bands, max_participations=took_part, n=steps)
    return {
        "bands": bands,
        "momentum": momentum,
        "steps": steps,
        "coefficients": [float(c) for c in column],
        "inverse": [float(c) for c in toeplitz.inverse_coef(column, steps)][:40],
        "participations": took_part,
        "sensitivity_squared": float(squared),
        "mean_squared_error": float(jnp.mean(errors)),
    }


def of_sampling(z: float, examples: int, batch: int, bands: int, steps: int, delta: float) -> dict[str, float]:
    """The epsilon of cyclic Poisson sampling."""
    accountant = analysis.DpsgdTrainingAccountant(accountants.PldAccountantConfig(value_discretization_interval=1e-4))
    settings = analysis.DpParams(
        noise_multipliers=z, num_samples=examples, delta=delta, batch_size=batch, cycle_length=bands
    )
    return {
        "noise_multiplier": z,
        "examples": examples,
        "batch": batch,
        "bands": bands,
        "steps": steps,
        "delta": delta,
        "epsilon": float(accountant.compute_epsilon(steps, settings)),
    }


MATRICES = [(2, 0.0, 10), (4, 0.0, 60), (12, 0.9, 60), (16, 0.9, 500), (8, 0.5, 33), (6, 0.9**0.5, 120)]
SAMPLINGS = [
    (1.92, 2688, 128, 12, 60, 1e-4),
    (0.941, 2688, 128, 12, 60, 1e-4),
    (4.63, 2688, 128, 12, 60, 1e-4),
    (1.0, 10000, 50, 16, 500, 1e-5),
    (0.8, 1000, 20, 8, 100, 1e-3),
    (2.0, 1024, 256, 4, 61, 1e-4),
    (1.5, 4096, 64, 1, 200, 1e-5),
]

if __name__ == "__main__":
    found = {
        "source": "jax_privacy 2.0.0 with jax 0.10.2, 64 bit; PLD at 1e-4",
        "matrices": [of_matrix(*one) for one in MATRICES],
        "epsilons": [of_sampling(*one) for one in SAMPLINGS],
    }
    Path(__file__).with_name("correlated.json").write_text(json.dumps(found, indent=1) + "\n")
