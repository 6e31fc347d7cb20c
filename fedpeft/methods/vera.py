"""VeRA (Kopiczko et al. 2024): one frozen random pair for all matrices, two trained vectors for each.

    W x + b * B (d * A x),    A (r, widest input), B (widest output, r), both cut to the matrix; d (r,), b (d_out,)

A and B come from the run's seed on every device: no block holds them and nothing sends them. d begins at
``initial``, b at zero. r + d_out trained parameters a matrix. The secure sum's mean is the mean of d and of b;
the change of the matrix is not linear in them together.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.vera import Vera
from fedpeft.config.model import Adapter
from fedpeft.entropy import generator
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output, grafts_of
from fedpeft.grafting.lowrank import width_of
from fedpeft.grafting.own_form import PREFIX, Arrays, Held, OwnForm, as_array
from fedpeft.ids import BlockId

__all__ = ["FORM", "VERA", "VeraPart", "attach_vera"]

VERA = "vera"


class VeraPart(nn.Module):
    """d and b of one matrix, and its cut of the shared pair.

    Args:
        down: A whole, (r, widest input).
        up: B whole, (widest output, r).
        initial: of d.
    """

    def __init__(self, host: nn.Module, down: Tensor, up: Tensor, initial: float) -> None:
        super().__init__()
        wide = width_of(host, "out_features")
        self.d = nn.Parameter(down.new_full((down.shape[0],), initial), requires_grad=False)
        self.b = nn.Parameter(down.new_zeros(wide), requires_grad=False)
        # Views of the whole pair: it exists once for all matrices.
        self.register_buffer("down", down[:, : width_of(host, "in_features")], persistent=False)
        self.register_buffer("up", up[:wide], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + b * B (d * A x)."""
        down, up = self.get_buffer("down"), self.get_buffer("up")
        narrow = functional.linear(x.to(down.dtype), down) * self.d  # (..., d_in) -> (..., r)
        return torch.addcmul(y.to(up.dtype), functional.linear(narrow, up), self.b).to(y.dtype)


def attach_vera(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft VeRA on the targets of the chosen layers; one block, matrix by matrix d before b.

    Raises:
        ConfigInvalid: the model lacks a target.
    """
    vera = adapter.of(Vera)
    if vera is None:
        return ()
    hosts = [host for _, host in anatomy.target_modules(vera.targets, wanted_by="adapter.vera")]
    device = device_of(hosts[0]) if hosts else torch.device("cpu")
    down = _shared("A", (vera.rank, max((width_of(host, "in_features") for host in hosts), default=0)), seed)
    up = _shared("B", (max((width_of(host, "out_features") for host in hosts), default=0), vera.rank), seed)
    parts = [VeraPart(host, down.to(device), up.to(device), vera.initial) for host in hosts]
    for host, part in zip(hosts, parts, strict=True):
        graft_output(host, VERA, part)
    parameters = tuple(parameter for part in parts for parameter in (part.d, part.b))
    return (Block(block_id=BlockId(VERA), method=VERA, parameters=parameters),)


def _shared(factor: str, shape: tuple[int, int], seed: int) -> Tensor:
    """Kaiming's uniform distribution, as the paper has it: within sqrt(3 / fan in), (rows, columns)."""
    bound = math.sqrt(3.0 / max(1, shape[1]))
    values = generator(seed, "vera", factor).uniform(-bound, bound, shape)
    return torch.from_numpy(values.astype(np.float32))


def _write(model: nn.Module, tensors: Arrays) -> dict[str, object]:
    parts = grafts_of(model, VeraPart)
    for path, part in parts.items():
        tensors[f"{PREFIX}{path}.vera_lambda_d"] = as_array(part.d)
        tensors[f"{PREFIX}{path}.vera_lambda_b"] = as_array(part.b)
    down = max((part.get_buffer("down") for part in parts.values()), key=lambda cut: cut.shape[1])
    up = max((part.get_buffer("up") for part in parts.values()), key=lambda cut: cut.shape[0])
    tensors["base_model.vera_A"], tensors["base_model.vera_B"] = as_array(down), as_array(up)
    return {"r": down.shape[0], "target_modules": sorted(parts), "save_projection": True}


def _read(model: nn.Module, held: Held) -> None:
    for path, part in grafts_of(model, VeraPart).items():
        part.d.copy_(held[f"{path}.vera_lambda_d"])
        part.b.copy_(held[f"{path}.vera_lambda_b"])


FORM = OwnForm(peft_type="VERA", write=_write, read=_read)
