"""What a model with outputs of its own answers to a text: a class, a number, some labels, or a tag for each word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedpeft.base.architecture import form_of
from fedpeft.data import Record
from fedpeft.data.encode_texts import first_pieces
from fedpeft.data.targets import words_of
from fedpeft.tasks.form import MULTI, NUMBER, SEQUENCE, SINGLE, TAGS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Prediction", "answered", "has_one_class", "question_of"]


TAB = "\t"
"""Between the two texts of a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """An answer.

    Args:
        words: ``urgent``, ``3.4``, ``heart;lung`` (empty: none), or ``word/TAG`` for each word.
        probabilities: of each class, or of each label by itself; empty for numbers and tags.
    """

    words: str
    probabilities: dict[str, float]


def has_one_class(model: nn.Module) -> bool:
    """Whether the outputs are classes of a whole text, of which one is chosen."""
    config: PretrainedConfig = model.config
    return form_of(model) == SEQUENCE and config.problem_type in (None, "", SINGLE)


def question_of(row: Record) -> str | None:
    """What a row asks a model with outputs of its own, as ``answered`` takes it; None: nothing.

    Example:
        >>> question_of({"text": "a", "text_pair": "b"}), question_of({"words": ["a", "b"]})
        ('a\\tb', 'a b')
    """
    if (words := words_of(row.get("words"))) is not None:
        return " ".join(words)
    text, pair = row.get("text"), row.get("text_pair")
    if not isinstance(text, str):
        return None
    return text if not isinstance(pair, str) else f"{text.replace(TAB, ' ')}{TAB}{pair}"


@torch.no_grad()
def answered(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    outputs: Sequence[str],
    longest: int,
    *,
    pairs: bool,
) -> Prediction:
    """What the model says of a text.

    Args:
        model: a sequence or token classifier.
        tokenizer: the base's.
        text: what is asked; words between spaces where words are tagged.
        outputs: their names in order.
        longest: tokens to which it is cut.
        pairs: whether a tab stands between the two texts of a pair.
    """
    tags = form_of(model) == TAGS
    first, tab, second = text.partition(TAB)
    texts = (" ".join(text.split()),) if tags else (first, second) if pairs and tab else (text,)
    encoding = tokenizer(*texts, truncation=True, max_length=longest, return_offsets_mapping=tags)
    given = {name: torch.tensor([encoding[name]]) for name in ("input_ids", "attention_mask")}
    config: PretrainedConfig = model.config
    if len(texts) > 1 and int(getattr(config, "type_vocab_size", 0) or 0) > 1 and "token_type_ids" in encoding:
        given["token_type_ids"] = torch.tensor([encoding["token_type_ids"]])
    logits: Tensor = model(**given).logits[0].float()
    if tags:
        return Prediction(words=_tagged(text.split(), encoding["offset_mapping"], logits, outputs), probabilities={})
    if config.problem_type == NUMBER:
        return Prediction(words=f"{float(logits[0]):.4g}", probabilities={})
    if config.problem_type == MULTI:
        shares = dict(zip(outputs, torch.sigmoid(logits).tolist(), strict=True))
        return Prediction(words=";".join(name for name, share in shares.items() if share > 0.5), probabilities=shares)
    shares = dict(zip(outputs, torch.softmax(logits, dim=-1).tolist(), strict=True))
    return Prediction(words=max(shares, key=shares.__getitem__), probabilities=shares)


def _tagged(words: Sequence[str], offsets: Sequence[tuple[int, int]], logits: Tensor, outputs: Sequence[str]) -> str:
    """Each word with the tag of its first piece; words behind the longest text have none."""
    places = first_pieces([len(word) for word in words], offsets)
    chosen = logits.argmax(-1).tolist()
    return " ".join(f"{word}/{outputs[chosen[places[i]]]}" if i in places else word for i, word in enumerate(words))
