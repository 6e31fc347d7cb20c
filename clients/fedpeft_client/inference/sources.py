"""What an encoder-decoder writes for a source, token by token: the source is read once, its answer grows."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedpeft.data.encode_sources import target_tokens
from fedpeft.data.rendering import TokenIds
from fedpeft.entropy import generator
from fedpeft_client.inference.generation import BATCH, Sampling, Token, drawn

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

__all__ = ["SourceDecoder"]


class SourceDecoder:
    """Answers as ``Decoder`` does, of an encoder-decoder; belongs to one thread at a time.

    Args:
        model: of transformers.
        tokenizer: its own: how its targets begin.
        ends: tokens that close an answer.
        choose_rows: see ``Decoder``.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        ends: frozenset[int],
        choose_rows: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self._model: Any = model
        self._ends, self._silent = ends, frozenset(tokenizer.all_special_ids)
        self._choose_rows = choose_rows or (lambda rows: None)
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._encoder = base.get_encoder()
        self.longest: int | None = getattr(base.config, "max_position_embeddings", None)
        empty = torch.from_numpy(target_tokens([""], tokenizer)[0].astype("int64"))[None]
        empty = empty if empty.numel() else torch.tensor([[0]])
        self._begin = int(base.prepare_decoder_input_ids_from_labels(labels=empty)[0, 0])

    @torch.no_grad()
    def generate(
        self,
        questions: Sequence[TokenIds],
        how: Sequence[Sampling],
        is_wanted: Callable[[int], bool] = lambda row: True,
    ) -> Iterator[Token]:
        """See ``Decoder.generate``; the questions are sources."""
        order = sorted(range(len(questions)), key=lambda row: len(questions[row]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            yield from self._batch(rows, [questions[row] for row in rows], [how[row] for row in rows], is_wanted)

    def _batch(
        self, names: list[int], questions: list[TokenIds], how: list[Sampling], is_wanted: Callable[[int], bool]
    ) -> Iterator[Token]:
        draws: list[np.random.Generator] = [generator(one.seed, "sampling") for one in how]
        ids, mask = _padded(questions)
        self._choose_rows(names)
        states: Tensor = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        written = torch.full((len(names), 1), self._begin, dtype=torch.int64)
        there, made = list(range(len(names))), [0] * len(names)
        while there:
            self._choose_rows([names[row] for row in there])
            logits = self._model(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=written).logits
            kept, tokens = [], []
            for line, row in enumerate(there):
                token = drawn(logits[line, -1].float(), how[row], draws[row])
                if token in self._ends:
                    yield Token(row=names[row], token=None, ended=True)
                    continue
                made[row] += 1
                if token not in self._silent:  # how targets begin is no part of an answer
                    yield Token(row=names[row], token=token)
                cut = made[row] >= how[row].max_tokens or written.shape[1] + 1 == self.longest
                if cut or not is_wanted(names[row]):
                    yield Token(row=names[row], token=None)
                    continue
                kept.append(line)
                tokens.append(token)
            there = [there[line] for line in kept]
            if there:
                index = torch.tensor(kept)
                states, mask = states[index], mask[index]
                written = torch.cat([written[index], torch.tensor(tokens)[:, None]], dim=1)


def _padded(questions: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    rows = [torch.from_numpy(question.astype("int64")) for question in questions]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad([torch.ones_like(row) for row in rows], batch_first=True)
