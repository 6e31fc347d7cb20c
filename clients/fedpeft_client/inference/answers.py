"""Texts in, answers out, as the adapter was trained: a class with its probability, or words as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedpeft.base.architecture import has_two_stacks
from fedpeft.data import Record, Records
from fedpeft.data.prompts import answer_ends, conversation_tokens, question_tokens, usual_convention
from fedpeft.data.rendering import TokenIds
from fedpeft.data.row_checks import ROLES
from fedpeft.data.tasks import Message
from fedpeft.errors import DataInvalid
from fedpeft.tasks import TASKS, Convention
from fedpeft_client.inference.generation import Decoder, Sampling
from fedpeft_client.inference.outputs import answered, has_one_class
from fedpeft_client.inference.sources import SourceDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answer", "Answerer", "Choice", "Piece"]

CLASS_BATCH = 32
COMPARED = tuple(one for task in TASKS.values() if task.prefers for one in task.conventions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A class for a text.

    Args:
        label: the likeliest.
        probabilities: by class, in the order of the logits; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Words for a question.

    Args:
        text: without the token that closed it.
        asked: tokens of the question.
        tokens: of the answer.
        complete: whether the model closed it; else it was cut.
    """

    text: str
    asked: int
    tokens: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some more words of an answer.

    Args:
        row: of which question.
        text: what was not given yet; may be empty.
        answer: the whole, with the last piece.
    """

    row: int
    text: str
    answer: Answer | None = None


class Answerer:
    """A model that is asked as it was trained. Belongs to one thread at a time.

    Args:
        model: the base with its adapter.
        tokenizer: the base's.
        labels: the classes; empty for a language model.
        longest: tokens at which a text to classify is cut.
        convention: of the examples of a language model; None: as ``usual_convention``.
        choose_rows: see ``Decoder``.
        margins: how far the preferred answer of each row is before the other one; None: the model compares no answers.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        labels: tuple[str, ...] = (),
        longest: int = 512,
        convention: Convention | None = None,
        choose_rows: Callable[[Sequence[int]], None] | None = None,
        margins: Callable[[Records], Sequence[float]] | None = None,
    ) -> None:
        self._model, self.tokenizer, self.labels, self._longest = model, tokenizer, labels, longest
        if convention in COMPARED:  # its columns do not say whether a prompt is a text or a conversation
            convention = None
        self.convention, self.margins = convention or usual_convention(tokenizer), margins
        if has_two_stacks(model):  # whatever its examples' columns were called
            self.convention = Convention.SOURCE_TARGET
        self._choose_rows = choose_rows or (lambda rows: None)
        self.decoder: Decoder | SourceDecoder | None = None
        if has_two_stacks(model):
            self.decoder = SourceDecoder(model, tokenizer, self._ends(self.convention), choose_rows)
        elif not labels:
            self.decoder = Decoder(model, self._ends(self.convention), choose_rows)

    def classify(self, texts: Sequence[str]) -> list[Choice]:
        """A class for each text; batches of 32, alike in length. Of other tasks what they answer (``answered``).

        Raises:
            DataInvalid: the model has no classes.
        """
        self._expect_labels()
        pairs = self.convention is Convention.TEXT_PAIR_LABEL
        if pairs or not has_one_class(self._model):
            model, longest, told = self._model, self._longest, list[Choice]()
            for row, text in enumerate(texts):
                self._choose_rows([row])
                said = answered(model, self.tokenizer, text, self.labels, longest, pairs=pairs)
                told.append(Choice(label=said.words, probabilities=said.probabilities))
            return told
        found: list[Choice | None] = [None] * len(texts)
        for rows, logits in self.logits(texts):
            for row, shares in zip(rows, torch.softmax(logits, dim=-1).tolist(), strict=True):
                known = dict(zip(self.labels, shares, strict=True))
                found[row] = Choice(label=max(known, key=known.__getitem__), probabilities=known)
        return [one for one in found if one is not None]

    @torch.no_grad()
    def logits(self, texts: Sequence[str], longest: Sequence[int] = ()) -> Iterator[tuple[list[int], Tensor]]:
        """Rows of ``texts`` and their float32 logits (n, classes), batch by batch.

        Args:
            texts: to classify.
            longest: tokens at which each is cut; empty: as the model's.
        """
        for rows, tokens, mask in self._batches(texts, longest):
            yield rows, self._model(input_ids=tokens, attention_mask=mask).logits.float()

    @torch.no_grad()
    def states(self, texts: Sequence[str], longest: Sequence[int] = ()) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """As ``logits``: the last layer's states (n, s, h), and which are of tokens (n, s)."""
        for rows, tokens, mask in self._batches(texts, longest):
            output = self._model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
            yield rows, output.hidden_states[-1].float(), mask

    def _batches(self, texts: Sequence[str], longest: Sequence[int]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        cut = longest or [self._longest] * len(texts)
        ids: list[list[int]] = [
            self.tokenizer([text], truncation=True, max_length=length)["input_ids"][0]
            for text, length in zip(texts, cut, strict=True)
        ]
        order = sorted(range(len(texts)), key=lambda row: len(ids[row]))
        for start in range(0, len(order), CLASS_BATCH):
            rows = order[start : start + CLASS_BATCH]
            tokens, mask = self._padded([ids[row] for row in rows])
            self._choose_rows(rows)
            yield rows, tokens, mask

    def tokens_of(self, row: Record) -> TokenIds:
        """The question that a row of a data file asks, without the answer that it may have.

        Args:
            row: with ``messages``, ``instruction`` (and ``input``), ``source``, ``prompt`` or ``text``.

        Raises:
            DataInvalid: it asks nothing.
        """
        tokenizer = self.tokenizer
        if "messages" in row and self.convention is not Convention.SOURCE_TARGET:
            return conversation_tokens(turns_of(row["messages"]), tokenizer)
        for column, own in (("instruction", Convention.ALPACA), ("source", None), ("prompt", None), ("text", None)):
            if isinstance(text := row.get(column), str):
                is_source = self.convention is Convention.SOURCE_TARGET
                how = self.convention if own is None or is_source else own
                context = row.get("input") if column == "instruction" else None
                return question_tokens(text, how, tokenizer, context=str(context or ""))
        raise DataInvalid(
            f"Expected a row with messages, instruction, source, prompt or text, found {', '.join(row) or 'no column'}."
        )

    def answers(
        self, questions: Sequence[TokenIds], how: Sequence[Sampling], *, stop: Sequence[tuple[str, ...]] = ()
    ) -> list[Answer]:
        """The whole answers; see ``stream``."""
        found: dict[int, Answer] = {}
        for piece in self.stream(questions, how, stop=stop):
            if piece.answer is not None:
                found[piece.row] = piece.answer
        return [found[row] for row in range(len(questions))]

    def stream(
        self,
        questions: Sequence[TokenIds],
        how: Sequence[Sampling],
        *,
        stop: Sequence[tuple[str, ...]] = (),
        is_wanted: Callable[[int], bool] = lambda row: True,
    ) -> Iterator[Piece]:
        """The answers as they are made, those of several questions interleaved.

        Args:
            questions: token ids.
            how: one each.
            stop: for each question texts before which its answer ends; empty: none.
            is_wanted: asked before each token of a question; once false, its answer ends.

        Raises:
            DataInvalid: the model classifies, or a question is longer than the model reads.
        """
        decoder = self._expect_words()
        for question in questions:
            self.expect_room(question)
        texts = [_Text(self.tokenizer, stop[row] if stop else ()) for row in range(len(questions))]
        for token in decoder.generate(questions, how, lambda row: is_wanted(row) and not texts[row].is_stopped):
            text = texts[token.row]
            if text.is_stopped:
                continue
            fresh = text.add(token.token) if token.token is not None else text.rest()
            whole = None
            if token.token is None or text.is_stopped:
                whole = Answer(
                    text=text.given,
                    asked=len(questions[token.row]),
                    tokens=len(text.ids),
                    complete=token.ended or text.is_stopped,
                )
            yield Piece(row=token.row, text=fresh, answer=whole)

    def _ends(self, convention: Convention) -> frozenset[int]:
        return answer_ends(convention, self.tokenizer)

    def expect_room(self, question: TokenIds) -> None:
        """A question that leaves room for an answer.

        Raises:
            DataInvalid: it is as long as the model reads, or longer.
        """
        longest = self._expect_words().longest
        if longest is not None and len(question) >= longest:
            raise DataInvalid(f"Expected a question of fewer than {longest} tokens, found {len(question)}; shorten it.")

    def _expect_words(self) -> Decoder | SourceDecoder:
        if self.decoder is None:
            raise DataInvalid("Expected a language model, found a classifier; ask for classes.")
        return self.decoder

    def _expect_labels(self) -> None:
        if not self.labels:
            raise DataInvalid("Expected a classifier, found a language model; ask for an answer.")

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(len(row) for row in rows)
        pad = getattr(self._model.config, "pad_token_id", None) or 0  # as in training (fedpeft.tuning.batches)
        tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.int64)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.int64)
        return tokens, mask


def turns_of(value: object) -> tuple[Message, ...]:
    """A conversation up to its last question; an answer at the end is what is asked for.

    Raises:
        DataInvalid: no list of ``{role, content}``.
    """
    turns: list[Message] = []
    for turn in value if isinstance(value, (list, tuple)) else [None]:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise DataInvalid(f"Expected messages as a list of {{role, content}}, found {turn!r:.60}.")
        turns.append({"role": str(role), "content": content})
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return tuple(turns)


class _Text:
    """An answer's text as its tokens come: what later tokens may change is held back."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(text for text in stop if text)
        self.ids: list[int] = []
        self.given = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """What is certain now and was not given yet."""
        self.ids.append(token)
        whole = str(self._tokenizer.decode(self.ids))
        if found := [place for text in self._stop if (place := whole.find(text)) >= 0]:
            self.is_stopped = True
            return self._give(whole[: min(found)])
        if whole.endswith("\ufffd"):  # half a character of several bytes
            return ""
        # A tokenizer may tidy spaces behind the text's end, and a stop text may have begun.
        held = max((len(text) for text in self._stop), default=1) - 1
        return self._give(whole[: len(whole) - held] if held else whole)

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._give(str(self._tokenizer.decode(self.ids)))

    def _give(self, text: str) -> str:
        fresh = text[len(self.given) :]
        self.given = max(self.given, text, key=len)
        return fresh
