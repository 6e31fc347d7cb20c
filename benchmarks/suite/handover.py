"""What another framework gets: a folder with the base as plain files, the split, and every client's batches.

    model/              a transformers checkpoint, float32, the head's values included (`from_pretrained` reads it)
    cell.json           rounds, steps, kind (classify or causal-lm), rank, and for each client its examples as token ids
                        and labels, the examples of every step, and those that a round evaluates

The base is the artifact that fedpeft trains on, dequantized, so that nobody begins with better values.
"""

import json
from pathlib import Path
from typing import Any

from fedpeft.base import load_model, load_tokenizer
from fedpeft.catalogue.lora import Lora
from fedpeft.data import EncodedDataset
from fedpeft.entropy import derive_seed
from fedpeft.tuning.batches import evaluation_stream, training_stream
from fedpeft_client.training.examples import batch_seed
from fedpeft_sim.simulation import Simulation

__all__ = ["hand_over"]


def hand_over(simulation: Simulation, folder: Path) -> Path:
    """Writes the folder; returns it."""
    plan = simulation.plan
    model = load_model(
        simulation.artifact,
        task="causal-lm" if plan.task.record.writes else "classify",
        labels=plan.task.outputs,
        head_seed=derive_seed(plan.seed, "head"),
        residency="dense",
    )
    model.save_pretrained(folder / "model")
    clients = {}
    for name, own in sorted(simulation.examples.items()):
        prepared = own.prepared(plan)
        stream = training_stream(prepared.train, batch_size=plan.train.batch_size, seed=batch_seed(plan.seed, name))
        steps = simulation.config.rounds.count * plan.train.local_steps
        order = evaluation_stream(prepared.held_out, batch_size=1).order(0)
        clients[name] = {
            "train": _rows(prepared.train),
            "held_out": _rows(prepared.held_out),
            "batches": [stream.batch(step).tolist() for step in range(steps)],
            "evaluated": order[: simulation.config.rounds.eval_examples or len(order)].tolist(),
        }
    lora = plan.adapter.of(Lora)
    told: dict[str, Any] = {
        "kind": "causal-lm" if plan.task.record.writes else "classify",
        "rounds": simulation.config.rounds.count,
        "steps": plan.train.local_steps,
        "rank": lora.rank if lora else 8,
        "pad": load_tokenizer(simulation.artifact).pad_token_id or 0,
        "clients": clients,
    }
    (folder / "cell.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def _rows(examples: EncodedDataset) -> list[dict[str, Any]]:
    return [
        {"ids": ids.tolist(), "labels": label.tolist()}
        for ids, label in zip(examples.input_ids, examples.labels, strict=True)
    ]
