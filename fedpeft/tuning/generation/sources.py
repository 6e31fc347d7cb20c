"""What an encoder-decoder writes for a source, token by token: the source is read once, its answer grows.

Keys and values of what is written, and of the source, are kept where the model computes the same with them: that is
tried, as ``Decoder`` does.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedpeft.data.encode_sources import target_tokens
from fedpeft.data.rendering import TokenIds
from fedpeft.entropy import generator
from fedpeft.tuning.generation.decoder import BATCH, Sampling, Token, TokenLoop, agrees
from fedpeft.tuning.two_stacks import shifted_right

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SourceDecoder"]


class SourceDecoder(TokenLoop["_Sources"]):
    """Answers as ``Decoder`` does, of an encoder-decoder; belongs to one thread at a time.

    Args:
        model: of transformers.
        tokenizer: its own: how its targets begin, which is no part of an answer.
        ends, choose_rows: see ``TokenLoop``.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        ends: frozenset[int],
        choose_rows: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        super().__init__(ends, choose_rows, silent=frozenset(tokenizer.all_special_ids))
        self._model: Any = model
        self._device = next(model.parameters()).device
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._encoder = base.get_encoder()
        self.longest = getattr(base.config, "max_position_embeddings", None)
        empty = torch.from_numpy(target_tokens([""], tokenizer)[0].astype("int64"))[None]
        empty = empty if empty.numel() else torch.tensor([[0]])
        self._begin = int(shifted_right(base, empty)[0, 0])
        self._vocabulary = int(base.config.get_text_config().vocab_size)
        self._keeps: bool | None = None

    @property
    def keeps(self) -> bool:
        """Whether the model computes the same with keys and values kept; tried at first use."""
        if self._keeps is None:
            self._keeps = self._tried()
        return self._keeps

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

    def _begun(self, questions: list[TokenIds]) -> "_Sources":
        ids, mask = (part.to(self._device) for part in _padded(questions))
        return _Sources(ids, mask, begin=self._begin)

    def _next(self, state: "_Sources") -> tuple[Tensor, list[int]]:
        found: Tensor = self._logits(state, keep=self.keeps)[:, -1].cpu()
        return found, [state.written.shape[1] + 1] * len(state.written)

    def _logits(self, state: "_Sources", *, keep: bool) -> Tensor:
        """Float32 (b, t, vocabulary) of what is written, or of what is new since the last call."""
        if state.read is None:
            state.read = self._encoder(input_ids=state.ids, attention_mask=state.mask).last_hidden_state
        fresh = state.written if state.cache is None else state.written[:, -1:]
        kept = {"past_key_values": state.cache, "use_cache": True} if keep else {"use_cache": False}
        output = self._model(encoder_outputs=(state.read,), attention_mask=state.mask, decoder_input_ids=fresh, **kept)
        if keep:
            state.cache = output.past_key_values
        found: Tensor = output.logits.float()
        return found

    @torch.no_grad()
    def _tried(self) -> bool:
        draw = generator(0, "abilities")
        sources = [draw.integers(0, self._vocabulary, size).astype("int32") for size in (7, 4)]
        written = [draw.integers(0, self._vocabulary, 2).tolist() for _ in range(3)]
        self._choose_rows([0, 0])
        whole = self._begun(sources)
        for tokens in written:
            whole.go_on([0, 1], tokens)
        expected = self._logits(whole, keep=False)

        def stepwise() -> Tensor:
            """The last token without the row that was above."""
            state = self._begun(sources)
            found = [self._logits(state, keep=True)]
            for tokens in written[:-1]:
                state.go_on([0, 1], tokens)
                found.append(self._logits(state, keep=True))
            state.go_on([1], written[-1][1:])
            self._choose_rows([0])
            return torch.cat([torch.cat(found, dim=1).flatten(), self._logits(state, keep=True).flatten()])

        return agrees(stepwise, torch.cat([expected[:, :-1].flatten(), expected[1, -1]]))


class _Sources:
    """The sources of a batch, what the encoder made of them, what is written so far, and the cache."""

    def __init__(self, ids: Tensor, mask: Tensor, *, begin: int) -> None:
        self.ids, self.mask = ids, mask
        self.read: Tensor | None = None
        self.cache: Any = None
        self.written = torch.full((len(ids), 1), begin, dtype=torch.int64, device=ids.device)

    def go_on(self, lines: list[int], tokens: list[int]) -> None:
        """See ``TokenLoop``."""
        if len(lines) < len(self.ids):
            index = torch.tensor(lines, device=self.ids.device)
            self.ids, self.mask, self.written = self.ids[index], self.mask[index], self.written[index]
            self.read = None if self.read is None else self.read[index]
            if self.cache is not None:
                self.cache.reorder_cache(index)
        self.written = torch.cat([self.written, torch.tensor(tokens, device=self.ids.device)[:, None]], dim=1)


def _padded(questions: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    rows = [torch.from_numpy(question.astype("int64")) for question in questions]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad([torch.ones_like(row) for row in rows], batch_first=True)
