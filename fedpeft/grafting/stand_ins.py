"""Stand-ins for parts of a model, and views of a model that have them in the place of the parts.

A view shares everything with its model but the modules on the way to a part that it replaces (``view_of``).
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedpeft.grafting.attention import attend

__all__ = [
    "FirstToken",
    "Form",
    "GivenOutput",
    "LabelledOnly",
    "Recomputed",
    "SkippedLayer",
    "Tap",
    "TapReached",
    "view_of",
]


class StandIn(nn.Module):
    """Stands for a layer, and has whatever else the model asks of it: masks by its type, windows, settings."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._stands_for = (layer,)  # in a tuple, so that it is no child

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stands_for"][0], name)


class SkippedLayer(StandIn):
    """Stands for a layer that is skipped: returns its input in the form in which layers return their output.

    Args:
        layer: that is skipped.
        form: what the layers of this model return. As long as nobody knows, the layer is called once to see.
    """

    def __init__(self, layer: nn.Module, form: "Form") -> None:
        super().__init__(layer)
        self._form = form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The input, in the layers' own form."""
        if not self._form.known:
            with torch.no_grad():
                self._form.see(self._stands_for[0](*args, **kwargs))
        return self._form.like(self._passed(_input_of(args, kwargs)))

    def _passed(self, hidden: Tensor) -> Tensor:
        return hidden


class Recomputed(StandIn):
    """A layer that keeps its input for the backward pass and nothing else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.layer = layer

    def forward(self, *args: object, **kwargs: Any) -> Any:
        """The layer's output; its inside is computed again in the backward pass."""
        if not torch.is_grad_enabled():
            return self.layer(*args, **kwargs)
        return checkpoint(self.layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


class GivenOutput(SkippedLayer):
    """Stands for the layer below the cut: its output is given."""

    def __init__(self, layer: nn.Module, form: "Form") -> None:
        super().__init__(layer, form)
        self.hidden: Tensor | None = None

    def _passed(self, hidden: Tensor) -> Tensor:
        return hidden if self.hidden is None else self.hidden


class TapReached(Exception):
    """The tap has what is wanted: nothing above it needs to be computed."""


class Tap(StandIn):
    """A layer whose output is kept aside; with it the forward pass ends."""

    def __init__(self, layer: nn.Module, form: "Form") -> None:
        super().__init__(layer)
        self.layer, self._form = layer, form
        self.hidden: Tensor | None = None

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Keeps the layer's output and ends the pass."""
        output = self.layer(*args, **kwargs)
        self._form.see(output)
        self.hidden = output[0] if isinstance(output, tuple) else output
        raise TapReached


class Form:
    """What the layers of a model return: hidden states, or a tuple that begins with them."""

    def __init__(self) -> None:
        self.known = False
        self._others: int | None = None  # what a tuple has behind the hidden states; None: no tuple

    def see(self, output: object) -> None:
        """A layer returned this."""
        self.known, self._others = True, len(output) - 1 if isinstance(output, tuple) else None

    def like(self, hidden: Tensor) -> Any:
        """``hidden`` in this form."""
        return hidden if self._others is None else (hidden, *[None] * self._others)


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return cast("Tensor", args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()))))


class LabelledOnly(StandIn):
    """The output matrix on the chosen positions: (b, s, h) -> (n, vocabulary)."""

    def __init__(self, output: nn.Module) -> None:
        super().__init__(output)
        self.output = output
        self.chosen: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The output matrix of the chosen positions."""
        chosen = hidden_states if self.chosen is None else hidden_states[self.chosen]
        return cast("Tensor", self.output(chosen))


class FirstToken(StandIn):
    """A BERT-like layer for its first token only: keys and values of all tokens, the rest of one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.layer = layer

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
        """(b, s, h) -> (b, 1, h)."""
        layer: Any = self.layer
        attention = layer.attention.self
        size = (hidden_states.shape[0], -1, attention.num_attention_heads, attention.attention_head_size)
        first = hidden_states[:, :1]  # (b, s, h) -> (b, 1, h)
        query = attention.query(first).view(size).transpose(1, 2)
        key = attention.key(hidden_states).view(size).transpose(1, 2)
        value = attention.value(hidden_states).view(size).transpose(1, 2)  # (b, heads, s, d)
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        mixed = attend(attention, query, key, value, mask, scaling=attention.scaling)
        mixed = mixed.transpose(1, 2).reshape(first.shape)
        return cast("Tensor", layer.feed_forward_chunk(layer.attention.output(mixed, first)))


def view_of(module: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """``module`` with the modules at these paths replaced, sharing all the rest."""
    if not replaced:
        return module
    view = copy.copy(module)
    children = dict(module._modules)
    view.__dict__["_modules"] = children
    for name in {path.partition(".")[0] for path in replaced}:
        below = {path.partition(".")[2]: new for path, new in replaced.items() if path.partition(".")[0] == name}
        children[name] = below[""] if "" in below else view_of(cast("nn.Module", children[name]), below)
    return view
