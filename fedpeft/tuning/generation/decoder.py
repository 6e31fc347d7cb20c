"""Tokens after a question, some questions at a time, with the keys and values of what was read kept (KV cache).

Questions of a batch are padded on the left. What a model can do is tried and not looked up: an adapter that puts rows
before a text, or a base that keeps something else than keys and values, may compute another thing with a cache or
with padding, and is then asked without. Greedy unless a temperature is given; a draw depends on the seed alone.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.rendering import TokenIds
from fedpeft.entropy import generator
from fedpeft.methods.prompt import rows_before
from fedpeft.tuning.batches import padded

__all__ = ["BATCH", "Abilities", "Decoder", "Sampling", "Token", "TokenLoop", "agrees"]

BATCH = 16
_CLOSE = 1e-3  # of the largest logit: rounding over all layers; a key in the wrong place moves logits by far more
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an answer is drawn.

    Args:
        max_tokens: at most so many, >= 1.
        temperature: 0: the most likely token each time.
        top_p: only the likeliest tokens that have this share together, in (0, 1].
        seed: of the draws.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of one answer.

    Args:
        row: of which question.
        token: the id; None: the answer is complete.
        ended: with ``token`` None, whether the model closed it; else it was cut at ``max_tokens``.
    """

    row: int
    token: int | None
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What gives the same logits as one question without any of it.

    Args:
        cache: keys and values kept, or a state that was read into, also when a question beside it is complete.
        padding: questions of unequal length at once.
    """

    cache: bool
    padding: bool


class _Rows(Protocol):
    """The questions of a batch that are not answered yet, as their model reads them."""

    def go_on(self, lines: list[int], tokens: list[int]) -> None:
        """Keep these rows, each with one more token."""
        ...


State = TypeVar("State", bound=_Rows)


class TokenLoop(ABC, Generic[State]):
    """Draws a token for each question of a batch, gives it out, and goes on with those that are not complete.

    Args:
        ends: tokens that close an answer.
        choose_rows: called before each forward pass with the questions (by their place) that are its rows.
        silent: tokens that are written and are no part of an answer.
    """

    longest: int | None
    """Tokens that the model reads; None: any number."""

    def __init__(
        self,
        ends: frozenset[int],
        choose_rows: Callable[[Sequence[int]], None] | None,
        *,
        silent: frozenset[int] = frozenset(),
    ) -> None:
        self._ends, self._silent = ends, silent
        self._choose_rows = choose_rows or (lambda rows: None)

    @abstractmethod
    def _begun(self, questions: list[TokenIds]) -> State:
        """These questions, before their first token."""

    @abstractmethod
    def _next(self, state: State) -> tuple[Tensor, list[int]]:
        """Logits (b, vocabulary) of the token after each row, and how long each row is for ``longest``."""

    def _batch(
        self, names: list[int], questions: list[TokenIds], how: list[Sampling], is_wanted: Callable[[int], bool]
    ) -> Iterator[Token]:
        draws = [generator(one.seed, "sampling") for one in how]
        state = self._begun(questions)
        there, made = list(range(len(names))), [0] * len(names)
        while there:
            self._choose_rows([names[row] for row in there])
            logits, lengths = self._next(state)
            kept, tokens = [], []
            for line, row in enumerate(there):
                token = _drawn(logits[line], how[row], draws[row])
                if token in self._ends:
                    yield Token(row=names[row], token=None, ended=True)
                    continue
                made[row] += 1
                if token not in self._silent:
                    yield Token(row=names[row], token=token)
                cut = made[row] >= how[row].max_tokens or lengths[line] == self.longest
                if cut or not is_wanted(names[row]):
                    yield Token(row=names[row], token=None)
                    continue
                kept.append(line)
                tokens.append(token)
            there = [there[line] for line in kept]
            if there:
                state.go_on(kept, tokens)


class Decoder(TokenLoop["_State"]):
    """Generates with one model; belongs to one thread at a time.

    Args:
        model: a causal language model.
        ends, choose_rows: see ``TokenLoop``.

    Attributes:
        vocabulary: how many tokens there are.
    """

    def __init__(
        self, model: nn.Module, ends: frozenset[int], choose_rows: Callable[[Sequence[int]], None] | None = None
    ) -> None:
        super().__init__(ends, choose_rows)
        self._model, self._device = model, next(model.parameters()).device
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self.vocabulary = int(base.config.get_text_config().vocab_size)
        positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self.longest = positions and positions - rows_before(model) - _virtual_tokens(model)
        self._abilities: Abilities | None = None

    @property
    def abilities(self) -> Abilities:
        """Tried at first use, by a few tokens at random."""
        if self._abilities is None:
            self._abilities = self._tried()
        return self._abilities

    @torch.no_grad()
    def generate(
        self,
        questions: Sequence[TokenIds],
        how: Sequence[Sampling],
        is_wanted: Callable[[int], bool] = lambda row: True,
    ) -> Iterator[Token]:
        """The answers token by token, in batches of at most 16 questions; each ends with a ``Token`` without id.

        Args:
            questions: (T,) each.
            how: one each.
            is_wanted: asked before each token; once false, the answer ends.
        """
        able = self.abilities
        for rows in _batches([len(question) for question in questions], alike=not able.padding):
            yield from self._batch(rows, [questions[row] for row in rows], [how[row] for row in rows], is_wanted)

    def _begun(self, questions: list[TokenIds]) -> "_State":
        return self._state(questions)

    def _state(self, questions: Sequence[TokenIds]) -> "_State":
        return _State(*(part.to(self._device) for part in _padded(questions)))

    def _next(self, state: "_State") -> tuple[Tensor, list[int]]:
        use = self.abilities.cache
        tokens = state.ids[:, -1:] if use and state.cache is not None else state.ids
        output = self._forward(tokens, state.mask, cache=state.cache, keep=use)
        state.cache = output.past_key_values if use else None
        found: Tensor = output.logits[:, -1].float().cpu()
        return found, state.mask.sum(dim=1).tolist()

    def _forward(self, tokens: Tensor, mask: Tensor, *, cache: Any, keep: bool) -> Any:
        inputs: dict[str, Any] = {"input_ids": tokens}
        if not bool(mask.all()):
            inputs["attention_mask"] = mask
            if self._takes_positions:
                inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if keep:
            inputs |= {"past_key_values": cache, "use_cache": True}
        return self._model(**inputs)

    @torch.no_grad()
    def _tried(self) -> Abilities:
        draw = generator(0, "abilities")
        long, short = (draw.integers(0, self.vocabulary, size).astype(np.int32) for size in (9, 5))
        self._choose_rows([0])
        alone = [self._whole(question) for question in (long, short)]
        return Abilities(
            cache=agrees(lambda: self._stepwise(long), alone[0][None, -3:]),
            padding=agrees(lambda: self._side_by_side(long, short), torch.stack([one[-1] for one in alone])),
        )

    def _whole(self, question: TokenIds) -> Tensor:
        state = self._state([question])
        logits: Tensor = self._forward(state.ids, state.mask, cache=None, keep=False).logits[0].float()
        return logits

    def _stepwise(self, question: TokenIds) -> Tensor:
        """(1, 3, vocabulary): the last tokens one by one on a cache of the others, without the row that was beside."""
        self._choose_rows([0, 0])
        state = self._state([question[-3::-1].copy(), question[:-2]])
        found: list[Tensor] = []
        for token in (*question[-2:].tolist(), None):
            output = self._forward(
                state.ids if not found else state.ids[:, -1:], state.mask, cache=state.cache, keep=True
            )
            state.cache = output.past_key_values
            if state.cache is None:
                raise ValueError("Expected keys and values, found none.")
            found.append(output.logits[-1:, -1].float())
            if token is not None:
                state.go_on([len(state.ids) - 1], [token])
                self._choose_rows([0])
        return torch.stack(found, dim=1)

    def _side_by_side(self, long: TokenIds, short: TokenIds) -> Tensor:
        state = self._state([long, short])
        self._choose_rows([0, 0])
        logits: Tensor = self._forward(state.ids, state.mask, cache=None, keep=False).logits[:, -1].float()
        return logits


def _virtual_tokens(model: nn.Module) -> int:
    """As ``rows_before``, of an adapter that peft holds."""
    return int(getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0)


def agrees(other: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether another way to compute these logits works, and gives the same."""
    try:
        found = other()
    except _REFUSALS:
        return False
    if found.shape != expected.shape:
        return False
    far = float((found - expected).abs().max())
    return far <= _CLOSE * max(1.0, float(expected.abs().max()))


class _State:
    """The rows of a batch: all tokens so far, which of them are no padding, and the cache."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask = ids, mask
        self.cache: Any = None

    def go_on(self, lines: list[int], tokens: list[int]) -> None:
        """Keep these rows, each with one more token."""
        if len(lines) < len(self.ids):
            index = torch.tensor(lines, device=self.ids.device)
            self.ids, self.mask = self.ids[index], self.mask[index]
            if self.cache is not None:
                self.cache.reorder_cache(index)  # not batch_select_indices, which recurrent layers do not have
        more = torch.tensor(tokens, dtype=self.ids.dtype, device=self.ids.device)[:, None]
        self.ids = torch.cat([self.ids, more], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(more)], dim=1)


def _padded(questions: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    """On the left: what is written next follows every question."""
    there = padded([np.ones(len(question), np.int64) for question in questions], 0, left=True)
    return torch.from_numpy(padded(questions, 0, left=True)), torch.from_numpy(there)


def _batches(lengths: Sequence[int], *, alike: bool) -> list[list[int]]:
    """Places in order of length, so that little is padded; ``alike``: only equal lengths together."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        last = found[-1] if found else []
        if not last or len(last) == BATCH or (alike and lengths[last[-1]] != lengths[row]):
            found.append([row])
        else:
            last.append(row)
    return found


def _drawn(logits: Tensor, how: Sampling, draw: np.random.Generator) -> int:
    if how.temperature <= 0:
        return int(logits.argmax())
    shares = torch.softmax(logits.double() / how.temperature, dim=-1)
    ordered, order = shares.sort(descending=True)
    # The first token always stays; a later one where those before it have less than top_p together.
    kept = int((ordered.cumsum(0) - ordered < how.top_p).sum())
    shares = ordered[:kept] / ordered[:kept].sum()
    return int(order[int(np.searchsorted(shares.cumsum(0).numpy(), draw.random(), side="right").clip(max=kept - 1))])
