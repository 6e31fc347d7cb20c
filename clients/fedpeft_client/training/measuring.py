"""What a device measures of the state that it received, on its held-out examples."""

from typing import TYPE_CHECKING, cast

from fedpeft.round.device.draws import example_weights
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work
from fedpeft.tuning import Evaluation, evaluate
from fedpeft.tuning.generation.scores import with_answers
from fedpeft_client.training.examples import Prepared
from fedpeft_client.training.model_pool import ModelPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedpeft.methods import UnionAdapter

__all__ = ["NOTHING_GENERATED", "measured_state"]

NOTHING_GENERATED = (
    "Expected held-out examples with a prompt and an answer that fit task.max_length, found none: task.generate "
    "measures nothing on this device."
)


def measured_state(
    union: "UnionAdapter", plan: LearningPlan, work: Work, examples: Prepared, pool: ModelPool
) -> tuple[Evaluation, tuple[str, ...]]:
    """Loss, accuracy and the task's own lanes; and what could not be measured.

    Args:
        union: as received; not changed.
        plan: of the run; without example-level privacy, under which a loss would be a release.
        work: how many examples, and what weighs each.
        examples: held-out ones among them.
        pool: that of the union.
    """
    held_out, task = examples.held_out, plan.task
    weights = example_weights(work.draws, held_out.input_ids)
    measured = evaluate(
        union,
        held_out,
        limit=work.eval_examples,
        batch_size=examples.eval_batch,
        cache=examples.eval_cache,
        measure=task.output_measure,
        weights=weights,
    )
    if task.generation is None or plan.client_privacy is not None:  # nothing of it would leave
        return measured, ()
    tokenizer = cast("PreTrainedTokenizerBase", pool.tokenizer(plan))
    scored = with_answers(measured, union.model, tokenizer, held_out, task, weights=weights, tokenizing=pool.tokenizing)
    generated = scored.lanes is not None and scored.lanes.any()
    return scored, () if generated else (NOTHING_GENERATED,)
