"""A client of another framework: transformers and peft alone, over the folder that ``handover.py`` writes.

Imports nothing of fedpeft, so it runs in any environment with torch, transformers and peft. LoRA is peft's own default
(r = lora_alpha = 8, its target modules for the model, no dropout), what travels is ``get_peft_model_state_dict``: A, B
and the head. AdamW as transformers' Trainer sets it: no weight decay, gradients clipped at 1, fresh each round.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

__all__ = ["PlainClient", "rate_of_round"]

HIGHEST, LOWEST = 5e-5, 1e-6
"""FlowerTune's ``learning-rate-max`` and ``-min``."""
IGNORED = -100


def rate_of_round(rate: float, round_id: int, rounds: int) -> float:
    """The rate of a round, from 1: ``rate``, or with 0 FlowerTune's cosine over the rounds."""
    if rate:
        return rate
    turn = math.pi * round_id / rounds
    return LOWEST + 0.5 * (HIGHEST - LOWEST) * (1 + math.cos(turn))


class PlainClient:
    """One model that all simulated clients take turns with; each brings its examples.

    Args:
        folder: of ``handover.py``.
        seed: of LoRA's A.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.cell: dict[str, Any] = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        self.names = sorted(self.cell["clients"])
        self.writes = self.cell["kind"] == "causal-lm"
        kind = AutoModelForCausalLM if self.writes else AutoModelForSequenceClassification
        base = kind.from_pretrained(folder / "model", dtype=torch.float32)
        for module in base.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        task = TaskType.CAUSAL_LM if self.writes else TaskType.SEQ_CLS
        self.model = get_peft_model(base, LoraConfig(task_type=task, r=self.cell["rank"]))

    def arrays(self) -> dict[str, np.ndarray]:
        """What travels."""
        return {name: value.numpy().copy() for name, value in get_peft_model_state_dict(self.model).items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the federation's values."""
        set_peft_model_state_dict(self.model, {name: torch.from_numpy(value) for name, value in arrays.items()})

    def fit(self, name: str, round_id: int, rate: float) -> int:
        """A round of one client from the values that are loaded; how many examples it has."""
        own, steps = self.cell["clients"][name], self.cell["steps"]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        self.model.train()
        for batch in own["batches"][(round_id - 1) * steps : round_id * steps]:
            loss, _, count = self._forward([own["train"][index] for index in batch])
            optimizer.zero_grad()
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        return len(own["train"])

    def score(self, name: str, *, everything: bool) -> tuple[float, float, int]:
        """Sum of the losses, right answers and how many of them, on a client's held-out examples."""
        own = self.cell["clients"][name]
        rows = own["held_out"] if everything else [own["held_out"][index] for index in own["evaluated"]]
        rows = sorted(rows, key=lambda row: len(row["ids"]))
        self.model.eval()
        sums = [0.0, 0.0, 0]
        size = 4 if self.writes else 64
        with torch.inference_mode():
            for start in range(0, len(rows), size):
                loss, right, count = self._forward(rows[start : start + size])
                sums = [sums[0] + float(loss), sums[1] + right, sums[2] + count]
        return sums[0], sums[1], int(sums[2])

    def _forward(self, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, float, int]:
        width = max(len(row["ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.cell["pad"])
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, : len(row["ids"])] = torch.tensor(row["ids"])
            mask[line, : len(row["ids"])] = 1
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        if self.writes:
            targets = torch.full((len(rows), width), IGNORED)
            for line, row in enumerate(rows):
                targets[line, : len(row["labels"])] = torch.tensor(row["labels"])
            logits, flat = logits[:, :-1].reshape(-1, logits.shape[-1]), targets[:, 1:].reshape(-1)
        else:
            flat = torch.tensor([row["labels"] for row in rows])
        loss = functional.cross_entropy(logits, flat, ignore_index=IGNORED, reduction="sum")
        kept = flat != IGNORED
        return loss, float((logits.argmax(-1) == flat)[kept].sum()), int(kept.sum())
