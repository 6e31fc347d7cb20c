"""What a base says of itself before any device loads it: its tokenizer, positions, the matrices that can be trained.

Facts follow from an artifact's files. They lie beside its manifest and not in it, so that they can grow without
giving the same base another digest, and an artifact that was fetched, or built before there were facts, has the same
(docs/adr/0017). Imports torch only to find facts that no file holds yet.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AllowInfNan, Field, PositiveFloat, PositiveInt, ValidationError

from fedpeft.base.artifact import BaseArtifact, TaskName
from fedpeft.base.fact_entries import Entry, TokenizerFacts
from fedpeft.base.fit import UNBOUNDED, positions_of
from fedpeft.tasks.form import SEQUENCE

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FACTS_FILE", "Facts", "TokenizerFacts", "facts_of", "model_facts", "write_facts"]

FACTS_FILE = "facts.json"
_CLASSES = (3, 7)


class HeadFacts(Entry):
    """How large the class head is."""

    once: int = Field(description="Coordinates that the number of classes does not change.")
    a_class: int = Field(description="Coordinates of one class.")


class ModelFacts(Entry):
    """What the architecture takes."""

    embedding_rows: int | None = Field(description="Token ids must be below; None: no embedding of the usual kind.")
    positions: int | None = Field(description="The longest sequence that the model was made for.")
    positions_are_rows: bool = Field(description="Positions are rows of a table: a longer sequence fails.")
    matrices: dict[str, int] = Field(description="Linear matrices of the layers by the end of their name.")
    head: HeadFacts = Field(description="Of a classifier; zeros where the base serves none.")
    kept_floats: tuple[tuple[PositiveInt, Annotated[PositiveFloat, AllowInfNan(allow_inf_nan=False)]], ...] = Field(
        default=(),
        description="What autograd keeps of a layer for a token, by the length of the text (``kept_floats``); empty: "
        "not known.",
    )


class Facts(Entry):
    """All of it."""

    tokenizer: TokenizerFacts
    model: ModelFacts
    left_out: tuple[str, ...] = Field(default=(), description="Tensors of the source that no task uses.")
    notes: tuple[str, ...] = Field(default=(), description="What the build changed or passed over, in words.")


def facts_of(artifact: BaseArtifact) -> Facts:
    """The facts of an artifact: as noted when it was built, or found anew.

    Raises:
        ConfigInvalid: the tokenizer does not fit the model (of an artifact that was built before this was checked).
    """
    try:
        return Facts.model_validate_json((artifact.path / FACTS_FILE).read_bytes())
    except (OSError, ValidationError):
        pass
    from fedpeft.base.architecture import read_config, skeleton
    from fedpeft.base.tokenizer import check_tokenizer, open_tokenizer

    content, tasks = json.loads((artifact.path / "config.json").read_text(encoding="utf-8")), artifact.manifest.tasks
    head = tasks[SEQUENCE].head if SEQUENCE in tasks else ()
    task = next(iter(tasks))
    model = skeleton(read_config(content), task)
    found = model_facts(model, content, task, head, counted=_agree(model, artifact))
    facts = Facts(tokenizer=check_tokenizer(open_tokenizer(artifact.path), found.embedding_rows), model=found)
    with suppress(OSError):  # a store that may not be written finds them again
        write_facts(facts, artifact.path)
    return facts


def _agree(model: "nn.Module", artifact: BaseArtifact) -> bool:
    """Whether the configuration is that of the weights: one that is not may be made to cost whoever runs it."""
    known = artifact.manifest.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return all(shapes.get(name, entry.shape) == tuple(entry.shape) for name, entry in known.items()) and (
        2 * len(known.keys() & shapes.keys()) >= len(shapes)
    )


def write_facts(facts: Facts, folder: Path) -> None:
    """Note them beside the manifest."""
    content = json.dumps(facts.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / FACTS_FILE).write_text(content + "\n", encoding="ascii")


def model_facts(
    model: "nn.Module", content: Mapping[str, Any], task: TaskName, head: Collection[str], *, counted: bool = True
) -> ModelFacts:
    """Read a model on the meta device.

    Args:
        model: for any task of the base.
        content: its config.json.
        task: of the model.
        head: the parameters that the task of classification adds; empty: the base does not serve it.
        counted: whether layers are run to count what they keep (``kept_floats``).
    """
    from torch import nn

    from fedpeft.base.kept_floats import counted_floats

    leaves = Counter(
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if re.search(r"\.\d+\.", path) and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    )
    positions, rows = positions_of(content), _position_table(model)
    return ModelFacts(
        embedding_rows=_embedding_rows(model),
        positions=None if positions == UNBOUNDED else positions,
        positions_are_rows=rows is not None,
        matrices=dict(sorted(leaves.items())),
        head=_head_facts(content, head),
        kept_floats=counted_floats(content, task) if counted else (),
    )


def _head_facts(content: Mapping[str, Any], head: Collection[str]) -> HeadFacts:
    """What a class costs, from the heads for two numbers of classes."""
    from fedpeft.base.architecture import read_config, skeleton

    if not head:
        return HeadFacts(once=0, a_class=0)

    def coordinates(classes: int) -> int:
        names = {str(number): str(number) for number in range(classes)}
        labels = {"id2label": names, "label2id": {name: int(name) for name in names}}
        model = skeleton(read_config({**content, **labels}), SEQUENCE)
        return sum(math.prod(tensor.shape) for name, tensor in model.state_dict().items() if name in head)

    few, more = (coordinates(classes) for classes in _CLASSES)
    a_class = (more - few) // (_CLASSES[1] - _CLASSES[0])
    return HeadFacts(once=few - _CLASSES[0] * a_class, a_class=a_class)


def _embedding_rows(model: "nn.Module") -> int | None:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        return int(embedding.weight.shape[0])
    except (NotImplementedError, AttributeError):
        return None


def _position_table(model: "nn.Module") -> int | None:
    """Rows of a learned table of positions that a sequence can use: RoBERTa and OPT keep the first few for padding."""
    from torch import nn

    for path, module in model.named_modules():
        leaf = path.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not re.fullmatch(r"wpe|.*position.*embed.*|embed_positions", leaf):
            continue
        kept = getattr(module, "offset", None)
        if kept is None:
            kept = 0 if module.padding_idx is None else module.padding_idx + 1
        return int(module.num_embeddings) - int(kept)
    return None
