"""What an exported adapter directory holds, as a record: ``inspect.json``."""

from dataclasses import dataclass
from typing import Any

from fedpeft.ids import BlockId

__all__ = ["ExportSummary"]


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
