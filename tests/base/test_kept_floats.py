"""What autograd keeps of a layer: counted on zeros, against the real model in training."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fedpeft.base import build
from fedpeft.base.facts import FACTS_FILE, facts_of
from fedpeft.base.kept_floats import counted_floats
from fedpeft.config.model import Adapter, Lora
from fedpeft.methods import attach, blocks_for
from fedpeft.tasks.form import SEQ2SEQ, SEQUENCE, TEXT
from fedpeft.testing.zoo import save_model, transformers_model
from fedpeft.tuning.batches import Batch
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

LENGTH = 32


def kept(model: nn.Module, layers: int) -> float:
    """Floats a token that training LoRA in the top ``layers`` keeps, as autograd's own hooks tell it."""
    union = attach(model, Adapter(layers=layers, lora=Lora(rank=1, tiers=(1,))), seed=0)
    union.train_only(blocks_for(union.spec, methods=("lora",), rank=None, head=False))
    weights = {parameter.untyped_storage().data_ptr() for parameter in union.model.parameters()}
    found, alive = dict[int, int](), list[torch.UntypedStorage]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor.untyped_storage())
        if (place := alive[-1].data_ptr()) not in weights:
            found[place] = alive[-1].nbytes() // 4
        return tensor

    ids = torch.randint(5, 60, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        SplitForward(union).logits(Batch(indices=None, input_ids=ids, attention_mask=None, labels=ids))
    return sum(found.values()) / LENGTH


@pytest.mark.parametrize(("name", "within"), [("gpt2", 0.03), ("phi3", 0.03), ("bloom", 0.03), ("gpt_oss", 0.1)])
def test_zeros_that_take_no_memory_keep_what_training_keeps(name: str, within: float, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    counted = dict(counted_floats(json.loads((folder / "config.json").read_text()), TEXT))
    two, one = (kept(transformers_model(folder, TEXT, {}, 0), layers) for layers in (2, 1))
    # LoRA of rank 1 adds its products; and zeros go to the same experts, where text is spread over all.
    assert counted[LENGTH] == pytest.approx(two - one, rel=within)


def test_an_architecture_that_cannot_be_run_so_has_no_count() -> None:
    assert counted_floats({"model_type": "mixer"}, TEXT) == ()


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_both_stacks_of_an_encoder_decoder_are_counted(name: str, tmp_path: Path) -> None:
    content = json.loads((save_model(name, tmp_path / name) / "config.json").read_text())
    counted = dict(counted_floats(content, SEQ2SEQ))
    widths = 4 * content["d_model"] + (content.get("d_ff") or content["encoder_ffn_dim"])
    assert counted[LENGTH] > widths, "each layer keeps at least its inputs and what its MLP makes"


HOSTILE = {"model_type": "bert", "vocab_size": 100, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("change", "run"),
    [
        ({"intermediate_size": 2**20}, {32}),
        ({"intermediate_size": 2**24}, set()),
        ({"hidden_size": 2**14, "intermediate_size": 2**15}, set()),
        ({"model_type": "mamba2", "hidden_size": 64, "num_heads": 8, "head_dim": 16, "chunk_size": 0}, set()),
    ],
)
def test_a_configuration_that_would_cost_much_or_fails_is_not_run(change: dict[str, object], run: set[int]) -> None:
    began = time.process_time()
    task = TEXT if "model_type" in change else SEQUENCE
    assert {length for length, _ in counted_floats(HOSTILE | change, task)} == run
    assert time.process_time() - began < 5.0


def test_a_base_whose_configuration_is_not_that_of_its_weights_is_not_run(tmp_path: Path) -> None:
    artifact = build(str(save_model("llama", tmp_path / "m")), quantize="int8", store=tmp_path / "s")
    noted = facts_of(artifact).model.kept_floats
    (artifact.path / FACTS_FILE).unlink()
    assert facts_of(artifact).model.kept_floats == noted != ()
    assert (artifact.path / FACTS_FILE).exists(), "found once"
    (artifact.path / FACTS_FILE).unlink()
    config = artifact.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 4096}))
    assert facts_of(artifact).model.kept_floats == ()
