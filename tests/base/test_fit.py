"""Base, task, adapter, tokenizer and examples are checked against each other before anything runs."""

import numpy as np
import pytest

from fedpeft.base.fit import UNBOUNDED, expect_examples_fit, fit_problems, positions_of
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.adapter import Adapter
from fedpeft.config.model import Task
from fedpeft.data import EncodedDataset
from fedpeft.errors import DataInvalid


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ({"model_type": "gemma3", "text_config": {"model_type": "g", "max_position_embeddings": 99}}, 99),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, UNBOUNDED),
        ({"model_type": "bloom"}, UNBOUNDED),
        ({"model_type": "odd", "max_position_embeddings": "many"}, UNBOUNDED),
    ],
)
def test_the_longest_text_follows_from_the_config(config: dict[str, object], positions: int) -> None:
    assert positions_of(config) == positions


@pytest.mark.parametrize(
    ("length", "prompt", "refused"), [(64, 0, False), (65, 0, True), (60, 4, False), (61, 4, True)]
)
def test_text_and_prompt_together_take_no_more_than_the_positions(length: int, prompt: int, refused: bool) -> None:
    adapter = Adapter.having(Prompt(length=prompt)) if prompt else None
    task = Task(kind="classify", max_length=length)
    problems = fit_problems({"model_type": "bert", "max_position_embeddings": 64}, task, adapter)
    assert [problem.where for problem in problems] == ["task.max_length"] * refused
    assert all(f"at most {64 - prompt}" in problem.expected for problem in problems)


def test_a_task_that_the_base_cannot_serve_is_named_beside_everything_else() -> None:
    config = {"model_type": "bert", "max_position_embeddings": 16}
    problems = fit_problems(config, Task(kind="causal-lm"), tasks=("classify",))
    assert [problem.where for problem in problems] == ["task.kind", "task.max_length"]


def examples(*rows: list[int], unknown: int = 0) -> EncodedDataset:
    ids = tuple(np.array(row, dtype=np.int32) for row in rows)
    return EncodedDataset(input_ids=ids, labels=np.zeros(len(rows), dtype=np.int64), truncated=0, unknown=unknown)


def test_token_ids_beyond_the_embedding_are_refused() -> None:
    expect_examples_fit([examples([1, 299], [2])], vocabulary=300)
    with pytest.raises(DataInvalid, match="below 300, the rows of the model's embedding, found 300"):
        expect_examples_fit([examples([1]), examples([300])], vocabulary=300)


def test_a_tokenizer_that_knows_nothing_at_all_is_refused_and_one_odd_row_is_not() -> None:
    expect_examples_fit([examples([3], [5], unknown=1)], vocabulary=300)
    with pytest.raises(DataInvalid, match="nothing but unknown tokens in all 2 examples"):
        expect_examples_fit([examples([3], unknown=1), examples([3], unknown=1)], vocabulary=300)


def test_no_examples_fit_everything() -> None:
    expect_examples_fit([examples()], vocabulary=1)
