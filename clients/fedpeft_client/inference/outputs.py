"""What a model with outputs of its own answers to a text: a class, some labels, a number, or a tag for each word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedpeft.base.architecture import form_of
from fedpeft.data import Record
from fedpeft.data.encode_texts import first_pieces
from fedpeft.data.targets import words_of
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Target
from fedpeft.tasks.form import MULTI, NUMBER, TAGS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Asked", "Choice", "Offsets", "answer_of", "question_of", "target_of", "texts_of"]

Asked = str | tuple[str, str]
"""A text, or the two of a pair."""
TAB = "\t"
"""Between the two texts of a pair."""
Offsets = Sequence[tuple[int, int]]
"""Of each token: where it begins and ends in the text; special tokens are empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An answer.

    Args:
        label: in words: ``urgent``, ``3.4``, ``heart;lung`` (empty: none), or ``word/TAG`` for each word.
        probabilities: of each class, in the order of the logits, which sum to 1; or of each label by itself; empty for
            numbers and tags.
        labels: of any number of labels those that apply.
        value: of a number.
        tags: of each word in turn; None for a word that was cut off.
    """

    label: str
    probabilities: dict[str, float]
    labels: tuple[str, ...] = ()
    value: float | None = None
    tags: tuple[tuple[str, str | None], ...] = ()


def target_of(model: nn.Module) -> Target:
    """What a sequence or token classifier of transformers answers: its class and its config say so."""
    config: PretrainedConfig = model.config
    if form_of(model) == TAGS:
        return Target.TAGS
    return {NUMBER: Target.VALUE, MULTI: Target.CLASSES}.get(config.problem_type or "", Target.CLASS)


def question_of(row: Record) -> Asked | None:
    """What a row asks a model with outputs of its own, as ``texts_of`` takes it; None: nothing.

    Example:
        >>> question_of({"text": "a", "text_pair": "b"}), question_of({"words": ["a", "b"]})
        (('a', 'b'), 'a b')
    """
    if (words := words_of(row.get("words"))) is not None:
        return " ".join(words)
    text, pair = row.get("text"), row.get("text_pair")
    if not isinstance(text, str):
        return None
    return (text, pair) if isinstance(pair, str) else text


def texts_of(question: Asked, target: Target, *, pairs: bool | None) -> tuple[str, ...]:
    """A question as the tokenizer takes it: one text or the two of a pair; words with one space between them.

    Args:
        question: words between spaces where words are tagged; a pair as two texts, or with a tab between them.
        target: of the model.
        pairs: whether it was trained on pairs; None: nothing says so, and only what comes as two texts is a pair.

    Raises:
        DataInvalid: one text for a model of pairs, or two for a model of single texts or of words.
    """
    if isinstance(question, tuple):
        if target is Target.TAGS or pairs is False:
            raise DataInvalid(
                "Expected one text, as this model was trained on, found a pair; leave the column text_pair out."
            )
        return question
    if target is Target.TAGS:
        return (" ".join(question.split()),)
    if not pairs:
        return (question,)
    first, tab, second = question.partition(TAB)
    if not tab:
        raise DataInvalid(
            f"Expected a pair of texts, which this model was trained on, found one: {question!r:.60}; give the second "
            "as the column text_pair, or behind a tab."
        )
    return first, second


def answer_of(logits: Tensor, target: Target, outputs: Sequence[str], text: str = "", offsets: Offsets = ()) -> Choice:
    """The answer to one question.

    Args:
        logits: (outputs,) float32; where words are tagged (tokens, outputs).
        target: what the outputs say.
        outputs: their names in order.
        text: where words are tagged, as the tokenizer took it.
        offsets: where words are tagged, of its tokens.
    """
    match target:
        case Target.TAGS:
            return _tagged(text.split(), offsets, logits, outputs)
        case Target.VALUE:
            return Choice(label=f"{float(logits[0]):.4g}", probabilities={}, value=float(logits[0]))
        case Target.CLASSES:
            shares = dict(zip(outputs, torch.sigmoid(logits).tolist(), strict=True))
            there = tuple(name for name, share in shares.items() if share > 0.5)
            return Choice(label=";".join(there), probabilities=shares, labels=there)
        case _:
            shares = dict(zip(outputs, torch.softmax(logits, dim=-1).tolist(), strict=True))
            return Choice(label=max(shares, key=shares.__getitem__), probabilities=shares)


def _tagged(words: Sequence[str], offsets: Offsets, logits: Tensor, outputs: Sequence[str]) -> Choice:
    """Each word with the tag of its first piece; words behind the longest text have none."""
    places = first_pieces([len(word) for word in words], offsets)
    chosen = logits.argmax(-1).tolist()
    tags = tuple((word, outputs[chosen[places[i]]] if i in places else None) for i, word in enumerate(words))
    told = " ".join(word if tag is None else f"{word}/{tag}" for word, tag in tags)
    return Choice(label=told, probabilities={}, tags=tags)
