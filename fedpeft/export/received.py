"""An adapter that came over the network, on the base that this device holds: data only, whatever its files say.

peft reads more from ``adapter_config.json`` than numbers: the name of a module to import (``megatron_core``,
``auto_mapping``), a pattern to match names by, a base to download. So a folder is loaded only if it has nothing but
what fedpeft's own export writes; its tokenizer, whose chat template is a program, is not read: the base has one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError
from torch import nn

from fedpeft.base import BaseArtifact, load_model
from fedpeft.bounded_json import JsonRefused, JsonValue, loads
from fedpeft.config.task import Task
from fedpeft.errors import IntegrityFailed, SpecMismatch
from fedpeft.export.known_warnings import without_known_warnings
from fedpeft.tasks import Convention
from fedpeft.tasks.form import FORM_OF, SINGLE, Form

__all__ = ["SETTINGS", "Received", "load_received", "read_received"]

SETTINGS = frozenset(
    {
        *("peft_type", "task_type", "inference_mode", "modules_to_save", "base_model_name_or_path", "revision"),
        *("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "use_dora", "alpha", "feedforward_modules"),
        *("rank_pattern", "alpha_pattern", "use_rslora", "save_projection", "decompose_both"),
        *("num_layers", "num_transformer_submodules", "num_attention_heads", "num_virtual_tokens", "token_dim"),
        *("prefix_projection", "adapter_len", "adapter_layers", "fan_in_fan_out"),
    }
)
"""Keys that ``export_peft`` writes (tests/export/test_received.py holds both together)."""
SUFFIXES = frozenset({".json", ".safetensors", ".md", ".jinja", ".txt", ".model"})
"""Of files that an export has: nothing that is pickled, nothing that is code (``.jinja`` is not read)."""
LISTS = ("target_modules", "modules_to_save", "feedforward_modules")
"""Names, never a pattern: a regular expression can take for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a folder says of itself.

    Args:
        form: of the model.
        labels: the classes in the order of the logits; empty for a language model.
        problem_type: transformers' name of a classifier's loss.
        base: digest of the base artifact that it belongs on.
        task: what it was trained on; None: its files do not say.
        in_peft: whether the PEFT files are the whole adapter; else ``union.safetensors`` is.
        convention: the columns of its examples: how a language model is asked, and whether texts come in pairs; None:
            its files do not say.
    """

    form: Form
    labels: tuple[str, ...]
    problem_type: str
    base: str
    task: Task | None
    in_peft: bool
    convention: Convention | None = None


def read_received(folder: Path) -> Received:
    """Check a folder's JSON files.

    Raises:
        IntegrityFailed: it holds anything but what fedpeft's export writes.
    """
    others = sorted(path.name for path in folder.iterdir() if path.suffix not in SUFFIXES)
    if others or not (folder / "adapter_model.safetensors").is_file():
        found = others[0] if others else "no adapter_model.safetensors"
        raise IntegrityFailed(f"Expected the files of fedpeft's export in {folder}, found {found}.")
    settings, summary = _read(folder / "adapter_config.json"), _read(folder / "inspect.json")
    if unknown := sorted(settings.keys() - SETTINGS):
        raise IntegrityFailed(f"Expected the settings of fedpeft's export in {folder}, found also {unknown[0]!r}.")
    for name in LISTS:
        value = settings.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise IntegrityFailed(f"Expected a list of names as {name} in {folder}, found another value.")
    labels, base, lacks = summary.get("labels", []), summary.get("base_digest"), summary.get("peft_lacks")
    if not (isinstance(labels, list) and isinstance(base, str) and isinstance(lacks, list)):
        raise IntegrityFailed(f"Expected labels, base_digest and peft_lacks in {folder}/inspect.json, found others.")
    problem = str(summary.get("problem_type") or SINGLE)
    form = FORM_OF.get(str(settings.get("task_type")))
    if form is None:
        raise IntegrityFailed(
            f"Expected a task_type of {', '.join(FORM_OF)} in {folder}/adapter_config.json, "
            f"found {settings.get('task_type')!r}."
        )
    names = tuple(map(str, labels))
    task = _task(folder, summary.get("task"), names, form)
    convention = _convention(folder, summary.get("task"))
    return Received(
        form=form,
        labels=names,
        problem_type=problem,
        base=base,
        task=task,
        in_peft=not lacks,
        convention=convention,
    )


def _convention(folder: Path, said: JsonValue) -> Convention | None:
    """The columns that inspect.json names."""
    name = said.get("convention") if isinstance(said, dict) else None
    if not name:
        return None
    found = next((one for one in Convention if one.value == name), None)
    if found is None:
        raise IntegrityFailed(f"Expected columns that fedpeft knows in {folder}/inspect.json, found {name!r:.40}.")
    return found


def _task(folder: Path, said: JsonValue, labels: tuple[str, ...], form: Form) -> Task | None:
    """The task that inspect.json names, which has to be one of the model's form."""
    if said is None:
        return None
    settings = {name: value for name, value in said.items() if name != "convention"} if isinstance(said, dict) else {}
    try:
        task = Task.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        raise IntegrityFailed(
            f"Expected a [task] of run.toml in {folder}/inspect.json, found {error.error_count()} faults."
        ) from error
    if task.record.form != form or (task.record.a_number and labels not in ((), task.outputs)):
        raise IntegrityFailed(f"Expected a task of this form of model in {folder}/inspect.json, found {task.kind}.")
    return task.model_copy(update={"labels": labels if task.record.named_outputs else ()})


def load_received(folder: Path, artifact: BaseArtifact) -> nn.Module:
    """The base with the adapter, ready to answer.

    Args:
        folder: of ``read_received``.
        artifact: the base that it names.

    Raises:
        IntegrityFailed: see ``read_received``; or the files are damaged.
        SpecMismatch: it belongs on another base.
    """
    about = read_received(folder)
    if about.base != artifact.digest:
        raise SpecMismatch(f"Expected an adapter of the base {artifact.digest}, found one of {about.base}.")
    model = load_model(artifact, task=about.form, labels=about.labels, head_seed=0, problem_type=about.problem_type)
    if not about.in_peft:
        from fedpeft.export.export import load_union

        return load_union(model, folder).model.eval()
    from peft import PeftModel

    with without_known_warnings():
        return cast("nn.Module", PeftModel.from_pretrained(model, folder)).eval()


def _read(path: Path) -> dict[str, JsonValue]:
    try:
        with path.open("rb") as file:
            content = loads(file.read((1 << 20) + 1))
    except (OSError, JsonRefused) as error:
        raise IntegrityFailed(f"Expected {path.name} of fedpeft's export in {path.parent}, found {error}.") from error
    if not isinstance(content, dict):
        raise IntegrityFailed(f"Expected an object in {path}, found {type(content).__name__}.")
    return content
