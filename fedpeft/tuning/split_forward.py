"""One forward pass, whole or in two parts: the frozen layers below, and the layers that adapt.

The parts are shallow views of the model: the modules on the way to a replaced one are copied, everything
else is shared, so adapters, hooks and tensors are the model's own and nothing is patched. What a view
replaces:

- the layers below (or above) a cut pass their input on; the last one below hands in hidden states
  computed before (``ActivationCache``);
- the last layer of an encoder whose classifier reads the first token computes that token only;
- the language model's output matrix is applied only where there is a label.

No autograd graph is built below the first adapted layer: nothing there requires a gradient.
"""

import contextlib
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.base.architecture import form_of, has_two_stacks
from fedpeft.data.encode import IGNORED
from fedpeft.errors import ConfigInvalid
from fedpeft.families import FIRST_TOKEN_ONLY
from fedpeft.grafting.stand_ins import (
    FirstToken,
    Form,
    GivenOutput,
    LabelledOnly,
    Recomputed,
    SkippedLayer,
    Tap,
    TapReached,
    view_of,
)
from fedpeft.methods.coda import picks_tokens
from fedpeft.methods.union import UnionAdapter
from fedpeft.tasks.form import SEQUENCE, STATES, TAGS
from fedpeft.tuning.batches import Batch
from fedpeft.tuning.several.pooling import mean_of_tokens
from fedpeft.tuning.several.sides import joined, parted, sides_of
from fedpeft.tuning.two_stacks import two_stacks

__all__ = ["SplitForward"]

_NO_CUT = "Expected frozen layers below the adapter, found it in all; set adapter.layers."


class SplitForward:
    """The forward passes of one union adapter. Not shared between threads.

    Args:
        union: the model with its adapter.
        checkpointing: keep the inputs of the layers that adapt only, and compute them again in the backward pass:
            less memory, more time, the same gradients.
        every_position: apply a language model's output matrix to all tokens, so that no shape depends on the labels.

    Attributes:
        first_layer: the cut: the lowest layer that adapts, or 0. Hidden states are its input.
        by_token: outputs are of tokens.
        longest: positions that the model has; no text may be padded beyond.
    """

    def __init__(self, union: UnionAdapter, *, checkpointing: bool = False, every_position: bool = False) -> None:
        self.every_position = every_position
        anatomy = union.anatomy
        self.first_layer = anatomy.cut
        self.hidden_size = int(cast("int", union.model.config.hidden_size))  # type: ignore[union-attr]
        self.device = next(union.model.parameters()).device
        self.pad_id = _pad_id(union.model)
        self.longest = _longest(union.model)
        paths = list(anatomy.layer_paths)
        layers = [anatomy.layer(i) for i in range(anatomy.layer_count)]

        above: dict[str, nn.Module] = {}
        if _reads_first_token(union) and not picks_tokens(layers[-1]):
            above[paths[-1]] = FirstToken(layers[-1])
        if checkpointing:
            for path, layer in list(zip(paths, layers, strict=True))[anatomy.first_layer :]:
                above[path] = Recomputed(above.get(path, layer))
        self._positions: LabelledOnly | None = None
        self._is_bare = form_of(union.model) == STATES
        if not anatomy.head and not self._is_bare:
            path, output = _output_matrix(union.model)
            self._positions = LabelledOnly(output)
            above[path] = self._positions
        self.by_token = self._positions is not None or form_of(union.model) == TAGS
        self._segments = int(getattr(union.model.config, "type_vocab_size", None) or 0) > 1
        self._two_stacks = has_two_stacks(union.model)
        self._whole = view_of(union.model, above)

        cut, form = self.first_layer, Form()
        self._entry = GivenOutput(layers[cut - 1], form) if cut else None
        passed: dict[str, nn.Module] = {
            path: SkippedLayer(layer, form) for path, layer in zip(paths[:cut], layers, strict=False)
        }
        if self._entry is not None:
            passed[paths[cut - 1]] = self._entry
        self._above = view_of(union.model, {**above, **passed})

        # The model as a task calls it, which may hand its backbone more than ids and mask; it ends at the tap.
        self._tap = Tap(layers[cut - 1], form) if cut else None
        self._below = view_of(union.model, {} if self._tap is None else {paths[cut - 1]: self._tap})

    @property
    def can_cut(self) -> bool:
        """Whether there are frozen layers below the adapter, and their output is all that the others read."""
        return self._entry is not None

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The whole forward pass.

        Returns:
            Logits (n, outputs) and their labels: one row per example, or, by token, one per labelled token; with
            ``every_position`` one per token, its label ``IGNORED`` where it has none. Of answers to be compared one per
            labelled token of each answer, of texts that belong together one per text: its vector.
        """
        return self._run(self._whole, self._apart(batch))

    def logits_above(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As ``logits``, from the input of layer ``first_layer``, (b, s, hidden_size)."""
        if self._entry is None:
            raise ConfigInvalid(_NO_CUT)
        if batch.holds_several:
            sides = sides_of(batch, pad_id=self.pad_id)
            batch, hidden = sides.batch, parted(sides, hidden)
        self._entry.hidden = hidden
        try:
            return self._run(self._above, batch)
        finally:
            self._entry.hidden = None

    @torch.no_grad()
    def hidden_below(self, batch: Batch) -> Tensor:
        """The input of layer ``first_layer``, (b, s, hidden_size)."""
        if self._tap is None:
            raise ConfigInvalid(_NO_CUT)
        with contextlib.suppress(TapReached):
            self._below(**self._inputs(self._apart(batch)))
        hidden, self._tap.hidden = cast("Tensor", self._tap.hidden), None
        if not batch.holds_several:
            return hidden
        return joined(sides_of(batch, pad_id=self.pad_id), hidden, batch.input_ids.shape[1])

    def _apart(self, batch: Batch) -> Batch:
        """The rows that the model is to see: of examples that hold several texts each one by itself."""
        return sides_of(batch, pad_id=self.pad_id).batch if batch.holds_several else batch

    def _run(self, view: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._two_stacks:
            return self._run_apart(view, batch)
        labels = self.aligned(batch.labels)
        if self._is_bare:
            states = cast("Tensor", view(**self._inputs(batch)).last_hidden_state)
            return mean_of_tokens(states, batch.attention_mask), labels
        if not self.by_token:
            output = view(**self._inputs(batch))
            return cast("Tensor", output.logits), labels
        chosen = labels != IGNORED
        if self._positions is not None:
            self._positions.chosen = None if self.every_position else chosen
        logits = cast("Tensor", view(**self._inputs(batch)).logits)
        if self.every_position:
            return logits.flatten(0, -2), labels.flatten()
        rows = logits.flatten(0, -2) if self._positions is not None else logits[chosen]
        return rows, labels[chosen]

    def _run_apart(self, view: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """An encoder-decoder: the rows of the batch come apart, and each target token is predicted in its place."""
        apart = two_stacks(view, batch, pad_id=self.pad_id)
        chosen = apart.labels != IGNORED
        if self._positions is not None:
            self._positions.chosen = None if self.every_position else chosen
        logits = cast("Tensor", view(**apart.inputs(), use_cache=False).logits).flatten(0, -2)
        return logits, apart.labels.flatten() if self.every_position else apart.labels[chosen]

    def aligned(self, labels: Tensor) -> Tensor:
        """The label that the outputs of each position are for: of a language model, the state at t predicts t + 1."""
        return labels if self._positions is None else functional.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def _inputs(self, batch: Batch) -> dict[str, object]:
        inputs = dict[str, object](input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        if batch.segments is not None and self._segments:
            inputs["token_type_ids"] = batch.segments
        return inputs


def _reads_first_token(union: UnionAdapter) -> bool:
    """Whether a classifier reads the encoder's first token and nothing else."""
    return form_of(union.model) == SEQUENCE and getattr(union.model.config, "model_type", "") in FIRST_TOKEN_ONLY


def _output_matrix(model: nn.Module) -> tuple[str, nn.Module]:
    output = model.get_output_embeddings()  # type: ignore[operator]
    return next(path for path, module in model.named_modules() if module is output), output


def _pad_id(model: nn.Module) -> int:
    pad_id = getattr(model.config, "pad_token_id", None)
    return 0 if pad_id is None else int(pad_id)


def _longest(model: nn.Module) -> int:
    """Position tables of RoBERTa's kind begin after the padding's row."""
    config = model.config
    positions = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    offset = _pad_id(model) + 1 if "oberta" in type(model).__name__ or "amembert" in type(model).__name__ else 0
    return positions - offset
