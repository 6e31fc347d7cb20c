"""The parts of ``heterogeneity.py``: BANKING77 at unequal clients, and one cell of its table.

A cell is a whole federation with the product's own blocks, batches, label calibration and rules, without the messages:
sums here are float64 sums, which the secure sum equals up to its fixed-point step
(tests/aggregate/test_secure_sums.py). Clients train side by side (``unequal_clients.layer``); the hidden states below
the adapted layer are computed once and kept on disk for all cells.
"""

import csv
import time
from pathlib import Path

import numpy as np
import torch
from unequal_clients.cell import CLIENTS, MIXES, Cell, methods_of
from unequal_clients.layer import Layer, class_means, train_together
from unequal_clients.rounds import Aggregating

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.device_side import forward_state
from fedpeft.aggregate.factors import factor_of
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head
from fedpeft.base import default_store, load_model, load_tokenizer
from fedpeft.base.store import ArtifactStore
from fedpeft.catalogue.blocks import HEAD
from fedpeft.catalogue.lora import Lora, scale_of
from fedpeft.config.adapter import Adapter
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.model import Task
from fedpeft.config.rules import factors_of
from fedpeft.data import EncodedDataset, encode
from fedpeft.data.records import Records
from fedpeft.entropy import derive_seed, generator
from fedpeft.methods import UnionAdapter, attach, blocks_for
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.label_calibration import label_offset
from fedpeft.tuning.split_forward import SplitForward

BASE = "sha256:cb858ecf9b6d782165e6b635601b9faa9db053da15683a241bddad471e1feae3"


class Banking:
    """The data, the base with its adapter, and the kept activations."""

    def __init__(self, data: Path, adapter: Adapter, *, keep: Path, like: "Banking | None" = None) -> None:
        texts, names = {}, {}
        for part in ("train", "test"):
            with (data / f"{part}.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            texts[part], names[part] = [row["text"] for row in rows], [row["category"] for row in rows]
        labels = tuple(sorted(set(names["train"])))
        self.task = Task(kind="classify", labels=labels, max_length=64)
        artifact = ArtifactStore(default_store()).get(BASE)
        torch.set_num_threads(1)
        model = load_model(artifact, task="classify", labels=labels, head_seed=derive_seed(0, "head"))
        self.union: UnionAdapter = attach(model, adapter, seed=0)
        self.stages = SplitForward(self.union)
        tokenizer = load_tokenizer(artifact)
        self.sets = {}
        for part in ("train", "test"):
            records = Records(
                rows=tuple({"text": text, "label": name} for text, name in zip(texts[part], names[part], strict=True)),
                origins=tuple(f"{part}:{i}" for i in range(len(texts[part]))),
            )
            self.sets[part] = encode(records, self.task, labels, tokenizer)
        self.labels, self.test_labels = (np.asarray(self.sets[part].labels) for part in ("train", "test"))
        self.held_out = np.arange(0, len(self.labels), 10)
        self.initial = self.union.initial_state()
        self.layer, self.test_layer = (
            Layer(self.union, *self._kept(part, keep, adapter), scale_of(adapter.lora or Lora()))
            for part in ("train", "test")
        )
        if like is not None:  # of the frozen base: the same for every adapter, a gigabyte each
            self.layer.share(like.layer)
            self.test_layer.share(like.test_layer)

    def _kept(self, part: str, keep: Path, adapter: Adapter) -> tuple[torch.Tensor, np.ndarray]:
        """Hidden states below the adapted layer, example after example, and where each begins."""
        examples = self.sets[part]
        lengths = np.array([len(ids) for ids in examples.input_ids])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        file = keep / f"banking-{part}-L{adapter.layers}.npy"
        if not file.exists():
            keep.mkdir(parents=True, exist_ok=True)
            table = np.empty((starts[-1], self.stages.hidden_size), np.float32)
            order = np.argsort(lengths, kind="stable")
            for first in range(0, len(order), 64):
                chosen = order[first : first + 64]
                batch = collate(examples, chosen, pad_id=self.stages.pad_id, device=self.stages.device)
                hidden = self.stages.hidden_below(batch).numpy()
                for line, i in enumerate(chosen):
                    table[starts[i] : starts[i + 1]] = hidden[line, : lengths[i]]
            np.save(file, table)
        return torch.from_numpy(np.load(file)), starts

    def score(self, state: AdapterState, *, held_out: bool) -> np.ndarray:
        """Right or wrong for every test example, or for those of the training set that ``split`` held out."""
        layer, labels = (self.layer, self.labels) if held_out else (self.test_layer, self.test_labels)
        rows = self.held_out if held_out else np.arange(len(labels))
        rows = rows[np.argsort(layer.lengths[rows], kind="stable")]
        adapter, right = layer.stacked([state]), np.zeros(len(labels), bool)
        with torch.no_grad():
            for chosen in np.array_split(rows, -(-len(rows) // 80)):
                logits = layer.logits(adapter, torch.from_numpy(chosen[None]))
                right[chosen] = logits[0].argmax(-1).numpy() == labels[chosen]
        return right

    def split(self, alpha: float, seed: int, *, held_out: bool) -> list[np.ndarray]:
        """Rows of each client: each class is dealt by a Dirichlet draw; nobody gets fewer than 8 rows.

        With ``held_out`` every tenth row is nobody's: learning rates are chosen on those, never on the test set.
        """
        labels = self.labels
        dealt = np.ones(len(labels), bool)
        dealt[self.held_out] = not held_out
        for attempt in range(200):
            draw = generator(seed, "dirichlet", f"{alpha:g}", attempt)
            shares = draw.dirichlet(np.full(CLIENTS, alpha), len(self.task.labels))
            rows: list[list[int]] = [[] for _ in range(CLIENTS)]
            for label, share in enumerate(shares):
                own = draw.permutation(np.flatnonzero((labels == label) & dealt))
                cuts = np.round(np.cumsum(share) * len(own)).astype(int)[:-1]
                for client, part in enumerate(np.split(own, cuts)):
                    rows[client] += part.tolist()
            if min(map(len, rows)) >= 8 or attempt >= 20:
                break
        poor = [client for client in range(CLIENTS) if len(rows[client]) < 8]
        for client in poor:  # at alpha 0.01 some would stay empty: they take rows of the richest client
            richest = max(range(CLIENTS), key=lambda one: len(rows[one]))
            rows[client] += rows[richest][-16:]
            del rows[richest][-16:]
        return [np.array(sorted(part)) for part in rows]


class Federation(Aggregating):
    """One federation of the table while it runs.

    Args:
        banking: data and base.
        cell: what is trained how.
    """

    def __init__(self, banking: Banking, cell: Cell) -> None:
        self.banking, self.cell = banking, cell
        self.parts = banking.split(cell.alpha, cell.seed, held_out=cell.tuning)
        self.who = cell.clients or tuple(range(CLIENTS))
        self.ranks = [cell.columns * MIXES[cell.mix][client % len(MIXES[cell.mix])] for client in range(CLIENTS)]
        rule = Aggregate.model_validate({"rule": cell.rule, **cell.options})
        super().__init__(rule, banking.initial, self.ranks, list(map(len, self.parts)), self.who, seed=cell.seed)
        everything = banking.sets["train"]
        local = {
            client: EncodedDataset(
                input_ids=tuple(everything.input_ids[i] for i in self.parts[client]),
                labels=banking.labels[self.parts[client]],
                truncated=0,
            )
            for client in self.who
        }
        self.streams = [
            training_stream(own, batch_size=cell.batch_size, seed=derive_seed(cell.seed, "batches", str(client)))
            for client, own in local.items()
        ]
        self.classes = len(banking.task.labels)
        shifts = [label_offset(own, self.classes, strength=cell.prior) for own in local.values()] if cell.prior else []
        self.offsets = torch.stack(shifts) if shifts else None
        self.spent = 0.0

    def run(self) -> dict[str, object]:
        """All rounds, then the result."""
        for round_id in range(1, self.cell.rounds + 1):
            if measures_head(self.state.spec, self.banking.union.adapter, round_id):
                self.measure_head(round_id)
            else:
                self.train(round_id)
        return self.result()

    def measure_head(self, round_id: int) -> None:
        """The round of class means."""
        began = time.process_time()
        first = [np.concatenate(stream.epoch(0)[: self.cell.steps]) for stream in self.streams]
        rows = [self.parts[client][chosen] for client, chosen in zip(self.who, first, strict=True)]
        heads = class_means(self.banking.layer, self.state, rows, self.banking.labels, self.classes)
        self.spent += time.process_time() - began
        self.sent += sum(head.nbytes for head in heads)
        weights = [self.weight(client, {HEAD_BLOCK: head}) for client, head in zip(self.who, heads, strict=True)]
        mean = np.average(np.asarray(heads, np.float64), axis=0, weights=weights)
        summed = self.state.replace({HEAD_BLOCK: mean.astype(np.float32)})
        self.state = between_rounds(summed, self.banking.union.adapter, round_id)

    def train(self, round_id: int) -> None:
        """Every client's steps, and the rule."""
        cell, spec = self.cell, self.state.spec
        factors = factors_of(self.rule.rule, round_id, a_round_every=self.rule.a_round_every)
        owns, given = [], []
        for client in self.who:
            methods, rank = methods_of(cell, client, self.ranks[client])
            # LoRA-A2 trains every column and keeps as many as the rank pays for.
            blocks = blocks_for(spec, methods=methods, rank=None if cell.rule == "lora-a2" else rank, head=True)
            owns.append([b for b in blocks if not factor_of(b) or factor_of(b) in factors])
            given.append(forward_state(self.rule, self.state, rank if "lora" in methods else 0))
        factor = 0.5 * (1 + np.cos(np.pi * (round_id - 1) / cell.rounds))
        head_rate = cell.head_learning_rate or cell.learning_rate
        began = time.process_time()
        trained = train_together(
            self.banking.layer,
            given,
            owns,
            self.streams,
            [self.parts[client] for client in self.who],
            self.banking.labels,
            self.offsets,
            first_step=(round_id - 1) * cell.steps,
            steps=cell.steps,
            learning_rates={
                block.block_id: factor * (head_rate if block.method == HEAD else cell.learning_rate)
                for block in spec.blocks
            },
        )
        self.spent += time.process_time() - began
        self.aggregate(round_id, trained)

    def result(self) -> dict[str, object]:
        """Accuracy on the test set, expected accuracy of the worst client, bytes and device seconds."""
        banking, cell = self.banking, self.cell
        right = banking.score(self.state, held_out=cell.tuning)
        asked = banking.held_out if cell.tuning else np.arange(len(banking.test_labels))
        answers = (banking.labels if cell.tuning else banking.test_labels)[asked]
        right = right[asked]
        by_class = np.array([right[answers == label].mean() for label in range(self.classes)])
        mixes = [np.bincount(banking.labels[self.parts[client]], minlength=self.classes) for client in self.who]
        own = [float(mix @ by_class / mix.sum()) for mix in mixes]
        return {
            "mean": 100 * float(right.mean()),
            "worst": 100 * min(own),
            "clients_mean": 100 * float(np.mean(own)),
            "bytes_up": self.sent,
            "device_s": round(self.spent, 2),
        }


def run_cell(banking: Banking, cell: Cell) -> dict[str, object]:
    """Train one federation to its end."""
    return Federation(banking, cell).run()
