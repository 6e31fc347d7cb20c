"""What an exported adapter directory holds, as a record: ``inspect.json``, written by the export and read back."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedpeft.bounded_json import JsonLimits, JsonRefused, loads
from fedpeft.errors import DataInvalid, FedpeftError, IntegrityFailed
from fedpeft.ids import BlockId

__all__ = ["ExportSummary", "damaged", "no_export", "read_object", "read_summary"]

SUMMARY = "inspect.json"
LIMITS = JsonLimits(max_bytes=64 * 2**20)
"""Of a file that an export wrote: the names of all blocks and matrices of a large model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an exported directory holds; the content of ``inspect.json``.

    Args:
        base: the base model's public name.
        base_digest: the base artifact's digest; empty when unknown.
        parameters: coordinates of the union adapter.
        peft_type: ``LORA``, ``IA3`` or ``LN_TUNING``.
        peft_blocks: blocks that the PEFT files hold.
        peft_lacks: blocks that they do not hold; empty: the PEFT files are the whole adapter.
        peft_max_logit_difference: of the model with the PEFT files from the trained one; None: not measured.
        union_blocks: blocks in ``union.safetensors``; empty when there is no such file.
        union_max_logit_difference: likewise for ``union.safetensors``.
        whole_matrices: paths of matrices that the PEFT files hold whole, with all that was trained on them folded in.
        base_quantize: how the base that it was trained on stores its weights; ``none`` or empty: as published.
        labels: the outputs in the order of the logits; empty for a language model.
        problem_type: transformers' name of the loss; empty for a language model and for tags.
        task: run.toml's [task] that it was trained on, without ``labels``, and ``convention``, the columns of its
            examples as "prompt+completion" where they are known; None: not said.
        from_run_max_logit_difference: of what was exported from the whole adapter of its run; None: it is the whole.
    """

    base: str
    base_digest: str
    parameters: int
    peft_type: str
    peft_blocks: tuple[BlockId, ...]
    peft_lacks: tuple[BlockId, ...]
    peft_max_logit_difference: float | None
    union_blocks: tuple[BlockId, ...]
    union_max_logit_difference: float | None
    whole_matrices: tuple[str, ...] = ()
    from_run_max_logit_difference: float | None = None
    base_quantize: str = ""
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    task: dict[str, Any] | None = None

    @property
    def trained_on_quantized(self) -> bool:
        """Whether the weights that it was trained on are not those of the base as published."""
        return self.base_quantize not in ("", "none")


def read_summary(folder: Path) -> ExportSummary:
    """What an export wrote about itself.

    Raises:
        DataInvalid: ``folder`` is no export.
        IntegrityFailed: its summary is not as an export writes it.
    """
    content = read_object(folder / SUMMARY)
    try:
        return _codec().validate_python(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise damaged(folder / SUMMARY, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object that an export wrote.

    Raises:
        DataInvalid: there is no such file, so its folder is no export.
        IntegrityFailed: it holds something else.
    """
    if not path.exists():
        raise no_export(path)
    try:
        content = loads(path.read_bytes(), LIMITS) if path.is_file() else None
    except JsonRefused as error:
        raise damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise damaged(path, "no JSON object")
    return content


def no_export(path: Path) -> FedpeftError:
    """The refusal of a folder that lacks a file of every export."""
    return DataInvalid(
        f"Expected an adapter exported by fedpeft in {path.parent}, found no {path.name}; "
        "name a run that has finished, or a folder that `fedpeft adapter export` wrote."
    )


def damaged(path: Path, found: str) -> FedpeftError:
    """The refusal of a file of an export that is not as it was written."""
    return IntegrityFailed(
        f"Expected {path} as `fedpeft adapter export` wrote it, found {found}; "
        "restore it from a copy, or export the run again."
    )


@cache
def _codec() -> TypeAdapter[ExportSummary]:
    return TypeAdapter(ExportSummary)
