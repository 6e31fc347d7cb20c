"""The learning rate of each block: what run.toml says, or what ``learning_rate = "auto"`` is for it.

A function of the plan and the adapter's specification alone, so coordinator and devices have the same rates without a
message, and a plan binds them (docs/adr/0010-bound-work.md, 0019-learning-rates.md); times what the run has measured,
which is in the signed work (``fedpeft.round.rates.search``).
"""

from collections.abc import Collection

from fedpeft.adapter import AdapterSpec
from fedpeft.adapter.spec import BlockSpec
from fedpeft.aggregate.factors import factor_of
from fedpeft.aggregate.head_start import HEAD_BLOCK
from fedpeft.catalogue import BY_NAME
from fedpeft.catalogue.lora import Lora
from fedpeft.catalogue.rates import UNMEASURED, Placed, head_rate
from fedpeft.ids import BlockId
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates.search import why_not_measured

__all__ = ["SGD_FACTOR", "learning_rates", "rates_told"]

SGD_FACTOR = 100.0
"""By how much SGD's rates are above AdamW's: 3.9 to 0.035 at rank 8 and 20 to 0.18 at rank 1, on one language model."""


def learning_rates(
    plan: LearningPlan, adapter: AdapterSpec, blocks: Collection[BlockId], *, scale: float = 0.0
) -> dict[BlockId, float]:
    """The learning rate of each of these blocks: its method's own, the run's, or the one that suits it.

    Args:
        plan: of the run.
        adapter: its specification, on the run's base.
        blocks: some of ``adapter``'s.
        scale: what a run that measures its rate has found: the table's rates are multiplied by it, but the head's;
            0: nothing yet.
    """
    return {block_id: _rate(plan, adapter, block_id, scale or 1.0) for block_id in sorted(blocks)}


def rates_told(plan: LearningPlan, adapter: AdapterSpec) -> str:
    """The rates that a run trains with, in a line: blocks of one method and rate together.

    Example: ``learning rates: head 0.03, lora.B 0.00621``.
    """
    lora = plan.adapter.of(Lora)
    summed_once = lora is not None and lora.train == "B"  # A of a gradient start
    trained = [b for b in (one.block_id for one in adapter.blocks if one.trainable) if not (summed_once and _is_a(b))]
    told: dict[tuple[str, str], None] = {}
    for block_id, rate in learning_rates(plan, adapter, trained).items():
        name = block_id.rpartition(".")[0] if block_id.startswith("lora.") else block_id
        told.setdefault((name, f"{rate:.3g}"), None)
    rates = "learning rates: " + ", ".join(f"{name} {rate}" for name, rate in told)
    if plan.train.learning_rate != "measured":
        return rates
    why = why_not_measured(plan, adapter)
    return f"{rates}; not measured: {why}" if why else f"{rates}; to begin with: the run measures what suits it"


def _is_a(block_id: BlockId) -> bool:
    return factor_of(block_id) == "A"


def _rate(plan: LearningPlan, adapter: AdapterSpec, block_id: BlockId, scale: float) -> float:
    method, given = block_id.split(".")[0], plan.train.learning_rate
    own: float | None = (
        plan.adapter.head_learning_rate if method == HEAD_BLOCK else getattr(plan.adapter, method).learning_rate
    )
    if own is not None:
        return own
    if not isinstance(given, str):
        return given
    sgd = plan.train.optimizer == "sgd"
    if plan.privacy is not None and not sgd:
        return UNMEASURED  # AdamW's steps are as long where a gradient is mostly noise: nobody measured what suits it
    adamw = _suited(plan, adapter[block_id]) * (1.0 if method == HEAD_BLOCK else scale)
    return SGD_FACTOR * adamw if sgd else adamw


def _suited(plan: LearningPlan, block: BlockSpec) -> float:
    method = block.block_id.split(".")[0]
    if method == HEAD_BLOCK:
        return head_rate(measured=plan.adapter.head_start == "class-means")
    rule = BY_NAME[method].rate
    if rule is None:
        return UNMEASURED
    placed = Placed(block=block, language_model=plan.task.record.writes)
    return rule(getattr(plan.adapter, method), placed)
