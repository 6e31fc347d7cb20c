"""Records -> token ids and labels, ready for ``fedpeft.tuning``. No torch: the tokenizer is an argument.

causal-lm: ``prompt`` + ``completion`` and Alpaca train on the completion only, ``messages`` on the
assistant's turns only, ``text`` on everything; a label of -100 marks a token that is not trained on.
Labels are not shifted: as in Hugging Face models, position i is predicted from the positions before i.
classify: the text as it is, and the index of its class.

Invariants: no example is longer than ``max_length``; each has at least one token to train on; examples
keep their order, one for each record.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedpeft.config.model import Task
from fedpeft.data.records import Record, Records
from fedpeft.data.tasks import Convention, Message, detect, label_name, messages_of
from fedpeft.errors import DataInvalid

__all__ = ["IGNORED", "EncodedDataset", "Rendered", "Tokenizer", "encode", "render", "token_lengths"]

IGNORED = -100
"""The label of a token that is not trained on: what PyTorch's cross entropy ignores by default."""

BATCH = 1024
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

TokenIds = npt.NDArray[np.int32]


class Encoding(Protocol):
    """What a tokenizer returns for a list of texts."""

    def __getitem__(self, key: str) -> list[list[object]]:
        """``input_ids``, or ``offset_mapping``: (begin, end) in characters for each token."""
        ...


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: str | None
    chat_template: str | None

    def __call__(
        self,
        text: list[str],
        *,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        verbose: bool = True,
    ) -> Encoding:
        """Token ids of each text."""
        ...

    def apply_chat_template(
        self, conversation: list[Message], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as the model's text, for ``tokenize=False``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDataset:
    """Token ids and labels of one client's examples.

    Args:
        input_ids: for each example its tokens, int32.
        labels: classify: class indices, int64, shape (n,). causal-lm: for each example one int64 label a token.
        truncated: how many examples were cut to ``max_length``.
    """

    input_ids: tuple[TokenIds, ...]
    labels: npt.NDArray[np.int64] | tuple[npt.NDArray[np.int64], ...]
    truncated: int

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One causal-lm example as text.

    Args:
        text: what is tokenized.
        trained: ranges of characters that are trained on.
        bos: whether the tokenizer's BOS, if it uses one, goes before it (a chat template writes its own).
        eos: whether EOS goes after it, as a token to train on.
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    bos: bool = True
    eos: bool = True


def encode(records: Records, task: Task, labels: Sequence[str], tokenizer: Tokenizer) -> EncodedDataset:
    """Tokenize validated records.

    Too long an example loses the beginning of its prompt first (a quarter of ``max_length`` of it stays),
    then its end: what is trained on is what is kept.

    Args:
        records: of one client; validated (``fedpeft.data.validate``). May be empty.
        task: kind and ``max_length`` (tokens).
        labels: the class names in order; for classify.
        tokenizer: the base model's; a fast one for causal-lm.

    Returns:
        One encoded example for each record, in order.

    Raises:
        DataInvalid: a label outside ``labels``, columns of another task, a tokenizer without offsets, or a text
            of which it keeps nothing.
    """
    if task.kind == "classify":
        return _encode_classify(records, task, labels, tokenizer)
    if not records:
        return EncodedDataset(input_ids=(), labels=(), truncated=0)
    if not getattr(tokenizer, "is_fast", True):
        raise DataInvalid("Expected a fast tokenizer (tokenizer.json), found a slow one; convert the base's tokenizer.")
    convention = detect(records, "causal-lm")
    rendered = [render(row, convention, tokenizer) for row in records.rows]
    ids: list[TokenIds] = []
    targets: list[npt.NDArray[np.int64]] = []
    truncated = 0
    bos = _bos(tokenizer)
    for origin, (example, tokens, trained) in zip(records.origins, _tokenized(rendered, tokenizer, bos), strict=True):
        if not trained.any():
            raise DataInvalid(f"Expected something to train on in {origin}, found no token that this tokenizer knows.")
        kept, cut = _fit(trained, task.max_length, keep_first=example.bos and bos is not None)
        truncated += cut
        ids.append(tokens[kept])
        targets.append(np.where(trained, tokens, IGNORED).astype(np.int64)[kept])
    return EncodedDataset(input_ids=tuple(ids), labels=tuple(targets), truncated=truncated)


def token_lengths(records: Records, task: Task, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Tokens of each validated record before any truncation, shape (n,)."""
    if task.kind == "classify":
        return np.array([len(ids) for texts in _batches(records) for ids in _ids(tokenizer, texts)], dtype=np.int64)
    if not records:
        return np.zeros(0, dtype=np.int64)
    convention = detect(records, "causal-lm")
    rendered = [render(row, convention, tokenizer) for row in records.rows]
    return np.array([len(ids) for _, ids, _ in _tokenized(rendered, tokenizer, _bos(tokenizer))], dtype=np.int64)


def render(row: Record, convention: Convention, tokenizer: Tokenizer) -> Rendered:
    """One validated causal-lm row as text, and which part of it is trained on."""
    if convention is Convention.MESSAGES:
        return _render_messages(messages_of(row), tokenizer)
    if convention is Convention.TEXT:
        text = str(row["text"])
        return Rendered(text=text, trained=((0, len(text)),))
    if convention is Convention.ALPACA:
        template = ALPACA_INPUT if row.get("input") else ALPACA_PLAIN
        prompt = template.format(instruction=row["instruction"], input=row.get("input"))
        completion = str(row["output"])
    else:
        prompt, completion = str(row["prompt"]), str(row["completion"])
    return Rendered(text=prompt + completion, trained=((len(prompt), len(prompt) + len(completion)),))


def _render_messages(turns: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Through the chat template; without one, ``role: content`` lines closed by EOS after each answer."""
    if not tokenizer.chat_template:
        return _render_plain_turns(turns, tokenizer.eos_token or "")
    text = tokenizer.apply_chat_template(list(turns), tokenize=False)
    trained: list[tuple[int, int]] = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(list(turns[:i]), tokenize=False, add_generation_prompt=True) if i else ""
        upto = tokenizer.apply_chat_template(list(turns[: i + 1]), tokenize=False)
        # Some templates rewrite earlier turns (dropping old reasoning, say): such a turn is context, not a target.
        if text.startswith(upto) and upto.startswith(before):
            trained.append((len(before), len(upto)))
    if not trained:
        raise DataInvalid(
            "Expected a chat template that writes a conversation's beginning the same whatever follows, found one "
            "that does not; render the text yourself and use the columns prompt and completion."
        )
    return Rendered(text=text, trained=tuple(trained), bos=False, eos=False)


def _render_plain_turns(turns: Sequence[Message], eos: str) -> Rendered:
    text = ""
    trained: list[tuple[int, int]] = []
    for turn in turns:
        text += f"{turn['role']}: "
        begin = len(text)
        answer = turn["role"] == "assistant"
        text += f"{turn['content']}{eos if answer else ''}\n"
        if answer:
            trained.append((begin, len(text)))
    return Rendered(text=text, trained=tuple(trained), eos=False)


def _tokenized(
    rendered: Sequence[Rendered], tokenizer: Tokenizer, bos: int | None
) -> Iterable[tuple[Rendered, TokenIds, npt.NDArray[np.bool_]]]:
    """Each example's tokens with BOS and EOS, and which of them are trained on."""
    eos = tokenizer.eos_token_id
    for start in range(0, len(rendered), BATCH):
        batch = list(rendered[start : start + BATCH])
        encoding = tokenizer(
            [example.text for example in batch], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for example, ids, offsets in zip(batch, encoding["input_ids"], encoding["offset_mapping"], strict=True):
            tokens = np.asarray(ids, dtype=np.int32)  # (T,)
            begins, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T  # (T,), (T,)
            trained = np.zeros(len(tokens), dtype=np.bool_)
            for begin, end in example.trained:
                # Any overlap counts: tokenizers merge a prompt's last space into the completion's first word.
                trained |= (begins < end) & (ends > begin)
            if example.bos and bos is not None:
                tokens, trained = np.concatenate(([np.int32(bos)], tokens)), np.concatenate(([False], trained))
            if example.eos and eos is not None:
                tokens, trained = np.concatenate((tokens, [np.int32(eos)])), np.concatenate((trained, [True]))
            yield example, tokens.astype(np.int32), trained


def _fit(trained: npt.NDArray[np.bool_], max_length: int, *, keep_first: bool) -> tuple[npt.NDArray[np.int64], bool]:
    """The positions to keep of an example, at most ``max_length``, and whether any was cut."""
    size = len(trained)
    if size <= max_length:
        return np.arange(size), False
    lead = int(np.argmax(trained))  # tokens before the first trained one
    drop = min(size - max_length, max(0, lead - max_length // 4))
    kept = np.arange(drop, min(size, drop + max_length))
    if drop and keep_first:
        kept[0] = 0
    return kept, True


def _bos(tokenizer: Tokenizer) -> int | None:
    """The BOS token if this tokenizer begins every text with it."""
    wrapped = tokenizer([""])["input_ids"][0]
    return tokenizer.bos_token_id if wrapped and wrapped[0] == tokenizer.bos_token_id else None


def _encode_classify(records: Records, task: Task, labels: Sequence[str], tokenizer: Tokenizer) -> EncodedDataset:
    index = {name: i for i, name in enumerate(labels)}
    classes = np.empty(len(records), dtype=np.int64)
    for i, (row, origin) in enumerate(zip(records.rows, records.origins, strict=True)):
        name = label_name(row.get("label"))
        if name not in index:
            raise DataInvalid(f"Expected a label of {', '.join(labels)} in {origin}, found {row.get('label')!r:.40}.")
        classes[i] = index[name]
    ids: list[TokenIds] = []
    truncated = 0
    for texts in _batches(records):
        # The tokenizer itself truncates, so that its closing special tokens survive.
        cut = tokenizer(texts, truncation=True, max_length=task.max_length, verbose=False)["input_ids"]
        truncated += sum(len(a) > len(b) for a, b in zip(_ids(tokenizer, texts), cut, strict=True))
        ids.extend(np.asarray(tokens, dtype=np.int32) for tokens in cut)
    return EncodedDataset(input_ids=tuple(ids), labels=classes, truncated=truncated)


def _batches(records: Records) -> Iterable[list[str]]:
    for start in range(0, len(records), BATCH):
        yield [str(row["text"]) for row in records.rows[start : start + BATCH]]


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[object]]:
    return tokenizer(texts, verbose=False)["input_ids"]
