"""One way to train on a device, and what it takes in bytes, operations and traffic: counting only.

Counts follow the training loop (``fedpeft.tuning``): no gradient below the lowest adapted layer, the last
layer of a first-token classifier computes one token, a cache stands for the frozen layers below. What
autograd keeps is exact in float counts; tests compare it with ``saved_tensors_hooks``.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fedpeft.catalogue import BY_NAME, TIERED
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.config.model import Adapter
from fedpeft.ids import BlockId
from fedpeft.methods import blocks_for
from fedpeft.planner.placement import adapted_layers, placed_methods, spec_of

__all__ = [
    "Workload",
    "evaluation_batch",
    "forward_share",
    "gradient_layers",
    "kept_floats",
    "passes_of",
    "step_flops",
    "tokens_of",
    "trained_blocks",
]

EVALUATION_BATCH, EVALUATION_TOKENS, EVALUATION_LOGIT_BYTES = 16, 8192, 128 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a device would train, and how.

    Args:
        adapter: the run's; all of it is applied.
        methods, rank, head: what of it is trained (``blocks_for``).
        classes: of the task; 0 for a language model.
        batch_size, length: examples per step, tokens per example with padding.
        local_steps: steps a round.
        eval_examples: held-out examples per round.
        residency: whether the base is unpacked once (``dense``) or at each use.
        cached_examples: whose activations below the first adapted layer are kept; 0: no cache.
        checkpointing: whether the layers that adapt are computed again in the backward pass.
        micro_batch: examples of a step in memory at once; 0: all.
    """

    adapter: Adapter
    methods: tuple[str, ...]
    rank: int | None = None
    head: bool = True
    classes: int
    batch_size: int = 32
    length: int = 128
    local_steps: int = 12
    eval_examples: int = 0
    residency: Literal["dense", "quantized"] = "dense"
    cached_examples: int = 0
    checkpointing: bool = False
    micro_batch: int = 0

    @property
    def at_once(self) -> int:
        """Examples of a step that are in memory together."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    def __str__(self) -> str:
        parts = [f"{method} r{self.rank}" if method in TIERED and self.rank else method for method in self.methods]
        return " + ".join([*parts, *(["head"] if self.head and self.classes else [])]) or "nothing"


def evaluation_batch(*, length: int, vocabulary: int) -> int:
    """Examples that an evaluation takes at once: 16 short ones, fewer the longer they are.

    A language model's logits are the widest thing it computes: two copies of them stay below 128 MiB.

    Args:
        length: tokens an example may have.
        vocabulary: of a language model; 0 for a classifier.

    Example:
        >>> evaluation_batch(length=64, vocabulary=0), evaluation_batch(length=128, vocabulary=49152)
        (16, 2)
    """
    fitting = EVALUATION_TOKENS // length
    if vocabulary:
        fitting = min(fitting, EVALUATION_LOGIT_BYTES // (8 * length * vocabulary))
    return max(1, min(EVALUATION_BATCH, fitting))


def trained_blocks(shape: BaseShape, workload: Workload) -> tuple[BlockId, ...]:
    """The blocks that the workload trains.

    Raises:
        ConfigInvalid: none, or a method or tier that the adapter does not have.
    """
    spec = spec_of(shape, workload.adapter, classes=workload.classes)
    return blocks_for(spec, methods=workload.methods, rank=workload.rank, head=workload.head)


def kept_floats(shape: BaseShape, workload: Workload) -> tuple[float, float]:
    """Floats a token that autograd keeps: of the base's layers, and of the trained methods."""
    layers = gradient_layers(shape, workload)
    if not layers:
        return 0.0, 0.0
    full, last = (layers - 1, 1) if _first_token(shape, workload) else (layers, 0)
    layer = shape.kept_floats(tokens_of(shape, workload))
    methods, tokens = 0.0, workload.at_once * tokens_of(shape, workload)
    placed = placed_methods(shape, workload.adapter)
    for method in workload.methods:
        one = placed[method]
        top = last * int(one.stop == shape.layers)
        methods += one.saved + top * (one.last.saved_first_token - one.last.saved) + one.kept / tokens
    if workload.checkpointing:  # the inputs of all layers, and one layer at a time in full
        return float(layers * shape.hidden + layer), methods / layers
    return full * layer + last * 2 * shape.key_width, float(methods)


def passes_of(shape: BaseShape, workload: Workload) -> tuple[int, int]:
    """How many layers a step computes forward, and how many backward."""
    adapted = adapted_layers(shape, workload.adapter)
    forward = adapted if workload.cached_examples else shape.layers
    return shape.passes * forward, shape.passes * gradient_layers(shape, workload)


def gradient_layers(shape: BaseShape, workload: Workload) -> int:
    """How many layers have a backward pass."""
    return adapted_layers(shape, workload.adapter) if workload.methods else 0


def step_flops(shape: BaseShape, workload: Workload) -> tuple[float, float]:
    """Operations a token of the forward and of the backward pass."""
    forward_layers, backward_layers = passes_of(shape, workload)
    placed = placed_methods(shape, workload.adapter)
    methods = float(sum(one.flops for one in placed.values()))
    dense, attention = 2.0 * shape.matrix_parameters, 4.0 * tokens_of(shape, workload) * shape.hidden
    keys = 4.0 * shape.key_width * shape.hidden
    head = 0.0 if workload.classes else 2.0 * shape.vocabulary * shape.hidden
    forward = (dense + attention) * forward_layers + methods + head
    # Attention's backward pass recomputes the scores; the lowest layer needs no gradient of its input.
    backward = (dense + 2.5 * attention) * backward_layers + (1.5 * methods + head) * bool(backward_layers)
    if backward_layers:
        backward -= 2.0 * shape.hidden * (shape.hidden + 2 * shape.key_width)
    if workload.checkpointing:
        backward += (dense + attention) * backward_layers + methods * bool(backward_layers)
    if _first_token(shape, workload):
        forward -= (dense + attention - keys) * bool(forward_layers)
        backward -= (dense + 2.5 * attention - keys) * bool(backward_layers)
    return forward, max(0.0, backward)


def tokens_of(shape: BaseShape, workload: Workload) -> int:
    """Tokens of an example, with those that a prompt adds."""
    return workload.length + sum(one.tokens for one in placed_methods(shape, workload.adapter).values())


def forward_share(shape: BaseShape, workload: Workload) -> float:
    """The part of a step that an evaluation of as many examples takes."""
    forward, backward = step_flops(shape, replace(workload, cached_examples=0))
    return forward / (forward + backward)


def _first_token(shape: BaseShape, workload: Workload) -> bool:
    # A router picks the tokens of the last layer itself.
    placed = placed_methods(shape, workload.adapter).items()
    routed = any(BY_NAME[name].picks_tokens and one.stop == shape.layers for name, one in placed)
    return workload.classes > 0 and shape.first_token_only and not routed
