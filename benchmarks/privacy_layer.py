"""The gradient of each example through the top of a BERT, an order of magnitude cheaper than the product's.

For ``privacy_utility.py``, whose table needs millions of private gradients. The adapters sit on the last matrix of the
top layer, of which the classifier reads the first token alone: what enters it never changes, is computed once an
example and kept. The rest is differentiated by ``vmap(grad)``.
Compared with the product before it is believed (``TopLayer.expect_same``).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from fedpeft.data import EncodedDataset
from fedpeft.methods import UnionAdapter
from fedpeft.methods.lora import scale_of
from fedpeft.tuning.batches import Indices, collate
from fedpeft.tuning.private import example_losses
from fedpeft.tuning.stages import Stages

POOLER = "bert.pooler.dense"


class TopLayer:
    """The top layer's last matrix, norm, pooler and classifier as a function of the adapter's tensors.

    Args:
        union: MiniLM with LoRA on the top layer's down projection, or with none.
        examples: one data set.
        kept: of each example the first token as it enters the layer, and what attention makes of it, (n, 2, h).
    """

    def __init__(self, union: UnionAdapter, examples: EncodedDataset, kept: Tensor) -> None:
        anatomy = union.anatomy
        self._root = f"{anatomy.layers_path}.{anatomy.layer_count - 1}"
        self._weights = {name: value.detach() for name, value in union.model.named_parameters()}
        self._scale = scale_of(union.adapter.lora) if union.adapter.lora else 0.0
        self._width = kept.shape[2]
        self._labels = torch.from_numpy(np.asarray(examples.labels))
        with torch.no_grad():
            self._inputs = vmap(self._before)(kept)
            if all(name.startswith("classifier.") for name in self.tensors(union)):  # the head alone
                self._inputs = vmap(self._features, in_dims=(None, 0))({}, self._inputs)
        self._losses = vmap(self._loss, in_dims=(None, 0, 0))

    def gradients(self, trained: Mapping[str, Tensor], fixed: Mapping[str, Tensor], indices: Indices) -> list[Tensor]:
        """The gradient of each of these examples' losses, one (b, *shape) a trained tensor."""

        def loss(own: Mapping[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
            return self._loss({**fixed, **own}, x, label)

        found = vmap(grad(loss), in_dims=(None, 0, 0))(dict(trained), self._inputs[indices], self._labels[indices])
        return [found[name] for name in trained]

    def predictions(self, p: Mapping[str, Tensor], indices: Indices) -> Indices:
        """The class that each of these examples is given."""
        with torch.no_grad():
            logits: Tensor = vmap(self._logits, in_dims=(None, 0))(p, self._inputs[indices])
        return logits.argmax(1).numpy()

    def expect_same(self, union: UnionAdapter, examples: EncodedDataset, indices: Indices) -> None:
        """Raises if losses or gradients of these examples differ from the product's."""
        draw = torch.Generator().manual_seed(0)
        blocks = [block.block_id for block in union.spec.blocks if block.trainable]
        union.train_only(blocks)
        trained = {name: p for block in blocks for name, p in union.parameters(block).items()}
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        stages = Stages(union)
        batch = collate(examples, indices, pad_id=stages.pad_id, device=stages.device)
        losses = example_losses(stages, batch, None)
        values = {name: p.detach().clone() for name, p in self.tensors(union).items()}
        mine = self._losses(values, self._inputs[indices], self._labels[indices])
        torch.testing.assert_close(mine, losses.detach(), rtol=1e-4, atol=1e-4)
        exact = torch.autograd.grad(losses.sum(), list(trained.values()))
        near = 1e-4 * max(float(whole.abs().max()) for whole in exact)
        own = self.gradients({name: values[name] for name in trained}, values, indices)
        for one, whole in zip(own, exact, strict=True):
            torch.testing.assert_close(one.sum(0), whole, rtol=1e-3, atol=near)
        union.load(union.initial_state())

    @staticmethod
    def tensors(union: UnionAdapter) -> dict[str, Tensor]:
        """Every tensor of the adapter by its name, frozen ones too."""
        return {name: p for block in union.spec.blocks for name, p in union.parameters(block.block_id).items()}

    @staticmethod
    def pieces(indices: Indices, most: int = 256) -> Iterator[Indices]:
        """These examples, some at a time."""
        yield from np.array_split(indices, -(-len(indices) // most)) if len(indices) else ()

    def _loss(self, p: Mapping[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(self._logits(p, x)[None], label[None])

    def _logits(self, p: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(classes,) of one example."""
        features = x if len(x) == self._width else self._features(p, x)
        return functional.linear(features, p["classifier.weight"], p["classifier.bias"])

    def _before(self, x: Tensor) -> Tensor:
        """What enters the last matrix, and what goes around it, (4 h + h,) of one example, from (2, h)."""
        first, mixed = x[0], x[1]
        y = self._norm("attention.output.LayerNorm", self._linear({}, "attention.output.dense", mixed) + first)
        return torch.cat([functional.gelu(self._linear({}, "intermediate.dense", y)), y])

    def _features(self, p: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(h,) of one example, from (4 h + h,)."""
        inner, y = x[: -self._width], x[-self._width :]
        y = self._norm("output.LayerNorm", self._linear(p, "output.dense", inner) + y)
        return functional.linear(y, self._weights[f"{POOLER}.weight"], self._weights[f"{POOLER}.bias"]).tanh()

    def _linear(self, p: Mapping[str, Tensor], path: str, x: Tensor) -> Tensor:
        """The host with its LoRA."""
        host = f"{self._root}.{path}"
        y = functional.linear(x, self._weights[f"{host}.weight"], self._weights[f"{host}.bias"])
        down = [value for name, value in p.items() if name.startswith(f"{host}.fedpeft.lora.A.")]
        if not down:
            return y
        up = [value for name, value in p.items() if name.startswith(f"{host}.fedpeft.lora.B.")]
        return y + self._scale * functional.linear(functional.linear(x, torch.cat(down)), torch.cat(up, 1))

    def _norm(self, path: str, x: Tensor) -> Tensor:
        host = f"{self._root}.{path}"
        return functional.layer_norm(
            x, x.shape[-1:], self._weights[f"{host}.weight"], self._weights[f"{host}.bias"], eps=1e-12
        )


def first_tokens(union: UnionAdapter, examples: EncodedDataset) -> Tensor:
    """What ``TopLayer`` keeps: the first token as it enters the top layer, and after its attention, (n, 2, h).

    Args:
        union: the base with an adapter in its top layer, at its start: nothing is changed yet.
    """
    anatomy, stages = union.anatomy, Stages(union)
    attention = union.model.get_submodule(f"{anatomy.layers_path}.{anatomy.layer_count - 1}.attention")
    seen: list[Tensor] = []
    handles = [
        attention.get_submodule("output.dense").register_forward_hook(lambda _, args, __: seen.append(args[0][:, 0]))
    ]
    kept = torch.empty(len(examples.input_ids), 2, stages.hidden_size)
    order = np.argsort([len(ids) for ids in examples.input_ids], kind="stable")
    with torch.no_grad():
        for chosen in np.array_split(order, -(-len(order) // 64)):
            batch = collate(examples, chosen, pad_id=stages.pad_id, device=stages.device)
            hidden = stages.hidden_below(batch)
            seen.clear()
            stages.logits_above(batch, hidden)
            kept[chosen] = torch.stack([hidden[:, 0], seen[0]], 1)
    for handle in handles:
        handle.remove()
    return kept
