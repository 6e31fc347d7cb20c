"""[privacy] in run.toml: whose data is protected, how well, and where the noise is."""

from typing import Literal

from pydantic import Field

from fedpeft.catalogue.section import Section

__all__ = ["Privacy"]


class Privacy(Section):
    """Differential privacy (docs/privacy.md): noise inside the secure sum, or in every step on the device."""

    unit: Literal["none", "client", "example", "person"] = Field(
        default="none",
        description="Whose data is protected: `client` hides what any one client contributed, `example` any one "
        "training example of a device (DP-SGD there), `person` all examples of one person.",
    )
    column: str = Field(
        default="",
        description="For `person`: the column that names the person (simulation; a device's is its site's `data.map`); "
        "empty: `person`, or what data.map gives it.",
    )
    persons: Literal["undeclared", "do-not-cross", "cross"] = Field(
        default="undeclared",
        description='For `person`: "do-not-cross" declares that no person is on two devices; sites declare it too.',
    )
    examples_per_person: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="For `person`: a step looks at so many examples of each at most; their gradients' mean is clipped.",
    )
    epsilon: float | None = Field(
        default=None, gt=0, description="The budget of the whole run; with `example` and `person`, of each device."
    )
    delta: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="At most 1 / clients; with `example` or `person`, 1 / how many of them each device has.",
    )
    l2_clip_norm: float = Field(
        default=1.0,
        gt=0,
        description="A device's whole delta, all blocks together, is clipped to this norm; with `example` and "
        "`person`, the gradient of each.",
    )
    clip: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description="For `client`: `adaptive` (Andrew 2021) starts at l2_clip_norm and follows a quantile of the "
        "devices' norms, by a noised bit of each device in the same sum.",
    )
    clip_quantile: float = Field(
        default=0.5, gt=0, lt=1, description="For clip = adaptive: share of the devices that should not be clipped."
    )
    clip_learning_rate: float = Field(
        default=0.2, gt=0, le=1, description="For clip = adaptive: a round moves the norm by at most a factor e^this."
    )
    metrics: Literal["suppressed", "noised"] = Field(
        default="suppressed",
        description="For `client`: `noised` sums each device's accuracy and losses under the same noise, which makes "
        "that on the deltas 3 % larger; else none are collected.",
    )
    noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        description="Noise over clip norm; none: the least that keeps all rounds in the budget. With `example` and "
        "`person` each device finds its own, by how many it has.",
    )
    noise: Literal["independent", "correlated"] = Field(
        default="independent",
        description="For `example` and `person`: with `correlated` each step takes back a part of the noise of the "
        "steps before it, on devices where that leaves less in the model; it pays with small batches.",
    )
    colluders: int = Field(
        default=1, ge=0, description="Devices that may tell the coordinator their noise; the others' shares suffice."
    )
    engine: Literal["auto", "opacus", "fedpeft"] = Field(
        default="auto",
        description="For `example` and `person`: whose hooks have the gradients of single examples. `auto`: Opacus's, "
        "where it has those of all methods and nothing was measured against it, else fedpeft's (docs/privacy.md).",
    )
