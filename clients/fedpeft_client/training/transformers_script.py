"""transformers' ``Trainer`` as the part of a device that takes the steps.

Its data, collator, loss, batch size, precision and callbacks are the script's; the model is the federation's base with
the run's adapter, and what is trained of it, for how many steps, follows from the run.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedpeft.data import EncodedDataset
from fedpeft.errors import ConfigInvalid, DataInvalid, PolicyRefused, RunFailed
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.methods import UnionAdapter
from fedpeft.round.plan import LearningPlan
from fedpeft.tuning import LocalPlan
from fedpeft.tuning.train import make_optimizer
from fedpeft_client.training.fused_head import fused_head
from fedpeft_client.training.lent_model import left_as_found

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["Recipe", "TransformersScript"]

Recipe = Literal["run", "script"]
TASKS = ("classify", "causal-lm")
SAME = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
"""Of config.json: what the script's model and the run's base must agree in."""


class TransformersScript:
    """Implements ``Script``.

    Args:
        trainer: of transformers, or a subclass; its model is replaced.
        labels: the class names by their numbers in the script; None: as the model's ``id2label`` says.
        recipe: whose optimizer, learning rates, weight decay and clipping of gradients the steps have.

    Raises:
        ConfigInvalid: it has no examples that can be counted.
    """

    def __init__(self, trainer: "Trainer", *, labels: Sequence[str] | None, recipe: Recipe) -> None:
        if not hasattr(trainer.train_dataset, "__len__"):
            raise ConfigInvalid("Expected a Trainer whose train_dataset has a length, found none or a stream.")
        if getattr(trainer, "model_init", None) is not None:
            raise ConfigInvalid(
                "Expected a Trainer with a model, found one with model_init, which would make another model in each "
                "round; pass model=... instead."
            )
        if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
            raise ConfigInvalid(
                f"Expected a Trainer on one processor, found {trainer.args.world_size} processes and "
                f"{trainer.args.n_gpu} GPUs; set CUDA_VISIBLE_DEVICES to one, and start it without torchrun."
            )
        if trainer.args.auto_find_batch_size:
            raise ConfigInvalid(
                "Expected a Trainer with a fixed batch size, found auto_find_batch_size, which would begin a round's "
                "steps anew on a model that has moved; set it to False."
            )
        held_out = trainer.eval_dataset
        if held_out is not None and (isinstance(held_out, dict) or not hasattr(held_out, "__len__")):
            raise ConfigInvalid(
                "Expected an eval_dataset that is one data set with a length, or None, found a dict or a stream; "
                "pass the one that the federation is to hear of."
            )
        if recipe == "script" and trainer.optimizer is not None:
            raise ConfigInvalid(
                'Expected a Trainer that makes its own optimizer for recipe = "script", found one over the parameters '
                "of another model; pass optimizer_cls_and_kwargs instead of optimizers."
            )
        self._vocabulary = _vocabulary_of(trainer)
        self._trainer: Any = trainer
        self._config: Mapping[str, object] = trainer.model.config.to_dict()
        self._labels = _named(self._config) if labels is None else tuple(labels)
        self._recipe = recipe

    def expect(self, plan: LearningPlan) -> None:
        """See ``Script``."""
        declared = plan.adapter.declared()
        measuring = ", ".join(method.name for method, _ in declared if method.measures)
        dropping = ", ".join(f"{method.name}.dropout" for method, own in declared if getattr(own, "dropout", 0.0) > 0)
        wrong = {
            "example-level privacy: nobody has shown that a Trainer's steps keep its promise": plan.privacy is not None,
            f"the task {plan.task.kind}: of tasks {' and '.join(TASKS)} are known here": plan.task.kind not in TASKS,
            f"{measuring}: it takes part in each step of fedpeft's own loop": measuring,
            f"{dropping}, which fedpeft's own loop draws in each step": dropping,
            "train.scaffold, which changes gradients": plan.train.scaffold,
            "train.label_calibration, which changes the loss": plan.train.label_calibration > 0,
            "train.proximal_mu, which changes gradients": plan.train.proximal_mu > 0,
            "adapter.dtype = bfloat16, whose master weights a Trainer does not know": plan.adapter.dtype != "float32",
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise PolicyRefused(f"Expected a run that an attached Trainer can train, found one with {what}.")
        if plan.task.record.one_class and self._labels != tuple(plan.task.labels):
            raise PolicyRefused(
                f"Expected the classes of the run, {_listed(plan.task.labels)}, in this order, found "
                f"{_listed(self._labels)} in the script; give attach(trainer, labels=[...]) if names differ but the "
                "order does not."
            )

    def expect_base(self, config: Mapping[str, object]) -> None:
        """See ``Script``."""
        for key in SAME:
            own, found = _setting(self._config, key), _setting(config, key)
            if own != found:
                raise PolicyRefused(f"Expected a run of the script's model with {key} = {own}, found {found}.")

    def expect_vocabulary(self, vocabulary: Mapping[str, int]) -> None:
        """See ``Script``."""
        own = self._vocabulary
        if own != dict(vocabulary):
            other = sorted({token for token, _ in own.items() ^ vocabulary.items()})
            raise PolicyRefused(
                f"Expected a run whose base has the tokenizer of the script's Trainer, found one that numbers "
                f"{len(other)} tokens otherwise, such as {_listed([repr(token) for token in other[:3]])}; load the "
                "tokenizer of the federation's base."
            )

    def sizes(self) -> tuple[int, int]:
        """See ``Script``."""
        held_out = self._trainer.eval_dataset
        return len(self._trainer.train_dataset), 0 if held_out is None else len(held_out)

    def tokens(self, plan: LearningPlan) -> tuple[EncodedDataset, EncodedDataset]:
        """See ``Script``: each row through the script's own collator."""
        trainer = self._trainer
        held_out = () if trainer.eval_dataset is None else trainer.eval_dataset
        return self._encoded(trainer.train_dataset, plan), self._encoded(held_out, plan)

    def take_steps(self, union: UnionAdapter, plan: LocalPlan, *, seed: int) -> tuple[float, int]:
        """See ``Script``."""
        from transformers import EarlyStoppingCallback, set_seed

        trainer = self._trainer
        union.train_only(plan.learning_rates.keys())
        _expect_no_hooks(union)
        trainer.args = _for_a_round(trainer.args, plan, seed, recipe=self._recipe)
        placed = next(union.model.parameters()).device.type
        if trainer.args.device.type != placed:
            raise RunFailed(
                f"Expected the Trainer on {placed}, as limits.accelerator says, found {trainer.args.device}."
            )
        trainer.model = trainer.model_wrapped = union.model
        trainer.optimizer = trainer.lr_scheduler = None
        trainer._created_lr_scheduler = False
        if self._recipe == "run":
            blocks = {
                block.block_id: list(union.parameters(block.block_id).values())
                for block in union.spec.blocks
                if block.block_id in plan.learning_rates
            }
            trainer.optimizer = make_optimizer(blocks, plan)
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1.0)
        # The sampler takes its seed from here, and else one order for every round: that of the Trainer's making.
        trainer.accelerator.dataloader_config.data_seed = trainer.args.data_seed
        set_seed(trainer.args.seed)  # of what the script draws, such as masks
        stopping = trainer.pop_callback(EarlyStoppingCallback)  # it insists on evaluations; the run has its patience
        counted = _Counted(trainer.training_step)
        trainer.training_step = counted
        try:
            with left_as_found(union.model), fused_head(union.model):
                outcome = trainer.train()
        finally:
            del trainer.training_step  # the class's own again
            if stopping is not None:
                trainer.add_callback(stopping)
            trainer.optimizer = trainer.lr_scheduler = None
            union.model.eval()
            union.train_only(())
        if trainer.model is not union.model:
            raise RunFailed("Expected the Trainer to train the federation's model, found that it made another one.")
        steps, loss = int(outcome.global_step), float(outcome.training_loss)
        if steps != plan.steps or not np.isfinite(loss):
            raise RunFailed(f"Expected {plan.steps} steps with a finite loss, found {steps} and {loss}.")
        return loss * counted.examples, counted.examples

    def _encoded(self, rows: Any, plan: LearningPlan) -> EncodedDataset:
        """Rows as tokens, without padding."""
        ids: list[npt.NDArray[np.int32]] = []
        labels: list[npt.NDArray[np.int64]] = []
        segments: list[npt.NDArray[np.int32]] = []
        collator = self._trainer._get_collator_with_removed_columns(self._trainer.data_collator)
        for index in range(len(rows)):
            batch = {key: np.asarray(value)[0] for key, value in collator([rows[index]]).items()}
            if not {"input_ids", "labels"} <= batch.keys():
                raise DataInvalid(
                    f"Expected a Trainer whose batches have input_ids and labels, found {', '.join(sorted(batch))}; "
                    "trainers of preferences, rewards or generated answers cannot be attached."
                )
            shown = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"])), bool)
            ids.append(batch["input_ids"][shown].astype(np.int32))
            segments.append(np.asarray(batch.get("token_type_ids", np.zeros_like(shown)))[shown].astype(np.int32))
            one = np.asarray(batch["labels"], np.int64)
            labels.append(one if one.ndim == 0 else one[shown])
        of_classes = plan.task.record.one_class
        return EncodedDataset(
            input_ids=tuple(ids),
            labels=np.array(labels, np.int64) if of_classes else tuple(labels),
            truncated=0,
            segments=tuple(segments) if any(one.any() for one in segments) else None,
        )


class _Counted:
    """A Trainer's step that counts its examples: the last batch of an epoch holds fewer than the others."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._step, self.examples = step, 0

    def __call__(self, model: Any, inputs: Mapping[str, Any], *more: Any, **named: Any) -> Any:
        self.examples += len(inputs["input_ids"])
        return self._step(model, inputs, *more, **named)


def _expect_no_hooks(union: UnionAdapter) -> None:
    acting = {
        type(part).__name__
        for part in union.model.modules()
        if isinstance(part, SteppedPart) and part.acts and any(own.requires_grad for own in part.parameters())
    }
    if acting:
        raise RunFailed(
            f"Expected an adapter that takes no part in the steps beyond its forward pass, found {', '.join(acting)}."
        )


def _vocabulary_of(trainer: Any) -> Mapping[str, int]:
    """The number of each token in the script."""
    processing = getattr(trainer, "processing_class", None)
    tokenizer: Any = getattr(processing, "tokenizer", processing)  # of a processor for several kinds of input
    if not hasattr(tokenizer, "get_vocab"):
        raise ConfigInvalid(
            "Expected a Trainer that knows its tokenizer, which is compared with that of each run's base, found none; "
            "pass processing_class=tokenizer."
        )
    return dict(tokenizer.get_vocab())


def _setting(config: Mapping[str, object], key: str) -> object:
    """Of config.json, by its general name; architectures have names of their own, such as DistilBERT's dim."""
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return config.get(key)
    of_kind = CONFIG_MAPPING[kind]
    return config.get(of_kind.attribute_map.get(key, key), config.get(key, getattr(of_kind(), key, None)))


def _for_a_round(args: Any, plan: LocalPlan, seed: int, *, recipe: Recipe) -> Any:
    """The script's arguments, for so many steps; nothing is saved, evaluated or pushed between them."""
    own = copy.copy(args)
    own.max_steps, own.seed, own.data_seed = plan.steps, seed % 2**32, seed % 2**32
    own.save_strategy = own.eval_strategy = "no"
    own.load_best_model_at_end = own.push_to_hub = own.do_eval = own.eval_on_start = own.gradient_checkpointing = False
    if recipe == "run":
        own.max_grad_norm = plan.max_grad_norm
    return own


def _named(config: Mapping[str, object]) -> tuple[str, ...]:
    """The class names that a model's configuration gives; transformers' own stand-ins among them."""
    names = config.get("id2label")
    return tuple(str(names[key]) for key in sorted(names, key=int)) if isinstance(names, Mapping) else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "none"
