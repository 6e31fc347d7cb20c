"""An adapter trained over quantized weights says so, and how far it is on the original ones."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
from fedpeft.adapter import AdapterState  # noqa: E402
from fedpeft.base import build, load_model  # noqa: E402
from fedpeft.cli.adapter import command  # noqa: E402
from fedpeft.config.model import Adapter, Lora  # noqa: E402
from fedpeft.export import export_peft  # noqa: E402
from fedpeft.export.original import moved_by_the_original_weights  # noqa: E402
from fedpeft.methods import attach  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402

pytestmark = pytest.mark.torch
ADAPTER = Adapter(lora=Lora(rank=4, targets=("q", "v")))


@pytest.mark.parametrize(("name", "task"), [("llama", "causal-lm"), ("bert", "classify"), ("roberta", "classify")])
def test_card_and_inspect_name_the_quantization_and_measure_what_it_moves(tmp_path: Path, name: str, task: str):
    source, store = save_model(name, tmp_path / "m"), tmp_path / "store"
    trained, original = (build(str(source), quantize=scheme, store=store) for scheme in ("nf4", "none"))
    labels = ("0", "1", "2") if task == "classify" else ()
    union = attach(load_model(trained, task=task, labels=labels, head_seed=0), ADAPTER, seed=1)
    start = union.initial_state()
    draw = np.random.Generator(np.random.Philox(5))
    changed = {
        b.block_id: (start[b.block_id] + 0.2 * draw.standard_normal(b.size)).astype(np.float32)
        for b in union.spec.blocks
        if b.trainable
    }
    union.load(AdapterState(start.spec, {**start.vectors, **changed}))
    folder = tmp_path / "adapter"
    export_peft(union, folder, base=str(source), artifact=trained)
    assert "nf4 weights" in (folder / "README.md").read_text()
    moved = moved_by_the_original_weights(folder, trained, original)
    assert 1e-4 < moved.adapter_on_original < 2.0
    assert moved.effect > 1e-3
    assert moved_by_the_original_weights(folder, trained, trained).adapter_on_original == 0.0
    arguments = ["inspect", str(folder), "--original", str(source), "--store", str(store)]
    told = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "trained on   nf4 weights" in told
    assert f"logits within {moved.adapter_on_original:.1e}" in told
