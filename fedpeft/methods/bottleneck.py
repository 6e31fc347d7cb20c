"""Bottleneck adapters: a narrow network with a residual, serial (Houlsby et al. 2019) or parallel (He et al. 2022).

    f(h) = scale * (U act(D h + d) + u),    D (m, w), d (m,), U (w, m), u (w,);  m the width, w the hidden size

- ``bottleneck``, ``houlsby``: y + f(y) on the output y of attention and of the feed-forward, before the residual is
  added. Houlsby also train the layer norms: add ``[adapter.layernorm]``.
- ``bottleneck``, ``pfeiffer`` (Pfeiffer et al. 2021): the feed-forward's output alone, in the same form.
- ``parallel``: beside the feed-forward, FFN(x) + f(x) on its input x.

U, u and d are zero at the start, so the model begins as the base; D is drawn from the run's seed. 2 w m + m + w
parameters each. The network is nonlinear: the secure sum's mean is the mean of its parameters, not of its
functions (unlike LoRA's B).
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedpeft.catalogue.bottleneck import Bottleneck
from fedpeft.catalogue.parallel import Parallel
from fedpeft.config.model import Adapter
from fedpeft.entropy import generator
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output, graft_residual
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.narrow import check_width, narrow
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId

__all__ = ["BOTTLENECK", "PARALLEL", "BottleneckPart", "attach_bottleneck", "attach_parallel"]

BOTTLENECK, PARALLEL = "bottleneck", "parallel"
_SERIAL: Mapping[str, tuple[str, ...]] = MappingProxyType({"houlsby": ("o", "down"), "pfeiffer": ("down",)})


class BottleneckPart(nn.Module):
    """One bottleneck: D, d, U, u as ``down``, ``down_bias``, ``up``, ``up_bias``.

    Args:
        down: D at the start, (m, w).
        settings: activation and scale.
        serial: whether it reads the host's output; else it reads its input.
    """

    def __init__(self, down: Tensor, settings: Bottleneck | Parallel, *, serial: bool) -> None:
        super().__init__()
        rows, wide = down.shape
        self.scale, self.activation, self.serial = settings.scale, settings.activation, serial
        self.down = nn.Parameter(down, requires_grad=False)
        self.down_bias = nn.Parameter(down.new_zeros(rows), requires_grad=False)
        self.up = nn.Parameter(down.new_zeros(wide, rows), requires_grad=False)
        self.up_bias = nn.Parameter(down.new_zeros(wide), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + f(y), or y + f(x) beside the host."""
        read = y if self.serial else x
        added = narrow(read, self.down, self.applied_up(), self.activation, self.down_bias, self.up_bias)
        return torch.add(y, added.to(y.dtype), alpha=self.scale)

    def applied_up(self) -> Tensor:
        """U as this pass applies it, (w, m)."""
        return self.up


class DroppingPart(BottleneckPart, SteppedPart):
    """A bottleneck that leaves out some of its units in each training step.

    Args:
        down, settings, serial: see ``BottleneckPart``.
        path: of the host; names its draws.
    """

    def __init__(self, down: Tensor, settings: Bottleneck | Parallel, *, serial: bool, path: str) -> None:
        super().__init__(down, settings, serial=serial)
        self._dropout, self._path = settings.dropout, path
        self._seen: Tensor | None = None  # (m,): zero or 1 / (1 - dropout), in a training step

    def begin_step(self, seed: int, step: int) -> None:
        """Draw which units there are, while this part is trained."""
        if self.up.requires_grad:
            seen = generator(seed, "bottleneck.dropout", self._path, step).random(self.up.shape[1]) >= self._dropout
            self._seen = torch.from_numpy(seen).to(self.up.device, self.up.dtype) / (1.0 - self._dropout)

    def after_backward(self) -> None:
        """All units are there again."""
        self._seen = None

    def applied_up(self) -> Tensor:
        """U without the columns of the units left out: leaving out a unit is leaving out its column."""
        return self.up if self._seen is None else self.up * self._seen


def attach_bottleneck(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft bottlenecks on the chosen layers; one block, bottleneck by bottleneck: D, d, U, u.

    Raises:
        ConfigInvalid: the bottleneck is wider than the model.
    """
    settings = adapter.of(Bottleneck)
    if settings is None:
        return ()
    parts: list[BottleneckPart] = []
    for slot in _SERIAL[settings.placement]:
        for path, linear in anatomy.slot_modules(slot, wanted_by="adapter.bottleneck").items():
            parts.append(_part(BOTTLENECK, path, linear, settings, seed))
            graft_output(linear, BOTTLENECK, parts[-1])
    return (_block(BOTTLENECK, parts),)


def attach_parallel(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft bottlenecks beside the feed-forward of the chosen layers; one block, as ``attach_bottleneck``.

    Raises:
        ConfigInvalid: the bottleneck is wider than the model.
    """
    settings = adapter.of(Parallel)
    if settings is None:
        return ()
    parts: list[BottleneckPart] = []
    first = anatomy.slot_modules("up", wanted_by="adapter.parallel")
    for path, linear in anatomy.slot_modules("down", wanted_by="adapter.parallel").items():
        parts.append(_part(PARALLEL, path, linear, settings, seed))
        host = anatomy.model.get_submodule(path.rpartition(".")[0])
        # Llama's host is the whole feed-forward; BERT's adds the feed-forward's input x as its residual.
        beside = {one.partition(".fedpeft")[0].rpartition(".")[0] for one in first}
        (graft_output if path.rpartition(".")[0] in beside else graft_residual)(host, PARALLEL, parts[-1])
    return (_block(PARALLEL, parts),)


def _part(method: str, path: str, linear: nn.Module, settings: Bottleneck | Parallel, seed: int) -> BottleneckPart:
    """A bottleneck whose D has rows of norm one on average, drawn for this place from the run's seed."""
    wide = check_width(path, linear, settings.width, wanted_by=f"adapter.{method}")
    shape, deviation = (settings.width, wide), 1.0 / math.sqrt(wide)
    down = drawn(seed, f"{method}.down", path, shape, deviation, device_of(linear))
    if settings.dropout:
        return DroppingPart(down, settings, serial=method == BOTTLENECK, path=path)
    return BottleneckPart(down, settings, serial=method == BOTTLENECK)


def _block(method: str, parts: list[BottleneckPart]) -> Block:
    parameters = tuple(p for part in parts for p in (part.down, part.down_bias, part.up, part.up_bias))
    return Block(block_id=BlockId(method), method=method, parameters=parameters)
