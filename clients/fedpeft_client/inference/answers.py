"""Texts in, answers out, as the adapter was trained: a class with its probability, or words as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedpeft.base.architecture import form_of, has_two_stacks
from fedpeft.data import Record, Records
from fedpeft.data.prompts import answer_ends, conversation_tokens, question_tokens, usual_convention
from fedpeft.data.rendering import TokenIds
from fedpeft.data.row_checks import ROLES
from fedpeft.data.tasks import Message
from fedpeft.errors import DataInvalid
from fedpeft.tasks import TASKS, Convention, Target
from fedpeft.tasks.form import STATES
from fedpeft.tuning.generation.decoder import Decoder, Sampling
from fedpeft.tuning.generation.sources import SourceDecoder
from fedpeft.tuning.several.pooling import mean_of_tokens, unit_length
from fedpeft_client.inference.encoding import Encoded, encoded
from fedpeft_client.inference.outputs import Asked, Choice, answer_of, target_of, texts_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Answer", "Answerer", "Piece"]

COMPARED = tuple(one for task in TASKS.values() if task.prefers for one in task.conventions)


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
        convention: of the examples that the model was trained on; None: not known, and a language model is asked as
            ``usual_convention``.
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
        self.pairs = None if convention is None else convention is Convention.TEXT_PAIR_LABEL
        if convention in COMPARED:  # its columns do not say whether a prompt is a text or a conversation
            convention = None
        self.convention, self.margins = convention or usual_convention(tokenizer), margins
        if has_two_stacks(model):  # whatever its examples' columns were called
            self.convention = Convention.SOURCE_TARGET
        self._choose_rows = choose_rows or (lambda rows: None)
        self.decoder: Decoder | SourceDecoder | None = None
        if has_two_stacks(model):
            self.decoder = SourceDecoder(model, tokenizer, self._ends(self.convention), choose_rows)
        self.embeds = form_of(model) == STATES
        if self.decoder is None and not labels and not self.embeds:
            self.decoder = Decoder(model, self._ends(self.convention), choose_rows)

    @property
    def model(self) -> nn.Module:
        """As given."""
        return self._model

    def classify(self, questions: Sequence[Asked]) -> list[Choice]:
        """An answer to each question; batches of 32, alike in length.

        Args:
            questions: texts, or pairs of them (``outputs.texts_of``).

        Raises:
            DataInvalid: the model has no outputs of its own, or a question is none for it.
        """
        self._expect_labels()
        target = target_of(self._model)
        texts = [texts_of(question, target, pairs=self.pairs) for question in questions]
        found: dict[int, Choice] = {}
        for some, logits in self.logits(texts):
            for i, row in enumerate(some.rows):
                found[row] = answer_of(logits[i], target, self.labels, some.texts[i][0], some.offsets[i])
        return [found[row] for row in range(len(texts))]

    @torch.no_grad()
    def logits(self, texts: Sequence[tuple[str, ...]], longest: Sequence[int] = ()) -> Iterator[tuple[Encoded, Tensor]]:
        """Float32 logits (n, outputs), of tags (n, s, outputs), batch by batch.

        Args:
            texts: one text each, or the two of a pair.
            longest: tokens at which each is cut; empty: as the model's.
        """
        for some in self._batches(texts, longest, offsets=target_of(self._model) is Target.TAGS):
            yield some, self._model(**some.inputs).logits.float()

    @torch.no_grad()
    def states(self, texts: Sequence[tuple[str, ...]], longest: Sequence[int] = ()) -> Iterator[tuple[Encoded, Tensor]]:
        """As ``logits``: the last layer's states (n, s, h)."""
        for some in self._batches(texts, longest):
            if self.embeds:
                yield some, self._model(**some.inputs).last_hidden_state.float()
                continue
            if has_two_stacks(self._model):  # a text is read, none is written
                yield some, self._model.get_encoder()(**some.inputs).last_hidden_state.float()  # type: ignore[operator]
                continue
            output = self._model(**some.inputs, output_hidden_states=True)
            yield some, output.hidden_states[-1].float()

    def vectors(
        self, texts: Sequence[tuple[str, ...]], longest: Sequence[int] = ()
    ) -> Iterator[tuple[int, list[float], int]]:
        """Of each text its place, its vector and its tokens: the mean of the last layer's states over them.

        Of a model that was trained to give vectors they have length 1, so that their products are cosines.
        """
        for some, states in self.states(texts, longest):
            mask = some.inputs["attention_mask"]
            means = mean_of_tokens(states, mask)
            values = unit_length(means) if self.embeds else means
            yield from zip(some.rows, values.tolist(), mask.sum(dim=1).tolist(), strict=True)

    def _batches(
        self, texts: Sequence[tuple[str, ...]], longest: Sequence[int], *, offsets: bool = False
    ) -> Iterator[Encoded]:
        config: PretrainedConfig = self._model.config
        cut = longest or [self._longest] * len(texts)
        for some in encoded(texts, self.tokenizer, config, cut, offsets=offsets):
            self._choose_rows(some.rows)
            yield some

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
        if self.margins is not None and "prompt" in row:  # of preferences the row says how it is written
            if not isinstance(row["prompt"], str):
                return conversation_tokens(turns_of(row["prompt"]), tokenizer)
            return question_tokens(row["prompt"], Convention.PROMPT_COMPLETION, tokenizer)
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
            found = "a model of vectors; ask for those" if self.embeds else "a classifier; ask for classes"
            raise DataInvalid(f"Expected a language model, found {found}.")
        return self.decoder

    def _expect_labels(self) -> None:
        if not self.labels:
            found = "a model of vectors; ask for those" if self.embeds else "a language model; ask for an answer"
            raise DataInvalid(f"Expected a classifier, found {found}.")


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
