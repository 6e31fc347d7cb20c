"""All clients of a round trained side by side: one adapted BERT layer, one batch dimension a client.

Meant to take the same steps as ``fedpeft.tuning.train`` (AdamW without decay, fresh in each round, each client's
gradient clipped to norm one, the same batches) at a fraction of the cost: keys and values of the frozen layer are
computed once for every token, and thirty small products become one. Compared with the product's loop, delta for
delta, by tests/benchmarks/test_heterogeneity_layer.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.adapter import AdapterState, flatten, unflatten
from fedpeft.aggregate.head_start import HEAD_BLOCK
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter
from fedpeft.tuning.batches import BatchStream
from fedpeft.tuning.class_means import class_rows


@dataclass(frozen=True, slots=True)
class Host:
    """What adapts one matrix: A (C, r, d_in), B (C, d_out, r), a bias and a gain (C, d_out); None: there is none."""

    down: Tensor | None
    up: Tensor | None
    bias: Tensor | None
    gain: Tensor | None

    def gained_up(self) -> Tensor:
        """B with the gain, which also scales what LoRA adds."""
        return self.up if self.gain is None else self.up * (1 + self.gain[..., None])


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
        self.root = anatomy.layer_paths[-1]
        self.weights = {name: value.detach() for name, value in union.model.named_parameters()}
        self.spec, self.scale = union.spec, scale
        self.heads = int(union.model.config.num_attention_heads)
        self.table, self.starts = table, torch.from_numpy(starts)
        self.lengths = np.diff(starts)
        with torch.no_grad():
            self.keys, self.values = (self._frozen(f"attention.self.{name}", table) for name in ("key", "value"))
            self.queries = self._frozen("attention.self.query", table[self.starts[:-1]])  # of first tokens

    def share(self, other: "Layer") -> None:
        """Use another's tables of the same frozen base in place of equal ones."""
        self.table, self.keys, self.values, self.queries = other.table, other.keys, other.values, other.queries

    def _frozen(self, path: str, x: Tensor) -> Tensor:
        host = f"{self.root}.{path}"
        return functional.linear(x, self.weights[f"{host}.weight"], self.weights[f"{host}.bias"])

    def _path(self, p: Mapping[str, Tensor], path: str) -> "Host":
        host = f"{self.root}.{path}"
        lora = f"{host}.fedpeft.lora"
        down = [value for name, value in p.items() if name.startswith((f"{lora}.A.", f"{lora}.carried.A"))]
        up = [value for name, value in p.items() if name.startswith((f"{lora}.B.", f"{lora}.carried.B"))]
        return Host(
            down=torch.cat(down, 1) if down else None,
            up=torch.cat(up, 2) if up else None,
            bias=p.get(f"{host}.fedpeft.bitfit.delta"),
            gain=p.get(f"{host}.fedpeft.ia3.delta"),
        )

    def _adapt(self, p: Mapping[str, Tensor], path: str, x: Tensor, y: Tensor) -> Tensor:
        """Y with the host's LoRA, bias and gain; x, y (C, n, d)."""
        host = self._path(p, path)
        if host.down is not None:
            y = torch.baddbmm(y, torch.bmm(x, host.down.transpose(1, 2)), host.up.transpose(1, 2), alpha=self.scale)
        return self._own(host, y)

    @staticmethod
    def _own(host: "Host", y: Tensor) -> Tensor:
        y = y if host.bias is None else y + host.bias[:, None]
        return y if host.gain is None else y * (1 + host.gain[:, None])

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
        size = self.table.shape[1]
        heads = (clients * batch, self.heads, size // self.heads)
        by_token = (clients * batch, width, self.heads, size // self.heads)
        x = self.table[first]  # (C, b, h): the first token alone
        q = self._adapt(p, "attention.self.query", x, self.queries[rows]).reshape(heads)
        # B A x_t is never formed for a token: q (K + B A x_t) = q K + (B^T q) (A x_t), and V alike.
        k, v = (self._path(p, f"attention.self.{name}") for name in ("key", "value"))
        adapted = k.down is not None or v.down is not None
        hidden = self.table[places] if adapted else None  # (C, b t, h)
        scores = (q[:, None] * self._own(k, self.keys[places]).view(by_token)).sum(-1)  # (C b, t, heads)
        if k.down is not None:
            up = k.gained_up().reshape(clients, self.heads, -1, k.up.shape[-1])  # (C, heads, d, r)
            turned = torch.einsum("cbhd,chdr->cbhr", q.view(clients, batch, *heads[1:]), up)
            narrow = torch.bmm(hidden, k.down.transpose(1, 2)).view(clients, batch, width, -1)
            scores = scores + self.scale * torch.einsum("cbtr,cbhr->cbth", narrow, turned).reshape(scores.shape)
        scores = (scores * (size // self.heads) ** -0.5).masked_fill(~inside.view(-1, width, 1), -torch.inf)
        attention = scores.softmax(1)
        mixed = (attention[..., None] * self._own(v, self.values[places]).view(by_token)).sum(1)  # (C b, heads, d)
        if v.down is not None:
            up = v.gained_up().reshape(clients, self.heads, -1, v.up.shape[-1])
            narrow = torch.bmm(hidden, v.down.transpose(1, 2)).view(clients, batch, width, -1)
            taken = torch.einsum("cbtr,cbth->cbhr", narrow, attention.view(clients, batch, width, self.heads))
            mixed = mixed + self.scale * torch.einsum("cbhr,chdr->cbhd", taken, up).reshape(mixed.shape)
        mixed = mixed.reshape(clients, batch, size)
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


def class_means(
    layer: Layer, start: AdapterState, rows_of: Sequence[np.ndarray], labels: np.ndarray, classes: int
) -> list[np.ndarray]:
    """What ``measure_class_means`` puts into the head's block of each client, from these rows of the table."""
    p, width = layer.stacked([start]), layer.table.shape[1]
    p |= {"classifier.weight": torch.eye(width)[None], "classifier.bias": torch.zeros(1, width)}
    features = np.zeros((len(labels), width), np.float32)
    everyone = np.concatenate(rows_of)
    everyone = everyone[np.argsort(layer.lengths[everyone], kind="stable")]
    with torch.no_grad():
        for chosen in np.array_split(everyone, -(-len(everyone) // 80)):
            features[chosen] = layer.logits(p, torch.from_numpy(chosen[None]))[0].numpy()
    found = []
    for rows in rows_of:
        sums = np.zeros((classes, width))
        np.add.at(sums, labels[rows], features[rows])
        counts = np.bincount(labels[rows], minlength=classes).astype(np.float64)
        head = {"classifier.weight": class_rows(sums, counts), "classifier.bias": np.zeros(classes)}
        found.append(flatten(layer.spec[HEAD_BLOCK], head))
    return found


GROUP = 6
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
    learning_rates: Mapping[BlockId, float],
) -> list[dict[BlockId, np.ndarray]]:
    """What every client's own blocks are after ``steps`` steps from its start.

    Args:
        starts: what each client computes with at the start.
        owns: the blocks that each trains.
        streams: each client's batches, over its own examples.
        rows_of: each client's examples as rows of the table.
        offsets: (C, classes) added to the logits of the loss, or None.
        learning_rates: of every block that anybody trains.
    """
    p = layer.stacked(starts)
    block_of = {tensor.name: block.block_id for block in layer.spec.blocks for tensor in block.tensors}
    owners = {name: np.array([c for c, own in enumerate(owns) if block_of[name] in own]) for name in p}
    owners = {name: who for name, who in owners.items() if len(who)}
    own_values = {name: p[name][who].clone() for name, who in owners.items()}
    groups = [
        {"params": [own_values[name] for name in owners if block_of[name] == block_id], "lr": rate}
        for block_id, rate in learning_rates.items()
    ]
    optimizer = torch.optim.AdamW([one for one in groups if one["params"]], weight_decay=0.0, fused=True)
    grads = {name: torch.empty_like(p[name]) for name in owners}
    for step in range(steps):
        batches = [rows_of[c][stream.batch(first_step + step)] for c, stream in enumerate(streams)]
        # Clients whose batches are about as long go together, so that little is padded.
        longest = np.array([int(layer.lengths[batch].max()) for batch in batches])
        for group in np.array_split(np.argsort(longest, kind="stable"), -(-len(batches) // GROUP)):
            part = {name: value[group].requires_grad_(name in owners) for name, value in p.items()}
            loss = _loss(layer, part, [batches[c] for c in group], labels, None if offsets is None else offsets[group])
            torch.autograd.backward([loss])
            for name in owners:
                grads[name][group] = part[name].grad
        squares = torch.zeros(len(batches))
        for name, who in owners.items():
            own_values[name].grad = grads[name][who]
            squares.index_add_(0, torch.from_numpy(who), own_values[name].grad.flatten(1).square().sum(1))
        shrink = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # (C,)
        for name, who in owners.items():
            own_values[name].grad.mul_(shrink[who].view(-1, *[1] * (p[name].dim() - 1)))
        optimizer.step()
        for name, who in owners.items():
            p[name][who] = own_values[name]
    found = []
    for client, own in enumerate(owns):
        tensors = {name: p[name][client].numpy() for name in owners}
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
