"""Skewed labels: the class head's start, refresh and rates, and label calibration, each against the default.

    python benchmarks/heads.py                  goes on where it stopped (--only PLACE..., --variant NAME..., --seeds N)
    python benchmarks/heads.py --quick          one small federation, nothing kept (under a minute)

MiniLM, q and v of the top layer at rank 8 over kept activations, all clients in each round, the plain mean: the
product's steps taken side by side (``unequal_clients.layer``, held against ``fedpeft.tuning.train`` by tests). Places:

- more classes than a batch, ten clients, 10 rounds of 8 steps of 16; every label at one client, or Dirichlet 0.3:
  BANKING77 (77 intents; a fourth of it, from --data) and docstrings of the running Python's standard library (which of
  its modules one is from; a fourth is the test set). Every round counts, those that measure class means too.
- few classes, the head from a seed, 8 rounds of 8 steps of 4 or 16: the demo's tweets by airline, PubMedQA's answers.

Reported is the mean accuracy on the test set after the last three rounds, in percent, and the worst client's expected
one: by its own mix of classes. Ends with one JSON object on its last line; all is kept in results/heads.json.
"""

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rates
import torch
from unequal_clients.banking import BASE
from unequal_clients.layer import Layer, class_means, train_together

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head
from fedpeft.base import default_store, load_model, load_tokenizer
from fedpeft.base.store import ArtifactStore
from fedpeft.catalogue.lora import Lora, scale_of
from fedpeft.config.adapter import Adapter
from fedpeft.config.model import Task, Train
from fedpeft.data import EncodedDataset, encode, load
from fedpeft.data.records import Records
from fedpeft.entropy import derive_seed, generator
from fedpeft.methods import attach, due_blocks
from fedpeft.round.rates import learning_rates
from fedpeft.testing.trainers import toy_plan
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.label_calibration import label_offset
from fedpeft.tuning.split_forward import SplitForward

RESULTS = Path(__file__).parent / "results" / "heads.json"
CLIENTS, STEPS, LENGTH, TESTED = 10, 8, 48, 4
SMALLEST_MODULE = 24
DEFAULT = "default"
Rows = list[tuple[str, str, str]]
"""Text, label, owner; an empty owner: to be drawn."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one row of the table sets."""

    refresh: int = 0
    calibration: float = 0.0
    head: float | None = None
    rate: float | str = "auto"


MANY: dict[str, Variant] = {
    DEFAULT: Variant(),
    "refreshed every 2": Variant(refresh=2),
    "refreshed every 3": Variant(refresh=3),
    "refreshed every 4": Variant(refresh=4),
    "calibration 1": Variant(calibration=1.0),
    "head 0.001": Variant(head=0.001),
    "head 0.01": Variant(head=0.01),
    "0.003 everywhere": Variant(rate=0.003),
    "half the rate": Variant(rate=0.5),
    "twice the rate": Variant(rate=2.0),
    "twice the rate, refreshed every 3": Variant(rate=2.0, refresh=3),
}
"""A rate of 0.5 and 2 is a multiple of auto's, for LoRA alone."""
FEW: dict[str, Variant] = {
    DEFAULT: Variant(),
    "head 0.003": Variant(head=0.003),
    "head 0.01": Variant(head=0.01),
    "head 0.1": Variant(head=0.1),
    "0.003 everywhere": Variant(rate=0.003),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data set, split.

    Args:
        read: its rows.
        alpha: of Dirichlet; 0: owners are the rows' own.
        few: whether the head starts from a seed.
    """

    read: Callable[[Path], Rows]
    alpha: float = 0.0
    few: bool = False
    rounds: int = 10
    batch: int = 16

    @property
    def variants(self) -> Mapping[str, Variant]:
        """The rows of its table."""
        return FEW if self.few else MANY


def banking(data: Path) -> Rows:
    """A fourth of the queries."""
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        return _owned([(row["text"], row["category"]) for row in csv.DictReader(file)][::4])


def docstrings(data: Path) -> Rows:
    """A docstring and its module, of the modules with 24 and more."""
    records = load("builtin:stdlib-docstrings", {}, columns=("completion", "module")).records
    found = [(str(records[i]["completion"]), str(records[i]["module"])) for i in range(len(records))]
    sizes = Counter(module for _, module in found)
    return _owned([(text, module) for text, module in found if sizes[module] >= SMALLEST_MODULE])


def tweets(data: Path) -> Rows:
    """The demo's, about 200 an airline."""
    return [(row["text"], row["label"], row["airline"]) for row in rates.tweets(data, 200)]


def pubmedqa(data: Path) -> Rows:
    """Questions with their answers, dealt to five."""
    return [(row["text"], row["label"], str(i % 5)) for i, row in enumerate(rates.pubmedqa(data))]


def _owned(rows: list[tuple[str, str]]) -> Rows:
    places = {label: index for index, label in enumerate(sorted({label for _, label in rows}))}
    return [(text, label, str(places[label] % CLIENTS)) for text, label in rows]


PLACES = {
    "banking77, each label at one": Place(read=banking),
    "docstrings, each label at one": Place(read=docstrings),
    "banking77, dirichlet 0.3": Place(read=banking, alpha=0.3),
    "docstrings, dirichlet 0.3": Place(read=docstrings, alpha=0.3),
    "tweets, batches of 4": Place(read=tweets, few=True, rounds=8, batch=4),
    "tweets, batches of 16": Place(read=tweets, few=True, rounds=8),
    "pubmedqa, batches of 4": Place(read=pubmedqa, few=True, rounds=8, batch=4),
    "pubmedqa, batches of 16": Place(read=pubmedqa, few=True, rounds=8),
}


class Federation:
    """One data set on the model, split into clients; trained as often as asked.

    Args:
        place: which.
        data: where data sets lie.
    """

    def __init__(self, place: Place, data: Path) -> None:
        torch.set_num_threads(1)
        self.place, rows = place, place.read(data)
        names = sorted({label for _, label, _ in rows})
        self.task = Task(kind="classify", labels=tuple(names), max_length=LENGTH)
        artifact = ArtifactStore(default_store()).get(BASE)
        model = load_model(artifact, task="classify", labels=tuple(names), head_seed=derive_seed(0, "head"))
        self.adapter = Adapter(layers=1, lora=Lora(rank=8), head_start="seed" if place.few else "class-means")
        self.union = attach(model, self.adapter, seed=0)
        records = Records(
            rows=tuple({"text": text, "label": label} for text, label, _ in rows),
            origins=tuple(map(str, range(len(rows)))),
        )
        self.examples = encode(records, self.task, tuple(names), load_tokenizer(artifact))
        self.labels = np.asarray(self.examples.labels)
        self.owners = np.array([owner for _, _, owner in rows])
        table, starts = self._below()
        self.layer = Layer(self.union, table, starts, scale_of(Lora(rank=8)))
        self.test = np.arange(0, len(rows), TESTED)

    def _below(self) -> tuple[torch.Tensor, np.ndarray]:
        stages = SplitForward(self.union)
        lengths = np.array([len(ids) for ids in self.examples.input_ids])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        table = np.empty((starts[-1], stages.hidden_size), np.float32)
        order = np.argsort(lengths, kind="stable")
        for chosen in np.array_split(order, -(-len(order) // 64)):
            batch = collate(self.examples, chosen, pad_id=stages.pad_id, device=stages.device)
            hidden = stages.hidden_below(batch).numpy()
            for line, i in enumerate(chosen):
                table[starts[i] : starts[i + 1]] = hidden[line, : lengths[i]]
        return torch.from_numpy(table), starts

    def split(self, seed: int) -> list[np.ndarray]:
        """Rows of each client; nobody has test rows, nobody has fewer than 8."""
        mine = np.setdiff1d(np.arange(len(self.labels)), self.test)
        if not self.place.alpha:
            return [mine[self.owners[mine] == owner] for owner in sorted(set(self.owners))]
        draw = generator(seed, "dirichlet", f"{self.place.alpha:g}")
        parts = [list[int]() for _ in range(CLIENTS)]
        for label in range(len(self.task.labels)):
            own = draw.permutation(mine[self.labels[mine] == label])
            cuts = np.round(np.cumsum(draw.dirichlet(np.full(CLIENTS, self.place.alpha))) * len(own)).astype(int)[:-1]
            for client, some in enumerate(np.split(own, cuts)):
                parts[client] += some.tolist()
        return [np.array(sorted(part)) for part in parts if len(part) >= 8]

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """One federation from its start: accuracy on the test set after each round."""
        began, place, classes = time.process_time(), self.place, len(self.task.labels)
        adapter = self.adapter.model_copy(update={"head_refresh": variant.refresh, "head_learning_rate": variant.head})
        everything = variant.rate if variant.rate == 0.003 else "auto"
        train = Train(local_steps=STEPS, batch_size=place.batch, learning_rate=everything)
        plan = toy_plan(self.union.spec).model_copy(update={"adapter": adapter, "train": train, "task": self.task})
        parts, state = self.split(seed), self.union.initial_state()
        locals_ = [self._local(part) for part in parts]
        streams = [
            training_stream(own, batch_size=place.batch, seed=derive_seed(seed, "batches", str(i)))
            for i, own in enumerate(locals_)
        ]
        shifts = [label_offset(own, classes, strength=variant.calibration) for own in locals_]
        offsets = torch.stack(shifts) if variant.calibration else None  # type: ignore[arg-type]
        curve, worst = [], []
        for round_id in range(1, place.rounds + 1):
            if measures_head(state.spec, adapter, round_id):
                rows = [p[np.concatenate(s.epoch(0)[:STEPS])] for p, s in zip(parts, streams, strict=True)]
                heads = class_means(self.layer, state, rows, self.labels, classes)
                after = [{HEAD_BLOCK: head} for head in heads]
            else:
                due = sorted(b for b in due_blocks(state.spec, adapter, round_id) if state.spec[b].trainable)
                found = learning_rates(plan, state.spec, due)
                if variant.rate in {0.5, 2.0}:
                    found = {b: r if b == HEAD_BLOCK else r * float(variant.rate) for b, r in found.items()}
                after = train_together(
                    self.layer, [state] * len(parts), [due] * len(parts), streams, parts, self.labels, offsets,
                    first_step=(round_id - 1) * STEPS, steps=STEPS, learning_rates=found,
                )  # fmt: skip
            state = between_rounds(mean(state, after), adapter, round_id)
            right = self._right(state)
            curve.append(round(100 * float(right.mean()), 2))
            worst.append(self._worst(right, parts, classes))
        last = {"last_3": round(float(np.mean(curve[-3:])), 2), "worst_last_3": round(float(np.mean(worst[-3:])), 2)}
        rate = {b: float(f"{r:.3g}") for b, r in learning_rates(plan, state.spec, [HEAD_BLOCK, "lora.B.t8"]).items()}
        spent = round(time.process_time() - began, 1)
        return last | {"after_each_round": curve, "clients": len(parts), "rates": rate, "cpu_s": spent}

    def _local(self, rows: np.ndarray) -> EncodedDataset:
        ids = tuple(self.examples.input_ids[i] for i in rows)
        return EncodedDataset(input_ids=ids, labels=self.labels[rows], truncated=0)

    def _right(self, state: AdapterState) -> np.ndarray:
        rows = self.test[np.argsort(self.layer.lengths[self.test], kind="stable")]
        adapter, right = self.layer.stacked([state]), np.zeros(len(self.labels), bool)
        with torch.no_grad():
            for chosen in np.array_split(rows, -(-len(rows) // 80)):
                logits = self.layer.logits(adapter, torch.from_numpy(chosen[None]))
                right[chosen] = logits[0].argmax(-1).numpy() == self.labels[chosen]
        return right[self.test]

    def _worst(self, right: np.ndarray, parts: Sequence[np.ndarray], classes: int) -> float:
        answers = self.labels[self.test]
        by_class = np.array([right[answers == c].mean() if (answers == c).any() else 0.0 for c in range(classes)])
        mixes = [np.bincount(self.labels[part], minlength=classes) for part in parts]
        return 100 * float(min(mix @ by_class / mix.sum() for mix in mixes))


def mean(state: AdapterState, after: Sequence[Mapping[Any, np.ndarray]]) -> AdapterState:
    """Every block at the devices' plain mean."""
    return state.replace(
        {b: np.mean([one[b] for one in after], axis=0, dtype=np.float64).astype(np.float32) for b in after[0]}
    )


def main() -> None:
    """Every cell that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=rates.DATA, help="where banking77 and pubmedqa lie")
    parser.add_argument("--only", nargs="*", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--variant", nargs="*", help="rows of the table; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        small = replace(PLACES["tweets, batches of 4"], rounds=2, read=lambda data: tweets(data)[::8])
        print(json.dumps(Federation(small, options.data).run(Variant(), 0)))
        return
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in options.only:
        place, cells, federation = PLACES[name], found.setdefault(name, {}), None
        for seed in range(options.seeds):
            for row, variant in place.variants.items():
                key = f"{row}, seed {seed}"
                if key in cells or (options.variant and row not in options.variant):
                    continue
                federation = federation or Federation(place, options.data)
                cells[key] = federation.run(variant, seed)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(name, key, json.dumps(cells[key]), flush=True)
    print(json.dumps({name: {key: one["last_3"] for key, one in cells.items()} for name, cells in found.items()}))


if __name__ == "__main__":
    main()
