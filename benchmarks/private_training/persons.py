"""Accuracy with people hidden: steps over people against naive group privacy, at the same epsilon for every person.

    PYTHONPATH=benchmarks python -m private_training.persons --data-folder DIR [--seeds 3] [--epsilons 8 3 1]

BANKING77's training set dealt to four devices, as in privacy_utility.py, and each device's rows to made people of
eight: at random ("mixed"), or by intent, so that somebody's rows are of few intents ("alike"). The class head is
trained, 60 steps, SGD with the coordinator's momentum, noise and accounting of the product:

- ``person``: ``unit = "person"``, a step takes 128 people on average and looks at all their rows;
- ``group``: ``unit = "example"``, 1,024 rows on average, at epsilon / 8 and the delta that group privacy asks for:
  eight neighbours in a row are (8 e, 8 exp(7 e) d)-private for steps that are (e, d)-private.

Learning rates are chosen by one run each on a fifth of the people, whose cost is charged to neither. Every cell is kept
in benchmarks/results/privacy_persons.json as soon as it is done, and not computed again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from privacy_utility import CLIP, COUNTED, DELTA, MOMENTUM, Setting
from private_training.private_steps import PrivateSteps

from fedpeft.entropy import generator
from fedpeft.round.plan import ExampleTerms
from fedpeft.tuning.batches import Indices

RESULTS = Path(__file__).parents[1] / "results" / "privacy_persons.json"
EACH, STEPS, PEOPLE, ROWS = 8, 60, 128, 1024
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federation; ``held``: scored on the test set, or on a fifth of the people that it then does not train on."""

    groups: str
    unit: str
    epsilon: float
    rate: float
    seed: int
    held: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.groups}/{self.unit}/eps{self.epsilon:g}/lr{self.rate:g}/s{self.seed}/{self.held}"


class Head:
    """The class head on what the frozen base gives it; all of its gradients are outer products."""

    def __init__(self, features: Floats, labels: Indices, seed: int) -> None:
        self.features, self.labels = np.pad(features, ((0, 0), (0, 1)), constant_values=1.0), labels
        draw = generator(seed, "head")
        self.weight = 0.02 * draw.standard_normal((int(labels.max()) + 1, self.features.shape[1]))
        self.weight[:, -1] = 0.0

    def clipped_sum(self, people: Indices, bound: float) -> Floats:
        """Of people, (b, m) rows: each one's mean gradient shortened to ``bound``, summed, (P,)."""
        inputs, errors = self.features[people], self._errors(people)  # (b, m, h), (b, m, classes)
        mean = people.shape[1]
        squares = np.einsum("bij,bij->b", inputs @ inputs.transpose(0, 2, 1), errors @ errors.transpose(0, 2, 1))
        factors = np.minimum(1.0, bound * mean / np.sqrt(np.maximum(squares, 1e-60))) / mean
        return np.einsum("bmc,bmh->ch", factors[:, None, None] * errors, inputs, optimize=True).ravel()

    def _errors(self, people: Indices) -> Floats:
        logits = self.features[people] @ self.weight.T
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        np.put_along_axis(
            shares,
            self.labels[people][..., None],
            np.take_along_axis(shares, self.labels[people][..., None], -1) - 1,
            -1,
        )
        return shares

    def accuracy(self, rows: Indices) -> float:
        """Of these rows."""
        return float(((self.features[rows] @ self.weight.T).argmax(1) == self.labels[rows]).mean())


def made_people(own: Indices, labels: Indices, groups: str) -> Indices:
    """Rows of one device, (people, 8); what is left over is nobody's."""
    order = generator(0, "made people").permutation(own)
    if groups == "alike":  # by intent; two intents meet where one ends
        order = order[np.argsort(labels[order], kind="stable")]
    return order[: len(order) // EACH * EACH].reshape(-1, EACH)


def terms_of(cell: Cell) -> ExampleTerms:
    """The promise to everybody, by either way."""
    epsilon, delta = cell.epsilon, DELTA
    if cell.unit == "group":
        epsilon /= EACH
        delta /= EACH * math.exp((EACH - 1) * epsilon)
    return ExampleTerms(epsilon=epsilon, delta=delta, l2_clip_norm=CLIP, noise_multiplier=None, steps=STEPS)


def run_cell(setting: Setting, features: Floats, cell: Cell) -> float:
    """Train one federation; its accuracy."""
    labels = np.asarray(setting.examples.labels)
    head = Head(features, labels, cell.seed)
    parts, scored = [], [setting.test] if cell.held == "test" else []
    for own in setting.parts.values():
        people = made_people(own, labels, cell.groups)
        if cell.held != "test":
            order = generator(0, "tuning").permutation(len(people))
            scored.append(people[order[: len(people) // 5]].ravel())
            people = people[order[len(people) // 5 :]]
        parts.append(people if cell.unit == "person" else people.reshape(-1, 1))
    batch = PEOPLE if cell.unit == "person" else ROWS
    size = head.weight.size
    steps = [PrivateSteps(terms_of(cell), batch, [b""] * len(part), size=size, counted=COUNTED) for part in parts]
    velocity = np.zeros(size)
    for step in range(STEPS):
        velocity *= MOMENTUM
        for part, own_steps in zip(parts, steps, strict=True):
            mean = own_steps.mean_gradient(lambda taken, bound, part=part: head.clipped_sum(part[taken], bound))
            velocity += len(part) / sum(map(len, parts)) * mean
        decay = 0.5 * (1 + math.cos(math.pi * step / STEPS))
        head.weight -= decay * cell.rate * velocity.reshape(head.weight.shape)
    return head.accuracy(np.concatenate(scored))


def cells(epsilons: list[float], seeds: int) -> Iterator[Cell]:
    """For each setting its rates, then the best of them with every seed."""
    for groups in ("mixed", "alike"):
        for epsilon in epsilons:
            for unit in ("person", "group"):
                plain = Cell(groups=groups, unit=unit, epsilon=epsilon, rate=0.0, seed=0, held="tune")
                rates = [replace(plain, rate=rate) for rate in RATES]
                yield from rates
                best = max(rates, key=lambda cell: kept()[cell.key])
                yield from (replace(best, seed=seed, held="test") for seed in range(seeds))


def kept() -> dict[str, float]:
    """Every cell that is done."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table() -> dict[str, str]:
    """Mean and standard deviation over seeds."""
    found: dict[str, list[float]] = {}
    for key, score in kept().items():
        groups, unit, epsilon, _, _, held = key.split("/")
        if held == "test":
            found.setdefault(f"{groups}, {epsilon}, {unit}", []).append(100 * score)
    return {name: f"{statistics.mean(own):.1f} ± {statistics.stdev(own):.1f}" for name, own in found.items() if own[1:]}


def main() -> None:
    """Fill the table; print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, required=True, help="holds banking77/")
    parser.add_argument("--keep", type=Path, default=Path("bases"), help="where activations lie")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8.0, 3.0, 1.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting("banking77", arguments.data_folder, arguments.keep)
    features = setting.layer("head")[1].head_inputs().numpy().astype(np.float64)
    for cell in cells(arguments.epsilons, arguments.seeds):
        if cell.key not in kept():
            score = run_cell(setting, features, cell)
            RESULTS.write_text(json.dumps({**kept(), cell.key: round(score, 6)}, indent=0, sort_keys=True) + "\n")
            print(cell.key, round(score, 4), flush=True)
    print(json.dumps(table(), indent=1))


if __name__ == "__main__":
    main()
