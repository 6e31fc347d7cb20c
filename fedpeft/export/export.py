"""The finished adapter as files for others: the PEFT format where it is exact, our own for the rest.

A directory holds ``adapter_config.json`` and ``adapter_model.safetensors`` (load with peft alone),
``README.md`` (a model card with the class names), the base's tokenizer with its chat template, and
``inspect.json`` (what went where, and how far the files are from the model that was trained). When one PEFT
directory cannot hold every block, ``union.json`` and ``union.safetensors`` hold all of them, for
``load_union``, and card and summary say what the PEFT files lack. No local path is written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.base.architecture import values_of
from fedpeft.base.artifact import BaseArtifact
from fedpeft.catalogue import BY_NAME
from fedpeft.catalogue.blocks import HEAD
from fedpeft.config.model import Adapter
from fedpeft.config.task import Task
from fedpeft.errors import IntegrityFailed, SpecMismatch
from fedpeft.export.card import model_card
from fedpeft.export.peft_format import PeftForm, read_peft, to_peft
from fedpeft.export.summary import ExportSummary
from fedpeft.export.tokenizer_files import copy_tokenizer
from fedpeft.export.trial import agrees, peft_apart, problem_of
from fedpeft.files import write_file
from fedpeft.ids import BlockId
from fedpeft.methods.union import UnionAdapter, attach

__all__ = ["export_peft", "load_union"]

_FORMAT = "fedpeft-union/1"
_REMOTE = ("hub:", "pypi:", "sha256:")


def export_peft(
    union: UnionAdapter,
    directory: Path,
    *,
    base: str,
    artifact: BaseArtifact | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    whole_matrices: bool = False,
    from_run: float | None = None,
    task: Task | None = None,
    convention: str = "",
) -> ExportSummary:
    """Write ``union`` as it is now to ``directory`` and say what went where.

    Args:
        union: the adapter; unchanged.
        directory: created if need be; files of an earlier export are replaced.
        base: the base model as configured (``hub:ORG/NAME@REVISION``, ``pypi:PACKAGE``, a path).
        artifact: what ``union`` was trained on; its digest and quantization are named, its tokenizer is copied.
        inputs: arguments of the model (``input_ids``, ``attention_mask``) on which the files are compared with
            the model as trained; None skips that.
        whole_matrices: where IA3 stands beside LoRA or biases, write the matrices that it scales whole, so that peft
            alone loads the adapter; larger files.
        from_run: how far ``union``'s logits are from those of the run's whole adapter, for an export of a part.
        task: what it was trained on; None: the folder does not say.
        convention: the columns of its examples, where they are known.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if artifact is not None:
        copy_tokenizer(artifact.path, directory)
    name, revision = _public_name(base)
    form = to_peft(union, whole_matrices=whole_matrices)
    settings = _write_form(form, directory, name, revision)
    apart = _peft_difference(union, form, directory, inputs, artifact)
    if apart is not None and artifact is not None and inputs is not None and not agrees(apart, union, inputs):
        complete = {block.method for block in union.spec.blocks} <= form.methods
        if complete:  # peft computes something else on this model: no form of peft's holds it
            form = to_peft(union, without=form.methods - {HEAD})
            settings, apart = _write_form(form, directory, name, revision), None
    held = tuple(block.block_id for block in union.spec.blocks if block.method in form.methods)
    lacks = tuple(block.block_id for block in union.spec.blocks if block.block_id not in held)
    whole: tuple[BlockId, ...] = ()
    for stale in ("union.json", "union.safetensors"):
        (directory / stale).unlink(missing_ok=True)
    if lacks:
        whole = tuple(block.block_id for block in union.spec.blocks)
        content: dict[str, object] = {"format": _FORMAT, "base": name, "seed": union.seed}
        content["adapter"] = union.adapter.model_dump(mode="json")
        _write_json(directory / "union.json", content | {"spec": json.loads(union.spec.to_json())})
        write_file(directory / "union.safetensors", union.state().to_safetensors())
    summary = ExportSummary(
        base=name,
        base_digest="" if artifact is None else artifact.digest,
        base_quantize="" if artifact is None else artifact.manifest.quantize,
        parameters=sum(block.size for block in union.spec.blocks),
        peft_type=str(form.settings["peft_type"]),
        peft_blocks=held,
        peft_lacks=lacks,
        whole_matrices=form.whole,
        from_run_max_logit_difference=from_run,
        peft_max_logit_difference=apart,
        union_blocks=whole,
        union_max_logit_difference=_union_difference(union, directory, inputs) if whole else None,
        labels=class_names(union),
        problem_type=problem_of(union),
        task=None if task is None else task.model_dump(mode="json", exclude={"labels"}) | {"convention": convention},
    )
    _write_json(directory / "inspect.json", asdict(summary))
    write_file(directory / "README.md", model_card(summary, task_type=str(settings["task_type"])).encode())
    return summary


def load_union(model: nn.Module, directory: Path) -> UnionAdapter:
    """Attach the whole adapter of an exported directory to a fresh base model.

    Raises:
        SpecMismatch: the directory has no ``union.json`` (the PEFT files are complete, load them with peft), or
            ``model`` is not the base that the adapter was made for.
        IntegrityFailed: the files are damaged.
    """
    if not (directory / "union.json").exists():
        raise SpecMismatch(
            f"Expected union.json in {directory}, found none; its PEFT files are complete: load them with "
            "peft.PeftModel.from_pretrained."
        )
    try:
        content = json.loads((directory / "union.json").read_text(encoding="utf-8"))
        adapter = Adapter.model_validate_json(json.dumps(content["adapter"]))
        spec = AdapterSpec.from_json(json.dumps(content["spec"], sort_keys=True, separators=(",", ":")))
        seed = int(content["seed"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise IntegrityFailed(f"Expected a file written by export_peft in {directory}/union.json: {error}.") from error
    if content.get("format") != _FORMAT:
        raise IntegrityFailed(f"Expected format {_FORMAT}, found {content.get('format')!r}; use a newer fedpeft.")
    union = attach(model, adapter, seed=seed)  # for what no block holds; the initial values are overwritten
    if union.spec != spec:
        raise SpecMismatch(f"Expected the base model {content['base']} of this adapter, found one of other shapes.")
    union.load(AdapterState.from_safetensors(spec, (directory / "union.safetensors").read_bytes()))
    return union


def _write_form(form: PeftForm, directory: Path, name: str, revision: str | None) -> dict[str, object]:
    """The two files that peft reads; the settings as written."""
    settings = {**form.settings, "base_model_name_or_path": name, "revision": revision}
    _write_json(directory / "adapter_config.json", settings)
    write_file(directory / "adapter_model.safetensors", save(form.tensors, metadata={"format": "pt"}))
    return settings


def _peft_difference(
    union: UnionAdapter,
    form: PeftForm,
    directory: Path,
    inputs: Mapping[str, Tensor] | None,
    artifact: BaseArtifact | None,
) -> float | None:
    """With an artifact by peft itself on a base loaded anew; else by reading the files back into a replica."""
    lacking = {block.method for block in union.spec.blocks} - form.methods - {HEAD}
    if inputs is None or not all(BY_NAME[method].switchable for method in lacking):
        return None
    if artifact is not None:
        return peft_apart(union, directory, artifact, class_names(union), inputs)
    again = union.replicate()
    read_peft(again, form, load_file(directory / "adapter_model.safetensors"))
    return _difference(union, again, inputs)


def _union_difference(union: UnionAdapter, directory: Path, inputs: Mapping[str, Tensor] | None) -> float | None:
    if inputs is None:
        return None
    again = union.replicate()
    again.load(AdapterState.from_safetensors(union.spec, (directory / "union.safetensors").read_bytes()))
    return _difference(union, again, inputs)


@torch.no_grad()
def _difference(trained: UnionAdapter, again: UnionAdapter, inputs: Mapping[str, Tensor]) -> float:
    return float((values_of(trained.model(**inputs)) - values_of(again.model(**inputs))).abs().max())


def _public_name(base: str) -> tuple[str, str | None]:
    """A base's name without local path, and its revision if it is on the hub."""
    if base.startswith("hub:"):
        name, _, revision = base.removeprefix("hub:").partition("@")
        return name, revision or None
    return (base if base.startswith(_REMOTE) else Path(base).name), None


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    write_file(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def class_names(union: UnionAdapter) -> tuple[str, ...]:
    """The classes in the order of the logits; empty for a language model."""
    if not union.anatomy.head:
        return ()
    names: Mapping[int, str] = union.model.config.id2label  # type: ignore[assignment, union-attr]
    return tuple(names[index] for index in range(len(names)))
