"""Whether base, task, adapter, tokenizer and examples fit together: asked before the first round, answered all at once.

One place knows what each can be in the way of the other, and everybody asks it: `base build` and `data check`,
`config validate`, the simulation, whatever loads a model for a plan (coordinator, device, `adapter`), and the encoded
examples on their way to a trainer. What only shows in a run (`index out of range in self` on a device) belongs here.

Needs no torch: a model's config is read as JSON.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from fedpeft.base.artifact import BaseArtifact
from fedpeft.base.source import CONFIG_FILE, read_json, resolve
from fedpeft.catalogue.p_tuning import PTuning
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.adapter import Adapter
from fedpeft.config.model import Task
from fedpeft.data import EncodedDataset
from fedpeft.errors import ConfigInvalid, DataInvalid, FedpeftError, Problem
from fedpeft.files import expanded
from fedpeft.tasks.form import served

__all__ = ["expect_examples_fit", "expect_fit", "fit_problems", "positions_of", "published_config"]

POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
UNBOUNDED = 2**31

AFTER_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "longformer"}
    | {"mpnet", "xmod", "luke", "mluke", "ibert", "esm", "biogpt", "layoutlmv3"}
)
"""Families that number positions from behind the padding's id: their tables have that many rows and one that no text
uses (RoBERTa: 514 rows for 512 tokens)."""


def positions_of(config: Mapping[str, Any]) -> int:
    """The longest text in tokens that a model takes, by its config.json; ``UNBOUNDED`` if it says nothing."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and not any(key in config for key in POSITION_KEYS):
        config = inner
    rows = next((config[key] for key in POSITION_KEYS if isinstance(config.get(key), int) and config[key] > 0), None)
    if rows is None:
        return UNBOUNDED
    if str(config.get("model_type")) in AFTER_PADDING and str(config.get("position_embedding_type")) != "rotary":
        padding = config.get("pad_token_id")
        rows -= (padding if isinstance(padding, int) else 1) + 1
    return int(rows)


def _prompts(adapter: Adapter) -> list[Prompt | PTuning]:
    """The methods whose rows stand before the text and take positions of it."""
    return [one for one in (adapter.of(Prompt), adapter.of(PTuning)) if one is not None]


def fit_problems(
    config: Mapping[str, Any], task: Task, adapter: Adapter | None = None, *, tasks: Collection[str] | None = None
) -> list[Problem]:
    """What keeps a base from a task with an adapter.

    Args:
        config: the base's config.json.
        task: kind and ``max_length``.
        adapter: whose prompts take positions too.
        tasks: the forms that the base can take; None: not known yet.
    """
    problems = []
    if tasks is not None and task.record.form not in tasks:
        found = f"{config.get('model_type')} for {' and '.join(tasks)}"
        remedy = "Use another base.model."
        problems.append(Problem(where="task.kind", expected=f"a base for {task.kind}", found=found, remedy=remedy))
    positions = positions_of(config)
    prompts = 0 if adapter is None else sum(one.length for one in _prompts(adapter))
    if prompts + task.max_length > positions:
        taken = f" and the prompt takes {prompts}" if prompts else ""
        expected = f"at most {max(positions - prompts, 0)}: the model has {positions} positions{taken}"
        problems.append(Problem(where="task.max_length", expected=expected, found=str(task.max_length)))
    return problems


def expect_fit(artifact: BaseArtifact, task: Task, adapter: Adapter | None = None) -> None:
    """Refuses a base that cannot serve a task with an adapter.

    Raises:
        ConfigInvalid: every problem of ``fit_problems``.
    """
    config = read_json(artifact.path / CONFIG_FILE)
    if problems := fit_problems(config, task, adapter, tasks=served(tuple(artifact.manifest.tasks))):
        raise ConfigInvalid("The base does not fit the task.", problems=problems)


def published_config(model: str) -> Mapping[str, Any] | None:
    """config.json of a model that lies on this machine as a folder; None where it would have to be fetched or built."""
    path = expanded(model)
    if not path.is_dir():
        return None
    try:
        return read_json(resolve(model).root / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else None  # type: ignore[operator]
    except FedpeftError:
        return None  # whoever builds it says so


def expect_examples_fit(examples: Iterable[EncodedDataset], *, vocabulary: int, where: str = "") -> None:
    """Refuses encoded examples that the model cannot take or cannot tell apart.

    Args:
        examples: of one client or of all.
        vocabulary: rows of the model's embedding.
        where: whose they are, for the message.

    Raises:
        DataInvalid: token ids beyond the embedding, or nothing but unknown tokens in every example.
    """
    sets = [one for one in examples if len(one)]
    largest = max((int(np.max(ids)) for one in sets for ids in one.input_ids if len(ids)), default=0)
    problems = []
    place = where or "tokenizer"
    if largest >= vocabulary:
        expected = f"token ids below {vocabulary}, the rows of the model's embedding"
        remedy = "The tokenizer is not this model's: take both from one place."
        problems.append(Problem(where=place, expected=expected, found=str(largest), remedy=remedy))
    count = sum(len(one) for one in sets)
    if count and sum(one.unknown for one in sets) == count:
        remedy = "It lacks its vocabulary, or is for another language."
        found = f"nothing but unknown tokens in all {count:,} examples"
        problems.append(Problem(where=place, expected="a tokenizer that knows these texts", found=found, remedy=remedy))
    if problems:
        raise DataInvalid("The examples do not fit the base.", problems=problems)
