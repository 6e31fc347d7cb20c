"""What an encoder-decoder writes with keys and values kept is what it writes when it reads everything anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from torch import nn

from fedpeft.base import BaseArtifact, load_model, load_tokenizer
from fedpeft.testing.zoo import ROWS
from fedpeft.tuning.generation.decoder import Sampling
from fedpeft.tuning.generation.sources import SourceDecoder

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
SOURCES = [np.arange(5, 5 + length, dtype=np.int32) for length in (4, 9, 9, 21, 2)]
HOW = [Sampling(max_tokens=length) for length in (7, 3, 12, 12, 1)]  # rows leave the batch one by one


def written(decoder: SourceDecoder) -> dict[int, list[int | None]]:
    found: dict[int, list[int | None]] = {}
    for token in decoder.generate(SOURCES, HOW):
        found.setdefault(token.row, []).append(token.token)
    return found


def decoders(model: nn.Module, artifact: BaseArtifact) -> tuple[SourceDecoder, SourceDecoder]:
    """As it is, and without keeping anything."""
    own, anew = (SourceDecoder(model, load_tokenizer(artifact), frozenset()) for _ in range(2))
    anew._keeps = False
    return own, anew


@pytest.mark.drawn(4, always=lambda name, **_: name in ("t5", "bart"))
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row["kind"] == "s2s"])
def test_every_architecture_writes_the_same_with_a_cache(name: str, zoo: Zoo) -> None:
    _, artifact = zoo(name)
    own, anew = decoders(load_model(artifact, task="seq2seq", head_seed=0), artifact)
    assert own.keeps
    answers = written(own)
    assert answers == written(anew)
    assert sum(map(len, answers.values())) > 20, "special tokens are no part of an answer; these models write few"


def test_a_cache_is_read_and_saves_what_was_written(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    _, artifact = zoo("t5")
    model = load_model(artifact, task="seq2seq", head_seed=0)
    own, _ = decoders(model, artifact)
    assert own.keeps
    widths, forward = [], model.forward

    def counted(*args: Any, decoder_input_ids: Any, **more: Any) -> Any:
        widths.append(decoder_input_ids.shape[1])
        return forward(*args, decoder_input_ids=decoder_input_ids, **more)

    monkeypatch.setattr(model, "forward", counted)
    written(own)
    assert set(widths) == {1}


@pytest.mark.parametrize("lie", ["wrong", "refused", "none"])
def test_a_model_that_computes_something_else_with_a_cache_is_asked_without(
    lie: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, artifact = zoo("bart")
    model = load_model(artifact, task="seq2seq", head_seed=0)
    forward = model.forward

    def other(*args: Any, past_key_values: Any = None, use_cache: bool = False, **more: Any) -> Any:
        if use_cache and lie == "refused":
            raise ValueError("no cache here")
        if lie == "wrong":  # what was written before is forgotten
            return forward(*args, use_cache=use_cache, **more)
        found = forward(*args, past_key_values=past_key_values, use_cache=use_cache, **more)
        found.past_key_values = None
        return found

    expected: dict[int, list[int | None]] = written(decoders(model, artifact)[1])
    monkeypatch.setattr(model, "forward", other)
    own, _ = decoders(model, artifact)
    assert not own.keeps
    assert written(own) == expected
