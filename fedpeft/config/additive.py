"""[adapter.*] of the methods that add small networks to a layer; ``fedpeft.config.adapter`` collects them."""

from typing import Annotated, Literal

from pydantic import Field

from fedpeft.config.method import MethodSection

__all__ = ["Activation", "Bottleneck", "Coda", "Compacter", "Fusion", "Hypernetwork", "Parallel", "Unipelt"]

Activation = Literal["relu", "gelu"]
_WIDTH = "Rows of D: how narrow the bottleneck is."
_BETWEEN = "Between D and U."
_DROPOUT = "Share of the narrow network's units that a training step leaves out, drawn anew for each."


class Bottleneck(MethodSection):
    """Bottleneck adapters (Houlsby 2019, Pfeiffer 2021): y + scale * (U act(D y + d) + u), U = 0 at the start."""

    width: int = Field(default=16, ge=1, le=8192, description=_WIDTH)
    placement: Literal["houlsby", "pfeiffer"] = Field(
        default="houlsby",
        description="`houlsby`: on the outputs of attention and feed-forward, before the residual is added; "
        "`pfeiffer`: on the feed-forward's only.",
    )
    activation: Activation = Field(default="relu", description=_BETWEEN)
    scale: float = Field(default=1.0, gt=0, description="Fixed factor of the adapter.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description=_DROPOUT)


class Parallel(MethodSection):
    """Parallel adapters (He 2022): FFN(x) + scale * (U act(D x + d) + u), U = 0 at the start."""

    width: int = Field(default=16, ge=1, le=8192, description=_WIDTH)
    activation: Activation = Field(default="relu", description=_BETWEEN)
    scale: float = Field(default=4.0, gt=0, description="Fixed factor of the adapter; the paper's 4.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description=_DROPOUT)


class Compacter(MethodSection):
    """Compacter (Mahabadi 2021): houlsby's bottlenecks whose matrices are sums of Kronecker products."""

    width: int = Field(default=16, ge=1, le=8192, description=_WIDTH)
    terms: int = Field(
        default=4, ge=1, le=64, description="Kronecker products a matrix; divides the width and the model's."
    )
    rank: int = Field(default=1, ge=1, le=64, description="Of the second factor of each product.")
    activation: Activation = Field(default="gelu", description=_BETWEEN)


class Hypernetwork(MethodSection):
    """Hypernetwork adapters (Mahabadi 2021b): one network makes houlsby's bottlenecks of all layers."""

    width: int = Field(default=16, ge=1, le=8192, description=_WIDTH)
    embedding: int = Field(
        default=8, ge=1, le=1024, description="Width of the embeddings of layer, place and task, and of their mixture."
    )
    activation: Activation = Field(default="relu", description=_BETWEEN)


class Fusion(MethodSection):
    """AdapterFusion (Pfeiffer 2021): attention over pfeiffer bottlenecks of earlier runs, named in base.adapters."""

    tasks: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")], ...] = Field(
        default=("one", "two"), min_length=2, description="Their names; the folders are in base.adapters."
    )
    width: int = Field(default=16, ge=1, le=8192, description="Of their bottlenecks.")
    activation: Activation = Field(default="relu", description="Of their bottlenecks.")
    scale: float = Field(default=1.0, gt=0, description="Of their bottlenecks.")


class Unipelt(MethodSection):
    """UniPELT (Mao 2022): LoRA on q and v, a prefix, and a bottleneck after the feed-forward, each behind a gate."""

    rank: int = Field(default=8, ge=1, le=1024, description="Of LoRA.")
    scale: float = Field(default=1.0, gt=0, description="The factor of B A before its gate.")
    length: int = Field(default=10, ge=1, le=1024, description="Prefix positions of each layer.")
    width: int = Field(default=16, ge=1, le=8192, description=_WIDTH)
    activation: Activation = Field(default="relu", description=_BETWEEN)


class Coda(MethodSection):
    """CoDA (Lei 2023): the tokens that a router picks go through the layer; all go through a bottleneck beside it."""

    capacity: float = Field(default=0.5, gt=0, le=1, description="Share of an example's tokens that are picked.")
    width: int = Field(default=16, ge=1, le=8192, description=_WIDTH)
    activation: Activation = Field(default="relu", description=_BETWEEN)
