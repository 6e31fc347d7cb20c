"""Clipped sums of examples' gradients through the top of a BERT, far cheaper than the product's.

For ``privacy_utility.py``, whose table needs hundreds of millions of private gradients. The adapters sit on the last
matrix of the top layer, of which the classifier reads the first token alone: what enters it never changes, is computed
once an example and kept. There every trained tensor's gradient is an outer product of what enters and the loss's
gradient of what leaves, so that norms and sums need no example's gradient written out (Goodfellow 2015). Compared with
the product's clip of the product's gradients before it is believed (``TopLayer.expect_same``).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.catalogue.lora import scale_of
from fedpeft.data import EncodedDataset
from fedpeft.methods import UnionAdapter
from fedpeft.tuning.batches import Indices, collate
from fedpeft.tuning.dp_sgd_mechanism import clipped_sum
from fedpeft.tuning.hook_check import example_losses
from fedpeft.tuning.per_sample_hooks import micro_gradients
from fedpeft.tuning.split_forward import SplitForward

POOLER = "bert.pooler.dense"
LORA_A, LORA_B = ".lora.A.", ".lora.B."
Trained = Mapping[str, Tensor]


class TopLayer:
    """The top layer's last matrix, norm, pooler and classifier as a function of the adapter's tensors.

    Args:
        union: MiniLM with LoRA on the top layer's down projection, or with none.
        examples: one data set.
        kept: of each example the first token as it enters the layer, and what attention makes of it, (n, 2, h).
    """

    def __init__(self, union: UnionAdapter, examples: EncodedDataset, kept: Tensor) -> None:
        anatomy = union.anatomy
        self._root = anatomy.layer_paths[-1]
        self._weights = {name: value.detach() for name, value in union.model.named_parameters()}
        self._scale = scale_of(union.adapter.lora) if union.adapter.lora else 0.0
        self._labels = torch.from_numpy(np.asarray(examples.labels))
        with torch.no_grad():
            self._inner, self._outer = self._before(kept)  # (n, 4 h), (n, h)
            self._fixed = self._features(self._outer)  # (n, h): what the head alone reads

    def clipped_sum(self, trained: Trained, fixed: Trained, indices: Indices, bound: float) -> Tensor:
        """The sum of these examples' gradients, each shortened to ``bound`` over all trained tensors, (P,) float64."""
        p = {**fixed, **trained}
        down, up = self._factors(p)
        if not len(down):
            features = self._fixed[indices]
        else:
            inner = self._inner[indices]  # (b, 4 h)
            projected = inner @ down.T  # (b, r)
            reached = (self._outer[indices] + self._scale * projected @ up.T).requires_grad_()
            features = self._features(reached)  # (b, h)
        errors = self._errors(features.detach(), p, indices)  # (b, classes)
        # Of each trained matrix: the loss's gradient of what leaves it, and what enters it.
        outer = {"classifier.": (errors, functional.pad(features.detach(), (0, 1), value=1.0))}
        if len(down):
            (left,) = torch.autograd.grad(features, reached, errors @ p["classifier.weight"])
            outer[LORA_B] = (self._scale * left, projected)
            if any(LORA_A in name for name in trained):
                outer[LORA_A] = (self._scale * left @ up, inner)
        squares = sum(one.square().sum(1) * other.square().sum(1) for one, other in outer.values())
        factors = (bound / torch.as_tensor(squares).sqrt().clamp(min=1e-30)).clamp(max=1.0)[:, None]
        sums = {key: (factors * one).T @ other for key, (one, other) in outer.items()}
        found = {"classifier.weight": sums["classifier."][:, :-1], "classifier.bias": sums["classifier."][:, -1]}
        found |= _tiers(p, LORA_B, sums.get(LORA_B), 1) | _tiers(p, LORA_A, sums.get(LORA_A), 0)
        return torch.cat([found[name].flatten() for name in trained]).double()

    def head_inputs(self) -> Tensor:
        """What the head reads where nothing below it is trained, (n, h)."""
        return self._fixed

    def predictions(self, p: Trained, indices: Indices) -> Indices:
        """The class that each of these examples is given."""
        with torch.no_grad():
            down, up = self._factors(p)
            features = self._fixed[indices]
            if len(down):
                features = self._features(self._outer[indices] + self._scale * self._inner[indices] @ down.T @ up.T)
            logits = functional.linear(features, p["classifier.weight"], p["classifier.bias"])
        return logits.argmax(1).numpy()

    def expect_same(self, union: UnionAdapter, examples: EncodedDataset, indices: Indices) -> None:
        """Raises if the clipped sum of these examples differs from the product's."""
        draw = torch.Generator().manual_seed(0)
        blocks = [block.block_id for block in union.spec.blocks if block.trainable]
        union.train_only(blocks)
        trained = {name: p for block in blocks for name, p in union.parameters(block).items()}
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        stages = SplitForward(union)
        rows = []
        for index in indices:
            one = collate(examples, np.array([index]), pad_id=stages.pad_id, device=stages.device)
            rows.append(micro_gradients(example_losses(stages, one, None)[0], list(trained.values())))
        exact = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        norms = torch.cat([part.flatten(1) for part in exact], 1).norm(dim=1)
        values = {name: p.detach().clone() for name, p in self.tensors(union).items()}
        for bound in (float(norms.median()), float("inf")):  # half of them shortened; none
            mine = self.clipped_sum({name: values[name] for name in trained}, values, indices, bound)
            whole = 1e-9 * clipped_sum(exact, bound, 1e-9)
            if not float((mine - whole).norm()) <= 1e-3 * float(whole.norm()):
                raise AssertionError("Expected the product's clipped sum, found another.")
        union.load(union.initial_state())

    @staticmethod
    def tensors(union: UnionAdapter) -> dict[str, Tensor]:
        """Every tensor of the adapter by its name, frozen ones too."""
        return {name: p for block in union.spec.blocks for name, p in union.parameters(block.block_id).items()}

    @staticmethod
    def pieces(indices: Indices, most: int = 1024) -> Iterator[Indices]:
        """These examples, some at a time."""
        yield from np.array_split(indices, -(-len(indices) // most)) if len(indices) else ()

    def _before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the last matrix, (n, 4 h), and what leaves it with what goes around it, (n, h)."""
        first, mixed = x[:, 0], x[:, 1]
        y = self._norm("attention.output.LayerNorm", self._linear("attention.output.dense", mixed) + first)
        inner = functional.gelu(self._linear("intermediate.dense", y))
        return inner, self._linear("output.dense", inner) + y

    def _features(self, x: Tensor) -> Tensor:
        """What the classifier reads, (b, h)."""
        y = self._norm("output.LayerNorm", x)
        return functional.linear(y, self._weights[f"{POOLER}.weight"], self._weights[f"{POOLER}.bias"]).tanh()

    def _errors(self, features: Tensor, p: Trained, indices: Indices) -> Tensor:
        """The loss's gradient of the logits, (b, classes)."""
        labels = self._labels[indices]
        errors = functional.linear(features, p["classifier.weight"], p["classifier.bias"]).softmax(1)
        errors[torch.arange(len(labels)), labels] -= 1.0
        return errors

    def _linear(self, path: str, x: Tensor) -> Tensor:
        host = f"{self._root}.{path}"
        return functional.linear(x, self._weights[f"{host}.weight"], self._weights[f"{host}.bias"])

    def _factors(self, p: Trained) -> tuple[Tensor, Tensor]:
        """A (r, 4 h) and B (h, r); r = 0 without LoRA."""
        down = [value for name, value in p.items() if LORA_A in name]
        up = [value for name, value in p.items() if LORA_B in name]
        if not down:
            return torch.empty(0, self._inner.shape[1]), torch.empty(self._outer.shape[1], 0)
        return torch.cat(down), torch.cat(up, 1)

    def _norm(self, path: str, x: Tensor) -> Tensor:
        host = f"{self._root}.{path}"
        return functional.layer_norm(
            x, x.shape[-1:], self._weights[f"{host}.weight"], self._weights[f"{host}.bias"], eps=1e-12
        )


def _tiers(p: Trained, kind: str, whole: Tensor | None, dim: int) -> dict[str, Tensor]:
    """A factor's sum cut into its tiers; none of a factor that is not trained."""
    if whole is None:
        return {}
    names = [name for name in p if kind in name]
    return dict(zip(names, whole.split([p[name].shape[dim] for name in names], dim), strict=True))


def first_tokens(union: UnionAdapter, examples: EncodedDataset) -> Tensor:
    """What ``TopLayer`` keeps: the first token as it enters the top layer, and after its attention, (n, 2, h).

    Args:
        union: the base with an adapter in its top layer, at its start: nothing is changed yet.
    """
    anatomy, stages = union.anatomy, SplitForward(union)
    attention = union.model.get_submodule(f"{anatomy.layer_paths[-1]}.attention")
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
