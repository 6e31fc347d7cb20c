"""What a model writes for questions of one batch is what it writes for each by itself, to the last position."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from peft import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from fedpeft.base import BaseArtifact, load_model
from fedpeft.config.model import Adapter
from fedpeft.methods import attach
from fedpeft.tasks.form import TEXT
from fedpeft.testing.zoo import ROWS
from fedpeft.tuning.generation.decoder import Decoder, Sampling

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
QUESTIONS = [np.arange(5, 5 + length, dtype=np.int32) % 60 + 5 for length in (4, 9, 9, 21, 2)]
HOW = [Sampling(max_tokens=length) for length in (7, 3, 9, 9, 1)]  # rows leave the batch one by one
ROWS_BEFORE = 8
RECURRENT = ("lfm2", "falcon_h1", "qwen3_next")
"""Their caches hold a state beside keys and values, or none of these."""


@pytest.mark.drawn(4, always=lambda name, **_: name in (*RECURRENT, "llama"))
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row["kind"] == "lm"])
def test_every_architecture_writes_in_a_batch_what_it_writes_alone(name: str, zoo: Zoo) -> None:
    _, artifact = zoo(name)
    model = load_model(artifact, task=TEXT, labels=(), head_seed=0)
    decoder, written = Decoder(model, frozenset()), [[] for _ in QUESTIONS]
    for token in decoder.generate(QUESTIONS, HOW):
        if token.token is not None:
            written[token.row].append(token.token)
    for question, how, answer in zip(QUESTIONS, HOW, written, strict=True):
        ids = question.tolist()
        for _ in range(how.max_tokens):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == ids[len(question) :]
    assert decoder.abilities.cache or name not in (*RECURRENT, "llama")


def theirs(kind: type[PromptLearningConfig], model: nn.Module) -> nn.Module:
    return get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=ROWS_BEFORE)).eval()  # type: ignore[arg-type]


def ours(model: nn.Module, **adapter: object) -> nn.Module:
    return attach(model, Adapter.model_validate(adapter), seed=0).model


WITH_ROWS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "prompt": lambda model: ours(model, prompt={"length": ROWS_BEFORE}),
    "p_tuning": lambda model: ours(model, p_tuning={"length": ROWS_BEFORE}),
    "both": lambda model: ours(model, prompt={"length": 3}, p_tuning={"length": ROWS_BEFORE - 3}),
    "prompt of peft": lambda model: theirs(PromptTuningConfig, model),
    "prefix of peft": lambda model: theirs(PrefixTuningConfig, model),
}


@pytest.mark.parametrize("adapter", WITH_ROWS)
def test_rows_before_a_text_take_positions_of_its_answer(adapter: str, zoo: Zoo) -> None:
    """The model's positions are rows of a table: there is nothing behind its end."""
    _, artifact = zoo("gpt2")
    model = WITH_ROWS[adapter](load_model(artifact, task=TEXT, labels=(), head_seed=0))
    decoder, room = Decoder(model, frozenset()), 160 - ROWS_BEFORE
    assert decoder.longest == room
    questions = [np.arange(length, dtype=np.int32) % 60 + 5 for length in (room - 3, room - 1, 4)]
    written = [
        token.row for token in decoder.generate(questions, [Sampling(max_tokens=9)] * 3) if token.token is not None
    ]
    assert [written.count(row) for row in range(3)] == [4, 2, 9], "as many as are read, and one that nothing follows"
    with torch.no_grad(), pytest.raises(IndexError):
        model(input_ids=torch.arange(room + 1)[None] % 60 + 5)
