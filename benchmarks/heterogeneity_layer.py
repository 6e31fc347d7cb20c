"""All clients of a round trained side by side: one adapted BERT layer, one batch dimension a client.

Meant to take the same steps as ``fedpeft.tuning.train`` (AdamW without decay, fresh in each round, each client's
gradient clipped to norm one, the same batches) at a fraction of the cost: keys and values of the frozen layer are
computed once for every token, and thirty small products become one. NOT YET COMPARED with the product's loop: do that
before believing a figure from here.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.adapter import AdapterState, flatten, unflatten
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter
from fedpeft.tuning.batches import BatchStream


class Layer:
    """The top layer, pooler and classifier of a BERT as functions of stacked adapter tensors.

    Args:
        union: the model with its adapter; the frozen tensors are read from it.
        table: hidden states below the layer, (tokens, h), examples one after the other.
        starts: where each example begins in it.
        scale: of B A.
    """

    def __init__(self, union: UnionAdapter, table: Tensor, starts: np.ndarray, scale: float) -> None:
        anatomy = union.anatomy
        self.root = f"{anatomy.layers_path}.{anatomy.layer_count - 1}"
        self.weights = {name: value.detach() for name, value in union.model.named_parameters()}
        self.spec, self.scale = union.spec, scale
        self.heads = int(union.model.config.num_attention_heads)
        self.table, self.starts = table, torch.from_numpy(starts)
        self.lengths = np.diff(starts)
        with torch.no_grad():
            self.keys, self.values = (self._frozen(f"attention.self.{name}", table) for name in ("key", "value"))
            self.queries = self._frozen("attention.self.query", table[self.starts[:-1]])  # of first tokens

    def _frozen(self, path: str, x: Tensor) -> Tensor:
        host = f"{self.root}.{path}"
        return functional.linear(x, self.weights[f"{host}.weight"], self.weights[f"{host}.bias"])

    def _adapt(self, p: Mapping[str, Tensor], path: str, x: Tensor, y: Tensor) -> Tensor:
        """Y with the host's LoRA, bias and gain; x, y (C, n, d)."""
        host = f"{self.root}.{path}"
        down = [value for name, value in p.items() if name.startswith(f"{host}.fedpeft.lora.A.")]
        if down:
            up = [value for name, value in p.items() if name.startswith(f"{host}.fedpeft.lora.B.")]
            narrow = torch.bmm(x, torch.cat(down, 1).transpose(1, 2))
            y = torch.baddbmm(y, narrow, torch.cat(up, 2).transpose(1, 2), alpha=self.scale)
        bias = p.get(f"{host}.fedpeft.bitfit.delta")
        y = y if bias is None else y + bias[:, None]
        gain = p.get(f"{host}.fedpeft.ia3.delta")
        return y if gain is None else y * (1 + gain[:, None])

    def _norm(self, p: Mapping[str, Tensor], path: str, x: Tensor) -> Tensor:
        host = f"{self.root}.{path}"
        y = functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{host}.weight"], self.weights[f"{host}.bias"], eps=1e-12
        )
        bias = p.get(f"{host}.fedpeft.bitfit.delta")
        return y if bias is None else y + bias[:, None]

    def logits(self, p: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """(C, b, classes) for examples ``rows`` (C, b); ``p`` has the adapter's tensors with C in front."""
        clients, batch = rows.shape
        first, lengths = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        width = int(lengths.max())
        inside = torch.arange(width) < lengths[..., None]  # (C, b, t)
        places = torch.where(inside, first[..., None] + torch.arange(width), 0).reshape(clients, -1)
        hidden = self.table[places]  # (C, b t, h)
        size = hidden.shape[-1]
        k = self._adapt(p, "attention.self.key", hidden, self.keys[places])
        v = self._adapt(p, "attention.self.value", hidden, self.values[places])
        x = self.table[first]  # (C, b, h): the first token alone
        q = self._adapt(p, "attention.self.query", x, self.queries[rows])
        q, k, v = (one.reshape(clients * batch, -1, self.heads, size // self.heads).transpose(1, 2) for one in (q, k, v))
        mask = inside.reshape(clients * batch, 1, 1, width)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(clients, batch, size)
        out = self._adapt(p, "attention.output.dense", mixed, self._frozen("attention.output.dense", mixed))
        x = self._norm(p, "attention.output.LayerNorm", out + x)
        inner = functional.gelu(self._adapt(p, "intermediate.dense", x, self._frozen("intermediate.dense", x)))
        gain = p.get(f"{self.root}.output.dense.fedpeft_input.ia3.delta")
        inner = inner if gain is None else inner * (1 + gain[:, None])
        out = self._adapt(p, "output.dense", inner, self._frozen("output.dense", inner))
        x = self._norm(p, "output.LayerNorm", out + x)
        pooled = functional.linear(
            x, self.weights["bert.pooler.dense.weight"], self.weights["bert.pooler.dense.bias"]
        ).tanh()
        return torch.baddbmm(p["classifier.bias"][:, None], pooled, p["classifier.weight"].transpose(1, 2))

    def stacked(self, states: Sequence[AdapterState]) -> dict[str, Tensor]:
        """The tensors of several states, one client each."""
        parts = [
            {name: v for b in self.spec.blocks for name, v in unflatten(b, state[b.block_id]).items()}
            for state in states
        ]
        return {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}


GROUP = 3
"""Clients in one product: more pads more, fewer call more."""


def train_together(
    layer: Layer,
    starts: Sequence[AdapterState],
    owns: Sequence[Sequence[BlockId]],
    streams: Sequence[BatchStream],
    rows_of: Sequence[np.ndarray],
    labels: np.ndarray,
    offsets: Tensor | None,
    *,
    first_step: int,
    steps: int,
    learning_rate: float,
) -> list[dict[BlockId, np.ndarray]]:
    """What every client's own blocks are after ``steps`` steps from its start.

    Args:
        starts: what each client computes with at the start.
        owns: the blocks that each trains.
        streams: each client's batches, over its own examples.
        rows_of: each client's examples as rows of the table.
        offsets: (C, classes) added to the logits of the loss, or None.
    """
    p = layer.stacked(starts)
    block_of = {tensor.name: block.block_id for block in layer.spec.blocks for tensor in block.tensors}
    masks = {}
    for name, value in p.items():
        mask = torch.tensor([float(block_of[name] in own) for own in owns])
        if mask.any():
            masks[name] = mask.view(-1, *[1] * (value.dim() - 1))
    moments = {name: (torch.zeros_like(p[name]), torch.zeros_like(p[name])) for name in masks}
    grads = {name: torch.empty_like(p[name]) for name in masks}
    for step in range(steps):
        batches = [rows_of[c][stream.batch(first_step + step)] for c, stream in enumerate(streams)]
        # Clients whose batches are about as long go together, so that little is padded.
        longest = np.array([int(layer.lengths[batch].max()) for batch in batches])
        for group in np.array_split(np.argsort(longest, kind="stable"), -(-len(batches) // GROUP)):
            part = {name: value[group].requires_grad_(name in masks) for name, value in p.items()}
            loss = _loss(layer, part, [batches[c] for c in group], labels, None if offsets is None else offsets[group])
            torch.autograd.backward([loss])
            for name in masks:
                grads[name][group] = part[name].grad
        for name, mask in masks.items():
            grads[name].mul_(mask)
        norms = sum(grad.flatten(1).square().sum(1) for grad in grads.values()).sqrt()  # (C,)
        shrink = (1.0 / (norms + 1e-6)).clamp(max=1.0)
        for name, grad in grads.items():
            grad.mul_(shrink.view(-1, *[1] * (grad.dim() - 1)))
            m, v = moments[name]
            m.lerp_(grad, 0.1)
            v.mul_(0.999).addcmul_(grad, grad, value=0.001)
            size = learning_rate / (1 - 0.9 ** (step + 1))
            p[name].addcdiv_(m, v.sqrt().div_((1 - 0.999 ** (step + 1)) ** 0.5).add_(1e-8), value=-size)
    found = []
    for client, own in enumerate(owns):
        tensors = {name: p[name][client].numpy() for name in masks}
        found.append({block_id: flatten(layer.spec[block_id], tensors) for block_id in own})
    return found


def _loss(
    layer: Layer, p: Mapping[str, Tensor], batches: Sequence[np.ndarray], labels: np.ndarray, offsets: Tensor | None
) -> Tensor:
    """The sum over clients of each one's mean loss over its batch; ``batches`` are rows of the table."""
    width = max(map(len, batches))
    rows = np.stack([np.resize(batch, width) for batch in batches])  # what fills a short batch up weighs nothing
    share = np.stack([(np.arange(width) < len(batch)) / len(batch) for batch in batches])  # (C, b)
    logits = layer.logits(p, torch.from_numpy(rows))
    logits = logits if offsets is None else logits + offsets[:, None]
    losses = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels[rows]).flatten(), reduction="none")
    return (losses * torch.from_numpy(share).float().flatten()).sum()
