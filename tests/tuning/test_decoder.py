"""What a language model writes for questions of one batch is what it writes for each by itself, read anew each time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from fedpeft.base import BaseArtifact, load_model
from fedpeft.tasks.form import TEXT
from fedpeft.testing.zoo import ROWS
from fedpeft.tuning.generation.decoder import Decoder, Sampling

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
QUESTIONS = [np.arange(5, 5 + length, dtype=np.int32) % 60 + 5 for length in (4, 9, 9, 21, 2)]
HOW = [Sampling(max_tokens=length) for length in (7, 3, 9, 9, 1)]  # rows leave the batch one by one
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
