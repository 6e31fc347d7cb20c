"""[adapter] in run.toml: the union adapter, and one section for each PEFT method.

To add a method: its section, its name in ``MethodName``, its field in ``Adapter``; then ``fedpeft.methods``.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedpeft.config.additive import Bottleneck, Coda, Compacter, Fusion, Hypernetwork, Parallel, Unipelt
from fedpeft.config.method import MethodSection
from fedpeft.config.prompts import LlamaAdapter, Prefix, Prompt, PTuning, PTuningV2
from fedpeft.config.reparameterized import AdaLora, Dora, DyLora, QaLora, ReLora, Vera
from fedpeft.config.section import Section, TargetName
from fedpeft.config.selective import DiffPruning, Fish

__all__ = [
    "AdaLora",
    "Adapter",
    "BitFit",
    "Bottleneck",
    "DiffPruning",
    "Dora",
    "DyLora",
    "Fish",
    "Ia3",
    "LayerNorm",
    "Lora",
    "MethodName",
    "QaLora",
    "ReLora",
    "Vera",
]

MethodName = Literal[
    "lora",
    "dora",
    "adalora",
    "dylora",
    "relora",
    "qalora",
    "vera",
    "diffpruning",
    "fish",
    "bitfit",
    "layernorm",
    "ia3",
    "bottleneck",
    "parallel",
    "compacter",
    "hypernetwork",
    "fusion",
    "prompt",
    "p_tuning",
    "prefix",
    "p_tuning_v2",
    "llama_adapter",
    "unipelt",
    "coda",
]


class Lora(MethodSection):
    """LoRA (Hu 2021) as column tiers: a device of rank r trains the tiers up to r (DESIGN section 3)."""

    rank: int = Field(default=8, ge=1, le=1024, description="The full rank, of devices that can afford it.")
    tiers: tuple[int, ...] = Field(
        default=(),
        description="Ranks at which a device may stop, ascending, ending in `rank`; empty: powers of two from 2.",
    )
    targets: tuple[TargetName, ...] = Field(
        default=("q", "v"),
        description="Attention (q, k, v, o) and the MLP (up, down, gate); mapped to the model's own names.",
    )
    scale: float = Field(default=2.0, gt=0, description="The factor of B A, the same for every device.")
    scaling: Literal["fixed", "rslora"] = Field(
        default="fixed",
        description="`fixed`: dW = scale * B A. `rslora` (Kalajdzievski 2023): dW = scale / sqrt(rank) * B A, with the "
        "full rank, also on devices that train a lower tier.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a matrix's inputs that A does not see in a training step, drawn anew for each.",
    )
    init: Literal["orthonormal", "gaussian"] = Field(
        default="orthonormal", description="How the frozen A begins; B begins at zero."
    )
    train: Literal["B", "both"] = Field(
        default="B",
        description="`B`: A stays as it begins, so sums are exact for any mix of ranks. `both`: rounds may train A, "
        "as aggregate.rule says.",
    )
    carried_rank: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Columns of a carried adapter that devices apply and the coordinator alone changes, for rules that "
        "fold: aggregate.fold_every, flora, fedex.",
    )


class BitFit(MethodSection):
    """BitFit (Ben Zaken 2022): a delta on every bias of the chosen layers."""


class LayerNorm(MethodSection):
    """LayerNorm tuning (Zhao 2024): a delta on every norm's gain, and on its bias unless [adapter.bitfit] has it."""


class Ia3(MethodSection):
    """IA3 (Liu 2022): rescales keys, values and the MLP's inner activations; stored as a delta on one."""


class Adapter(Section):
    """The union adapter: every block that any device may train. A method that is absent does not exist in this run."""

    layers: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default="all", description="`all`, or how many of the top layers carry adapters."
    )
    lora: Lora | None = None
    dora: Dora | None = None
    adalora: AdaLora | None = None
    dylora: DyLora | None = None
    relora: ReLora | None = None
    qalora: QaLora | None = None
    vera: Vera | None = None
    diffpruning: DiffPruning | None = None
    fish: Fish | None = None
    bitfit: BitFit | None = None
    layernorm: LayerNorm | None = None
    ia3: Ia3 | None = None
    bottleneck: Bottleneck | None = None
    parallel: Parallel | None = None
    compacter: Compacter | None = None
    hypernetwork: Hypernetwork | None = None
    fusion: Fusion | None = None
    prompt: Prompt | None = None
    p_tuning: PTuning | None = None
    prefix: Prefix | None = None
    p_tuning_v2: PTuningV2 | None = None
    llama_adapter: LlamaAdapter | None = None
    unipelt: Unipelt | None = None
    coda: Coda | None = None
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the adapter's values on the devices, whatever the base is stored in; the class head stays "
        "float32, and so do sums and the coordinator's state.",
    )
    head: bool = Field(default=True, description="Train the class head; ignored for causal-lm.")
    head_start: Literal["auto", "class-means", "seed"] = Field(
        default="auto",
        description="`seed`: a small random head. `class-means`: round 1 trains nothing and sums what the base makes "
        "of each class's examples; the head starts from these means (Legate 2023). Not under privacy. `auto`: class "
        "means where there are more classes than train.batch_size, so that no batch shows them all.",
    )
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="Overrides train.learning_rate for the head."
    )
