"""When a run measures its class head instead of training it, and where in the head that goes. No torch.

With ``adapter.head_start = "class-means"`` round 1 trains nothing: devices sum class means into the head's block
(``fedpeft.tuning.class_means``), the coordinator makes the head of the sum (``fedpeft.aggregate.between``).
"""

from fedpeft.adapter.spec import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.config.adapter import Adapter
from fedpeft.ids import BlockId

__all__ = ["HEAD_BLOCK", "classifier_of", "measures_head", "method_round"]

HEAD_BLOCK = BlockId("head")


def measures_head(spec: AdapterSpec, adapter: Adapter, round_id: int) -> bool:
    """Whether this round measures the head's class means and trains nothing: the first, where the run asks for it."""
    return round_id == 1 and _has_means(spec, adapter)


def method_round(spec: AdapterSpec, adapter: Adapter, round_id: int) -> int:
    """The round as the methods' own schedules count: from the first that trains; 0 while the head is measured."""
    return round_id - _has_means(spec, adapter)


def classifier_of(head: BlockSpec) -> TensorSpec:
    """The head's matrix with one row a class: its last one; there may be dense layers before it."""
    return next(tensor for tensor in reversed(head.tensors) if len(tensor.shape) == 2)


def _has_means(spec: AdapterSpec, adapter: Adapter) -> bool:
    head = any(block.block_id == HEAD_BLOCK for block in spec.blocks)  # a language model has none
    return head and adapter.head_start == "class-means"
