"""The rows of the table: each task on each kind of base and each way to write its examples, trained once."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedpeft.tasks import TASKS

__all__ = ["BASES", "ROWS", "Made", "Row", "make"]

A, B = ("red", "late", "good", "please"), ("fox", "flight", "refund", "service", "plane")
COUNT, ASKED = 30, 5
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BASES = ("bert", "llama", "bart", "t5")


def text(i: int) -> str:
    """Thirty different ones."""
    return f"hello {A[i % 4]} {B[i % 5]} {'quick' if i % 3 else 'why no'} {B[i * 3 % 5]}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Args:
        kind: the task.
        base: of the zoo.
        example: number i.
        longest: task.max_length.
        rate: of learning; one at which the trained model answers one thing only would compare nothing.
    """

    kind: str
    base: str
    example: Callable[[int], dict[str, Any]]
    longest: int = 64
    rate: float = 0.05


def one_class(i: int) -> dict[str, Any]:
    return {"text": text(i), "label": ("good", "so so", "bad")[i % 3]}


def pair(i: int) -> dict[str, Any]:
    return {"text": text(i), "text_pair": text(i + i % 2), "label": ("same", "other")[i % 2]}


def labels(i: int) -> dict[str, Any]:
    return {"text": text(i), "label": [B[i % 5], *["quick"] * (i % 3 > 0)]}


def number(i: int) -> dict[str, Any]:
    return {"text": text(i), "label": i % 5}


def likeness(i: int) -> dict[str, Any]:
    return {"text": text(i), "text_pair": text(i + i % 3), "label": (i % 3) / 2}


def tags(i: int) -> dict[str, Any]:
    words = text(i).split()
    return {"words": words, "tags": ["O", "B-how", *["I-how"] * (i % 2), *["O"] * (len(words) - 2 - i % 2)]}


def messages(i: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text(i)}, {"role": "assistant", "content": B[i % 5]}]}


def completion(i: int) -> dict[str, Any]:
    return {"prompt": text(i), "completion": f" {B[i % 5]} please"}


def instruction(i: int) -> dict[str, Any]:
    return {"instruction": text(i), "input": "fox" if i % 2 else "", "output": B[i % 5]}


def plain_text(i: int) -> dict[str, Any]:
    return {"text": text(i)}


def source(i: int) -> dict[str, Any]:
    return {"source": text(i), "target": f"{A[i % 4]} {B[i % 5]}"}


def preferred(i: int) -> dict[str, Any]:
    return {"prompt": text(i), "chosen": f" {B[i % 5]} please", "rejected": f" {A[i % 4]}"}


def conversation(i: int) -> dict[str, Any]:
    """As ``preferred``, each a list of messages."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": roles[name], "content": said.strip()}] for name, said in preferred(i).items()}


def wanted(i: int) -> dict[str, Any]:
    return {"prompt": text(i), "completion": f" {B[i % 5] if i % 2 else A[i % 4]}", "label": bool(i % 2)}


def together(i: int) -> dict[str, Any]:
    return {"anchor": text(i), "positive": f"{text(i)[6:]} great {B[i % 5]}"}


ROWS: Mapping[str, Row] = {
    "classify": Row(kind="classify", base="bert", example=one_class),
    "classify, cut": Row(kind="classify", base="bert", example=one_class, longest=12),
    "classify, pairs": Row(kind="classify", base="bert", example=pair, longest=24),
    "classify, decoder": Row(kind="classify", base="llama", example=one_class),
    "multi-label": Row(kind="multi-label", base="bert", example=labels),
    "multi-label, decoder": Row(kind="multi-label", base="llama", example=labels),
    "regression": Row(kind="regression", base="bert", example=number),
    "regression, pairs": Row(kind="regression", base="bert", example=likeness),
    "regression, decoder": Row(kind="regression", base="llama", example=number),
    "token-classify": Row(kind="token-classify", base="bert", example=tags),
    "token-classify, decoder": Row(kind="token-classify", base="llama", example=tags),
    "causal-lm, messages": Row(kind="causal-lm", base="llama", example=messages, longest=160),
    "causal-lm, prompts": Row(kind="causal-lm", base="llama", example=completion),
    "causal-lm, instructions": Row(kind="causal-lm", base="llama", example=instruction, longest=320, rate=0.01),
    "causal-lm, text": Row(kind="causal-lm", base="llama", example=plain_text),
    "seq2seq": Row(kind="seq2seq", base="bart", example=source, rate=0.01),
    "seq2seq, relative": Row(kind="seq2seq", base="t5", example=source),
    "preference": Row(kind="preference", base="llama", example=preferred),
    "preference, conversations": Row(kind="preference", base="llama", example=conversation, longest=320),
    "preference, wanted": Row(kind="preference", base="llama", example=wanted),
    "embeddings": Row(kind="embeddings", base="bert", example=together),
    "embeddings, decoder": Row(kind="embeddings", base="llama", example=together),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A row's run.

    Args:
        row: of the table.
        run: its directory.
        store: with its base.
        digest: of the base.
        source: the base as published.
        base: the base as `fedpeft base export` wrote it, for plain transformers.
        file: the examples of ``asked``.
    """

    row: Row
    run: Path
    store: Path
    digest: str
    source: Path
    base: Path
    file: Path

    @property
    def final(self) -> Path:
        """What others load."""
        return self.run / "adapters" / "final"

    @cached_property
    def asked(self) -> list[dict[str, Any]]:
        """Examples, as many as a batch and more than one."""
        return [self.row.example(i) for i in range(ASKED)]


def make(row: Row, source: Path, base: Path, store: Path, digest: str, folder: Path) -> Made:
    """Train the row: one round of three clients, at a rate at which nobody takes the adapter for the base."""
    import fedpeft

    kind = TASKS[row.kind]  # type: ignore[index]
    config = {
        "run": {"name": "row"},
        "base": {"model": digest},
        "task": {"kind": row.kind, "max_length": row.longest, **({"range": [0, 4]} if kind.a_number else {})},
        "adapter": {"lora": {"rank": 2, "targets": ["q", "v"]}},
        "data": {"partition": {"by": "iid", "clients": 3}},
        "train": {"local_steps": 4, "batch_size": 8, "learning_rate": row.rate},
        "rounds": {"count": 1},
    }
    result = fedpeft.simulate(config, [row.example(i) for i in range(COUNT)], out=folder / "runs", store=store)
    file = folder / "asked.jsonl"
    file.write_text("".join(json.dumps(row.example(i)) + "\n" for i in range(ASKED)))
    return Made(row=row, run=result.path, store=store, digest=digest, source=source, base=base, file=file)
