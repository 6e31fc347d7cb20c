"""A round's private steps: DP-SGD under the noise that the device charges for."""

from typing import TYPE_CHECKING

from fedpeft.ids import SizeClass
from fedpeft.privacy import NoiseStream
from fedpeft.round.example_privacy import DeviceNoise
from fedpeft.round.plan import ExampleTerms
from fedpeft.tuning import LocalPlan, NoiseScale, train_privately
from fedpeft_client.training.examples import Prepared

if TYPE_CHECKING:
    from fedpeft.methods import UnionAdapter

__all__ = ["take_private_steps"]


def take_private_steps(
    union: "UnionAdapter",
    steps: LocalPlan,
    examples: Prepared,
    terms: ExampleTerms,
    noise: DeviceNoise,
    *,
    declared: SizeClass,
    stream: NoiseStream | None,
) -> NoiseStream | None:
    """Trains in place; nothing is measured, for a loss would be a release.

    Args:
        union, steps, examples: what is trained, how, and on what.
        terms: of the plan.
        noise: the same that the device charges.
        declared: the device's size class: a step's sum is divided by what it takes of that many units.
        stream: of correlated noise, before these steps; None: independent noise.

    Returns:
        The stream after them.
    """
    scale = NoiseScale(
        l2_clip_norm=terms.l2_clip_norm,
        noise_multiplier=noise.noise_multiplier,
        sampling_rate=noise.sampling_rate,
        bands=noise.bands,
        momentum=terms.momentum if noise.bands > 1 else 0.0,
    )
    outcome = train_privately(
        union,
        examples.train,
        steps,
        scale,
        cache=examples.train_cache,
        expected_batch=noise.sampling_rate * 2.0**declared / noise.bands,
        examples_per_person=terms.examples_per_person if terms.unit == "person" else None,
        engine=terms.engine,
        stream=stream,
    )
    return outcome.stream
