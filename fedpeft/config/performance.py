"""[performance] in run.toml: how fast and in how much memory, never what is learnt or promised."""

from typing import Literal

from pydantic import Field

from fedpeft.catalogue.section import Section

__all__ = ["MemoryUse", "Performance"]


class MemoryUse(Section):
    """How a trainer saves memory: nothing here changes what is learnt or promised."""

    accelerator: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="Where base and adapter are; on `cuda` products are in bfloat16, which rounds otherwise. Untried: "
        "no GPU was at hand.",
    )
    residency: Literal["auto", "dense", "quantized"] = Field(
        default="auto",
        description="The base unpacked once, or packed and unpacked at each use (QLoRA's way); `auto`: by free memory.",
    )
    micro_batch: int = Field(
        default=0, ge=0, le=4096, description="Examples of a step in memory at once, gradients added up; 0: all."
    )
    checkpointing: bool = Field(
        default=False, description="Compute layers again in the backward pass: less memory, a third more time."
    )
    cache_mb: int = Field(
        default=1024,
        ge=0,
        le=2**20,
        description="MiB of disk, where TMPDIR says, for each data set's activations below the adapted layers; "
        "0: computed anew in every step.",
    )


class Performance(MemoryUse):
    """Speed only: nothing here changes what is learnt or promised."""

    engine: Literal["local", "ray"] = Field(
        default="local", description="In this process, or on Flower's Ray engine (needs the `ray` extra)."
    )
    workers: int = Field(default=0, ge=0, le=1024, description="Virtual clients at once; 0: one per core.")
