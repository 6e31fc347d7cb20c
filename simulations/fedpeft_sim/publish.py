"""Exporting a committed state as files for others, under ``adapters/<slot>`` of the run directory."""

from pathlib import Path

import torch

from fedpeft.adapter import AdapterState
from fedpeft.data import Records, encode
from fedpeft.export import export_peft
from fedpeft.round.plan import LearningPlan
from fedpeft.tasks.form import SEQ2SEQ
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_server.run.federation import Publish
from fedpeft_server.run.run_directory import AdapterSlot, RunDirectory

__all__ = ["publisher"]


def publisher(pool: ModelPool, plan: LearningPlan, run: RunDirectory, *, probe: Records, base: str) -> Publish:
    """What the federation calls with each committed state.

    Args:
        pool: the base model that the adapter belongs to.
        plan: the run's.
        run: where it goes.
        probe: examples on which the final files are compared with the model; the first four are used.
        base: ``base.model`` of the run, for the model card.
    """

    def publish(slot: AdapterSlot, state: AdapterState) -> None:
        with pool.lend(plan) as union:
            union.load(state)
            inputs = _inputs(pool, plan, probe) if slot == "final" else None

            def write(folder: Path) -> None:
                export_peft(
                    union,
                    folder,
                    base=base,
                    artifact=pool.artifact(plan),
                    inputs=inputs,
                    task=plan.task,
                    convention=run.manifest.convention,
                )

            run.publish_adapter(slot, write)

    return publish


def _inputs(pool: ModelPool, plan: LearningPlan, probe: Records) -> dict[str, torch.Tensor]:
    few = probe.select(range(min(4, len(probe))))
    encoded = encode(few, plan.task, plan.task.outputs, pool.tokenizer(plan))
    rows = [torch.from_numpy(tokens.astype("int64")) for tokens in encoded.input_ids]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    ids = pad(rows, batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": mask}
    two_stacks = SEQ2SEQ in pool.artifact(plan).manifest.tasks
    return {**inputs, "decoder_input_ids": ids.flip(0)} if two_stacks else inputs
