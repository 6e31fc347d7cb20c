"""Models as folders that transformers alone loads: the base that was trained against, and the base with its adapter.

A base artifact holds packed weights under our own names. Whoever uses an adapter elsewhere wants an ordinary folder:
``config.json``, float32 weights in safetensors, the tokenizer. Both functions load what they wrote anew, with
transformers alone, and say how far it is from what it stands for.
"""

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fedpeft.base import BaseArtifact, facts_of, load_model, load_tokenizer
from fedpeft.base.architecture import form_of, quiet_transformers, values_of
from fedpeft.base.artifact import TaskName
from fedpeft.base.source import read_json
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.export.export import class_names, export_peft
from fedpeft.export.known_warnings import without_known_warnings
from fedpeft.export.peft_prompt import PROMPT_TYPES
from fedpeft.export.pooling_files import write_pooling
from fedpeft.export.tokenizer_files import copy_tokenizer
from fedpeft.export.trial import problem_of
from fedpeft.files import write_file
from fedpeft.methods.union import UnionAdapter
from fedpeft.tasks.form import SEQ2SEQ, SEQUENCE, STATES, Form

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["WholeModel", "export_base", "export_merged", "probe_inputs"]

PROBES, PROBE_TOKENS = 4, 16

TOLERANCE = 1e-3
"""Of the largest logit: float32 rounding over all layers; a weight in the wrong place moves logits by far more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModel:
    """What was written.

    Args:
        architecture: the class of transformers that loads it.
        max_difference: of the loaded folder's outputs from those of the model that it stands for, over ``inputs``.
    """

    architecture: str
    max_difference: float


@torch.no_grad()
def export_base(artifact: BaseArtifact, folder: Path, inputs: Mapping[str, Tensor]) -> WholeModel:
    """Write the base as every device holds it: its weights unpacked, so that they need no artifact.

    A base for classification alone is written without a head: a head belongs to an adapter.

    Args:
        artifact: of the store.
        folder: empty or to be created.
        inputs: arguments of the model, on which the folder is compared with the artifact.

    Raises:
        ConfigInvalid: the folder holds something.
        IntegrityFailed: what was written computes something else.
    """
    _refuse_full(folder)
    tasks = artifact.manifest.tasks
    complete: list[TaskName] = [task for task, entry in tasks.items() if not entry.head]
    task = (complete or list(tasks))[0]
    labels = ("0", "1") if task == SEQUENCE else ()
    model = load_model(artifact, task=task, labels=labels, head_seed=0)
    if not complete:
        model = cast("nn.Module", getattr(model, str(model.base_model_prefix)))
    return _write(model, artifact, folder, expected=_output(model, inputs), inputs=inputs)


@torch.no_grad()
def export_merged(
    union: UnionAdapter,
    artifact: BaseArtifact,
    folder: Path,
    inputs: Mapping[str, Tensor],
    *,
    head_seed: int,
    max_length: int,
) -> WholeModel:
    """Write the base with its adapter folded in: an ordinary model that knows its classes.

    Args:
        union: the trained adapter on its base.
        artifact: the base.
        folder: empty or to be created.
        inputs: as in ``export_base``.
        head_seed: of the union's model: a new head may have layers that no block trains.
        max_length: tokens of an example; of a model of vectors, what sentence-transformers cuts a text to.

    Raises:
        ConfigInvalid: the adapter is more than a change of weights, such as a prompt or a network of its own.
        IntegrityFailed: what was written computes something else.
    """
    from peft import PeftModel

    _refuse_full(folder)
    labels = class_names(union)
    with tempfile.TemporaryDirectory(prefix="fedpeft-merge-") as scratch:
        summary = export_peft(union, Path(scratch), base="", whole_matrices=True)
        if summary.peft_lacks or summary.peft_type in PROMPT_TYPES:
            blocks = ", ".join(summary.peft_lacks or summary.peft_blocks)
            raise ConfigInvalid(
                f"Expected an adapter that changes weights of the base, found {blocks}, which cannot be folded into "
                "them; export it without --full, and load it with fedpeft.export.load_union or peft."
            )
        base = load_model(
            artifact, task=form_of(union.model), labels=labels, head_seed=head_seed, problem_type=problem_of(union)
        )
        with without_known_warnings():
            merged = PeftModel.from_pretrained(base, scratch).eval().merge_and_unload()
    written = _write(merged, artifact, folder, expected=_output(union.model, inputs), inputs=inputs)
    if form_of(union.model) == STATES:
        write_pooling(folder, width=int(merged.config.hidden_size), longest=max_length)
    return written


def probe_inputs(tokenizer: "PreTrainedTokenizerBase", *, seed: int, forms: Collection[Form] = ()) -> dict[str, Tensor]:
    """A few sequences of random tokens, as arguments of a model; of an encoder-decoder as its target too.

    Args:
        tokenizer: for how many tokens there are.
        seed: of the draw.
        forms: what the model's base lists.
    """
    draw = generator(seed, "probe tokens")
    tokens = torch.from_numpy(draw.integers(1, len(tokenizer), (PROBES, PROBE_TOKENS)))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {**inputs, "decoder_input_ids": tokens.flip(1)} if SEQ2SEQ in forms else inputs


def _write(
    model: nn.Module, artifact: BaseArtifact, folder: Path, *, expected: Tensor, inputs: Mapping[str, Tensor]
) -> WholeModel:
    folder.mkdir(parents=True, exist_ok=True)
    kind = cast("type[PreTrainedModel]", type(model))
    with quiet_transformers():
        cast("PreTrainedModel", model).save_pretrained(folder)
        copy_tokenizer(artifact.path, folder)
        _name_padding(folder, artifact)
        again = kind.from_pretrained(folder, dtype=torch.float32).eval()
    far = float((_output(again, inputs) - expected).abs().max())
    if not far <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise IntegrityFailed(
            f"Expected the files in {folder} to compute what they stand for, found outputs that differ by {far:.2g}; "
            "do not use them, and report this architecture."
        )
    return WholeModel(architecture=kind.__name__, max_difference=far)


def _name_padding(folder: Path, artifact: BaseArtifact) -> None:
    """A base without a padding token is padded with EOS, as its ``config.json`` says; then the tokenizer says so too.

    Else transformers takes one text at a time, and sentence-transformers none.
    """
    if facts_of(artifact).tokenizer.pad_token_id is not None:
        return
    path, end = folder / "tokenizer_config.json", load_tokenizer(artifact).eos_token
    settings = read_json(path) if path.is_file() else {}
    if end is not None and settings.get("pad_token") is None:
        content = json.dumps({**settings, "pad_token": end}, indent=2, sort_keys=True, ensure_ascii=False)
        write_file(path, f"{content}\n".encode())


def _output(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    return values_of(model(**inputs)).float()


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigInvalid(f"Expected a new or empty folder, found {folder} with files in it; name another one.")
