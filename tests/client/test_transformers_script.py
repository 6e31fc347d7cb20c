"""A transformers Trainer that takes a round's steps: fedpeft's own where the recipe is the same."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.config.model import Adapter, Aggregate, Lora, SecureAggregation, Task, Train
from fedpeft.data import EncodedDataset
from fedpeft.errors import ConfigInvalid, PolicyRefused, RunFailed
from fedpeft.methods import UnionAdapter, attach
from fedpeft.round.plan import ExampleTerms, LearningPlan, PlannedRounds
from fedpeft.testing.models import WORDS, tiny_bert, tiny_tokenizer
from fedpeft.tuning import LocalPlan, train

pytestmark = pytest.mark.torch

NAMES = {0: "a", 1: "b"}
ROWS: list[Mapping[str, Any]] = [
    {"input_ids": [2, *range(5 + i, 8 + i + i % 3), 3], "labels": i % 2, "attention_mask": [1] * (5 + i % 3)}
    for i in range(12)
]


def padded(rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The script's own collator."""
    width = max(len(row["input_ids"]) for row in rows)
    return {
        key: torch.tensor([[*row[key], *[0] * (width - len(row[key]))] for row in rows])
        for key in ("input_ids", "attention_mask")
    } | {"labels": torch.tensor([row["labels"] for row in rows])}


def script_of(
    tmp_path: Path, *, batch: int = 12, names: Mapping[int, str] = NAMES, bf16: bool = False, **more: Any
) -> Any:
    from transformers import Trainer, TrainingArguments

    from fedpeft_client.training.transformers_script import TransformersScript

    model = tiny_bert(layers=2, classes=2)
    model.config.id2label = dict(names)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=bf16,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        data_collator=padded,
        processing_class=tiny_tokenizer(),
    )
    return TransformersScript(trainer, **{"labels": None, "recipe": "run", **more})


def run_plan(**changes: Any) -> LearningPlan:
    return LearningPlan(
        run_id="run",
        seed=0,
        base="sha256:b",
        adapter_spec="",
        task=Task(kind="classify", labels=("a", "b"), max_length=16),
        adapter=Adapter(lora=Lora(rank=4)),
        train=Train(local_steps=3, batch_size=12),
        aggregate=Aggregate(),
        rounds=PlannedRounds(count=1, eval_examples=4),
        secagg=SecureAggregation(),
    ).model_copy(update=changes)


def grafted() -> UnionAdapter:
    return attach(tiny_bert(layers=2, classes=2), Adapter(lora=Lora(rank=4)), seed=1)


def steps_of(union: UnionAdapter, optimizer: str = "adamw", steps: int = 3) -> LocalPlan:
    return LocalPlan(
        steps=steps,
        batch_size=12,
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rates={b.block_id: 0.01 * (1 + i) for i, b in enumerate(union.spec.blocks) if b.trainable},
        weight_decay=0.01,
        max_grad_norm=0.5,
    )


def values_of(union: UnionAdapter) -> bytes:
    return b"".join(vector.tobytes() for vector in union.state().vectors.values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_its_steps_are_fedpefts_own_within_rounding(tmp_path: Path, optimizer: str) -> None:
    torch.set_num_threads(1)
    ours, theirs = grafted(), grafted()
    script, plan = script_of(tmp_path), steps_of(ours, optimizer)
    examples, held_out = script.tokens(run_plan())
    assert isinstance(examples, EncodedDataset)
    assert (len(examples), len(held_out)) == (12, 4)
    before = ours.state()
    outcome = train(ours, examples, plan, seed=5)
    loss_sum, seen = script.take_steps(theirs, plan, seed=5)
    assert loss_sum / seen == pytest.approx(outcome.mean_loss, rel=1e-5)
    assert seen == outcome.examples_seen == 36
    for block in ours.spec.blocks:
        moved = ours.state()[block.block_id] - before[block.block_id]
        found = theirs.state()[block.block_id] - before[block.block_id]
        assert np.abs(moved).max() > 1e-3 or not block.trainable
        np.testing.assert_allclose(found, moved, atol=1e-5)


def test_a_second_round_begins_where_it_is_told_with_a_fresh_optimizer_and_another_order(tmp_path: Path) -> None:
    union = grafted()
    script, plan, start = script_of(tmp_path, batch=3), steps_of(union, steps=2), union.state()
    ends = []
    for seed in (5, 5, 6):
        union.load(start)
        script.take_steps(union, plan, seed=seed)
        ends.append(values_of(union))
    assert ends[0] == ends[1] != ends[2]
    assert not any(parameter.requires_grad for parameter in union.model.parameters())
    assert not union.model.training
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_examples_are_counted_as_they_were_seen_where_the_last_batch_is_smaller(tmp_path: Path) -> None:
    union = grafted()
    script = script_of(tmp_path, batch=5)
    assert [script.take_steps(union, steps_of(union, steps=steps), seed=5)[1] for steps in (3, 2, 4)] == [12, 10, 17]


def test_the_scripts_recipe_is_its_own_optimizer_and_rate(tmp_path: Path) -> None:
    union, other = grafted(), grafted()
    script = script_of(tmp_path, recipe="script")
    script._trainer.args.learning_rate = 0.0
    before = values_of(union)
    script.take_steps(union, steps_of(union), seed=5)
    assert values_of(union) == before
    script._trainer.args.learning_rate = 0.1
    script.take_steps(other, steps_of(other), seed=5)
    assert values_of(other) != before


TERMS = ExampleTerms(epsilon=1.0, delta=1e-5, l2_clip_norm=1.0, noise_multiplier=None, steps=3)
REFUSED = {
    "example-level privacy": {"privacy": TERMS},
    "the task regression": {"task": Task(kind="regression")},
    "train.scaffold": {"train": Train(scaffold=True, optimizer="sgd")},
    "train.label_calibration": {"train": Train(label_calibration=0.5)},
    "train.proximal_mu": {"train": Train(proximal_mu=0.1)},
    "adapter.dtype": {"adapter": Adapter(lora=Lora(rank=4), dtype="bfloat16")},
    "adalora": {"adapter": Adapter.model_validate({"adalora": {}})},
    "lora.dropout": {"adapter": Adapter(lora=Lora(rank=4, dropout=0.1))},
    "parallel.dropout": {"adapter": Adapter.model_validate({"parallel": {"dropout": 0.1}})},
    "a, b, in this order, found b, a in the script": {"task": Task(kind="classify", labels=("b", "a"))},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_run_that_a_trainer_cannot_train_is_refused_by_name(tmp_path: Path, what: str) -> None:
    script = script_of(tmp_path)
    script.expect(run_plan())
    said = "b, a, in this order, found a, b in the script" if "order" in what else what
    with pytest.raises(PolicyRefused, match=said):
        script.expect(run_plan(**REFUSED[what]))


def test_class_names_that_only_the_order_tells_are_said_by_whoever_attaches(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="LABEL_0, LABEL_1"):
        script_of(tmp_path, names={0: "LABEL_0", 1: "LABEL_1"}).expect(run_plan())
    script_of(tmp_path, names={0: "LABEL_0", 1: "LABEL_1"}, labels=["a", "b"]).expect(run_plan())


def test_another_base_than_the_scripts_model_is_refused(tmp_path: Path) -> None:
    script = script_of(tmp_path)
    config = tiny_bert(layers=2, classes=2).config.to_dict()
    script.expect_base(config)
    with pytest.raises(PolicyRefused, match="hidden_size"):
        script.expect_base({**config, "hidden_size": 999})


def test_another_base_is_refused_whatever_its_architecture_calls_its_sizes(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, GPT2Config

    script = script_of(tmp_path)
    for config, key, value in (
        (DistilBertConfig(), "dim", 384),
        (DistilBertConfig(), "n_layers", 3),
        (GPT2Config(), "n_embd", 384),
        (GPT2Config(), "n_layer", 3),
        (GPT2Config(), "vocab_size", 3),
    ):
        script._config = config.to_dict()
        script.expect_base(config.to_dict())
        script.expect_base(config.to_diff_dict())  # what is as always may be left out
        with pytest.raises(PolicyRefused, match=str(value)):
            script.expect_base({**config.to_dict(), key: value})


def test_another_tokenizer_of_the_same_size_is_refused_by_its_tokens(tmp_path: Path) -> None:
    from fedpeft_client.training.transformers_script import TransformersScript

    script = script_of(tmp_path)
    script.expect_vocabulary(tiny_tokenizer().get_vocab())
    with pytest.raises(PolicyRefused, match="numbers 2 tokens otherwise, such as 'green', 'red'"):
        script.expect_vocabulary(tiny_tokenizer(["green", "red", *WORDS[2:]]).get_vocab())
    script._trainer.processing_class = None
    with pytest.raises(ConfigInvalid, match="pass processing_class=tokenizer"):
        TransformersScript(script._trainer, labels=None, recipe="run")


def test_a_trainer_without_countable_examples_or_with_an_optimizer_of_its_model_is_refused(tmp_path: Path) -> None:
    from fedpeft_client.training.transformers_script import TransformersScript

    trainer = script_of(tmp_path)._trainer
    trainer.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigInvalid, match="optimizer_cls_and_kwargs"):
        TransformersScript(trainer, labels=None, recipe="script")
    for not_one in ({"birds": ROWS}, iter(ROWS)):
        trainer.eval_dataset = not_one
        with pytest.raises(ConfigInvalid, match="a dict or a stream"):
            TransformersScript(trainer, labels=None, recipe="run")
    trainer.eval_dataset = None
    trainer.train_dataset = iter(())
    with pytest.raises(ConfigInvalid, match="has a length"):
        TransformersScript(trainer, labels=None, recipe="run")


def test_a_trainer_that_would_make_another_model_or_use_several_processors_is_refused(tmp_path: Path) -> None:
    """With ``model_init`` a round would train a model that nobody sends, and the device's change would be zero."""
    from fedpeft_client.training.transformers_script import TransformersScript

    trainer = script_of(tmp_path)._trainer
    trainer.args._n_gpu = 2
    with pytest.raises(ConfigInvalid, match="2 GPUs"):
        TransformersScript(trainer, labels=None, recipe="run")
    trainer.args._n_gpu = 0
    trainer.model_init = lambda: tiny_bert(layers=2, classes=2)
    with pytest.raises(ConfigInvalid, match="model_init"):
        TransformersScript(trainer, labels=None, recipe="run")
    trainer.model_init = None
    trainer.args.auto_find_batch_size = True
    with pytest.raises(ConfigInvalid, match="auto_find_batch_size"):
        TransformersScript(trainer, labels=None, recipe="run")
    trainer.args.auto_find_batch_size = False
    script, union = TransformersScript(trainer, labels=None, recipe="run"), grafted()
    trainer.model_init = lambda: tiny_bert(layers=2, classes=2).requires_grad_(True)
    with pytest.raises(RunFailed, match="made another one"):
        script.take_steps(union, steps_of(union), seed=5)


def test_a_script_that_evaluates_saves_and_stops_early_trains_its_rounds_all_the_same(tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback

    script, union = script_of(tmp_path), grafted()
    args = script._trainer.args
    args.eval_strategy = args.save_strategy = "steps"
    args.eval_steps = args.save_steps = 1
    args.eval_on_start = args.load_best_model_at_end = True
    args.metric_for_best_model = "loss"
    script._trainer.add_callback(EarlyStoppingCallback())
    for seed in (5, 6):
        assert script.take_steps(union, steps_of(union), seed=seed)[1] == 36
    assert any(isinstance(one, EarlyStoppingCallback) for one in script._trainer.callback_handler.callbacks)
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Any]:
    """A script in bfloat16; accelerate keeps the precision for the whole process."""
    from accelerate.state import AcceleratorState

    yield script_of(tmp_path, bf16=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_round_has_the_scripts_precision_and_evaluations_the_models(mixed: Any) -> None:
    union, seen = grafted(), []
    config = union.model.config.to_dict()
    assert config["eos_token_id"] != tiny_tokenizer().eos_token_id
    union.model.bert.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    ids = torch.tensor([[2, 5, 6, 3]])
    for seed in (5, 6):
        mixed.take_steps(union, steps_of(union), seed=seed)
        assert seen == [True] * 3
        with torch.no_grad():
            assert union.model(input_ids=ids).logits.dtype == torch.float32
            assert isinstance(union.model(input_ids=ids, return_dict=False), tuple)
        assert seen[3:] == [False] * 2
        seen.clear()
        assert union.model.config.to_dict() == config, "fedpeft pads as the base says"
