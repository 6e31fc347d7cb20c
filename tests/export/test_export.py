"""Exported directories load with peft alone, or with load_union, and give the trained model's logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from fedpeft.adapter import AdapterState
from fedpeft.catalogue.compacter import Compacter
from fedpeft.catalogue.llama_adapter import LlamaAdapter
from fedpeft.catalogue.p_tuning import PTuning
from fedpeft.catalogue.p_tuning_v2 import PTuningV2
from fedpeft.catalogue.parallel import Parallel
from fedpeft.catalogue.prefix import Prefix
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.model import (
    AdaLora,
    Adapter,
    BitFit,
    Bottleneck,
    DiffPruning,
    Dora,
    DyLora,
    Fish,
    Ia3,
    LayerNorm,
    Lora,
    QaLora,
    ReLora,
    Vera,
)
from fedpeft.errors import IntegrityFailed, SpecMismatch
from fedpeft.export import export_peft, load_union
from fedpeft.methods import UnionAdapter, attach
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

INPUTS = {
    "input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
LORA = Lora(rank=4, targets=("q", "v", "down"), scale=0.7)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    output: torch.Tensor = model(**INPUTS).logits
    return output


def trained(model: nn.Module, adapter: Adapter) -> UnionAdapter:
    """An adapter that is far from its start in every trainable block."""
    union = attach(model, adapter, seed=6)
    draw = np.random.Generator(np.random.Philox(5))
    start = union.initial_state()
    moved = {
        b.block_id: (start[b.block_id] + 0.2 * draw.standard_normal(b.size)).astype(np.float32)
        for b in union.spec.blocks
        if b.trainable
    }
    union.load(AdapterState(start.spec, {**start.vectors, **moved}))
    return union


COMPLETE = {
    "lora and head": (tiny_bert, Adapter(lora=LORA)),
    "lora of the top layer": (tiny_bert, Adapter(lora=LORA, layers=1)),
    "lora, biases and head": (tiny_bert, Adapter(lora=LORA, bitfit=BitFit())),
    "biases and head": (tiny_bert, Adapter(bitfit=BitFit())),
    "lora without head": (tiny_bert, Adapter(lora=LORA, head=False)),
    "head": (tiny_bert, Adapter()),
    "ia3 and head": (tiny_bert, Adapter(ia3=Ia3())),
    "norms and head": (tiny_bert, Adapter(layernorm=LayerNorm())),
    "norms, lora and head": (tiny_bert, Adapter(layernorm=LayerNorm(), lora=LORA)),
    "norms, lora, biases and head": (tiny_bert, Adapter(layernorm=LayerNorm(), lora=LORA, bitfit=BitFit())),
    "norms, ia3 and head": (tiny_bert, Adapter(layernorm=LayerNorm(), ia3=Ia3())),
    "rank-stabilized lora": (tiny_bert, Adapter(lora=LORA.model_copy(update={"scaling": "rslora"}), head=False)),
    "decoder norms": (tiny_llama, Adapter(layernorm=LayerNorm(), layers=2)),
    "decoder norms and lora": (tiny_llama, Adapter(layernorm=LayerNorm(), lora=LORA)),
    "decoder norms and ia3": (tiny_llama, Adapter(layernorm=LayerNorm(), ia3=Ia3())),
    "dora and head": (tiny_bert, Adapter(dora=Dora(rank=4, targets=("q", "down"), scale=0.7))),
    "dora, biases, norms and head": (tiny_bert, Adapter(dora=Dora(rank=4), bitfit=BitFit(), layernorm=LayerNorm())),
    "vera and head": (tiny_bert, Adapter(vera=Vera(rank=8, targets=("q", "up", "down")))),
    "adalora, biases and head": (tiny_bert, Adapter(adalora=AdaLora(rank=4), bitfit=BitFit())),
    "dylora and head": (tiny_bert, Adapter(dylora=DyLora(rank=4, targets=("q", "up")))),
    "relora and head": (tiny_bert, Adapter(relora=ReLora(rank=2, cycles=3))),
    "qalora and head": (tiny_bert, Adapter(qalora=QaLora(rank=1, targets=("q", "down")))),
    "three low-rank methods on one matrix": (
        tiny_llama,
        Adapter(lora=LORA, adalora=AdaLora(rank=3, targets=("v", "up")), qalora=QaLora(rank=1)),
    ),
    "decoder dora": (tiny_llama, Adapter(dora=Dora(rank=4, targets=("q", "v", "gate")), layers=2)),
    "decoder vera and norms": (tiny_llama, Adapter(vera=Vera(rank=8), layernorm=LayerNorm())),
    "decoder lora": (tiny_llama, Adapter(lora=LORA.model_copy(update={"targets": ("q", "o", "gate")}))),
    "decoder ia3": (tiny_llama, Adapter(ia3=Ia3(), layers=2)),
}

COMPLETE |= {
    "prompt and head": (tiny_bert, Adapter(prompt=Prompt(length=5))),
    "encoded prompt and head": (tiny_bert, Adapter(p_tuning=PTuning(length=5, width=8))),
    "decoder prefix": (tiny_llama, Adapter(prefix=Prefix(length=5, width=8))),
    "decoder p-tuning v2": (tiny_llama, Adapter(p_tuning_v2=PTuningV2(length=5))),
    "decoder llama-adapter": (tiny_llama, Adapter(llama_adapter=LlamaAdapter(length=5), layers=2)),
}


@pytest.mark.parametrize("case", COMPLETE)
def test_peft_alone_gives_the_trained_models_logits(case, tmp_path):
    build, adapter = COMPLETE[case]
    union = trained(build(), adapter)
    summary = export_peft(union, tmp_path, base="pypi:tiny", inputs=INPUTS)
    base = build()
    if "head" in case:
        with torch.no_grad():
            base.classifier.weight.add_(1.0)  # another machine's head: the export must bring its own
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert float((logits(loaded.eval()) - logits(union.model)).abs().max()) <= 1e-5
    assert not torch.allclose(logits(build()), logits(union.model), atol=1e-2)
    assert summary.peft_lacks == ()
    assert summary.peft_max_logit_difference <= 1e-5
    assert not (tmp_path / "union.json").exists()


WHOLE = {
    "lora beside ia3": (tiny_bert, Adapter(lora=LORA, ia3=Ia3())),
    "lora of the scaled matrices alone": (tiny_bert, Adapter(lora=Lora(rank=2, targets=("v", "down")), ia3=Ia3())),
    "lora, biases, norms and ia3": (
        tiny_bert,
        Adapter(lora=LORA, bitfit=BitFit(), layernorm=LayerNorm(), ia3=Ia3(), layers=2),
    ),
    "biases beside ia3": (tiny_bert, Adapter(bitfit=BitFit(), ia3=Ia3(), layers=2)),
    "decoder lora beside ia3": (tiny_llama, Adapter(lora=LORA, ia3=Ia3())),
}


@pytest.mark.parametrize("case", WHOLE)
def test_with_whole_matrices_peft_alone_gives_the_logits_of_ia3_beside_lora(case, tmp_path):
    build, adapter = WHOLE[case]
    union = trained(build(), adapter)
    summary = export_peft(union, tmp_path, base="pypi:tiny", inputs=INPUTS, whole_matrices=True)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    assert float((logits(loaded.eval()) - logits(union.model)).abs().max()) <= 1e-5
    assert summary.peft_lacks == ()
    assert summary.peft_max_logit_difference <= 1e-5
    assert len(summary.whole_matrices) == 3 * (union.anatomy.layer_count - union.anatomy.first_layer)
    assert not (tmp_path / "union.json").exists()


INCOMPLETE = {
    "lora beside ia3": (tiny_bert, Adapter(lora=LORA, ia3=Ia3()), "ia3"),
    "biases beside ia3": (tiny_bert, Adapter(bitfit=BitFit(), ia3=Ia3(), layers=2), "ia3"),
    "diff pruning": (tiny_bert, Adapter(diffpruning=DiffPruning()), "diffpruning"),
    "fish mask": (tiny_llama, Adapter(fish=Fish(keep=0.01)), "fish"),
    "dora beside lora": (tiny_bert, Adapter(lora=LORA, dora=Dora(rank=4)), "dora"),
    "decoder vera beside lora": (tiny_llama, Adapter(lora=LORA, vera=Vera(rank=8)), "vera"),
    "bottlenecks": (tiny_bert, Adapter(bottleneck=Bottleneck(width=4)), "bottleneck"),
    "parallel bottlenecks": (tiny_bert, Adapter(parallel=Parallel(width=4)), "parallel"),
    "bottlenecks beside norms": (tiny_bert, Adapter(bottleneck=Bottleneck(), layernorm=LayerNorm()), "bottleneck"),
    "llama-adapter on an encoder": (tiny_bert, Adapter(llama_adapter=LlamaAdapter(length=5)), "llama_adapter"),
    "compacter": (tiny_bert, Adapter(compacter=Compacter(width=8), lora=LORA), "compacter"),
    "decoder bottlenecks": (tiny_llama, Adapter(bottleneck=Bottleneck(width=4), layers=2), "bottleneck"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_peft_cannot_hold_comes_back_with_load_union(case, tmp_path):
    build, adapter, lacking = INCOMPLETE[case]
    union = trained(build(), adapter)
    summary = export_peft(union, tmp_path, base="pypi:tiny", inputs=INPUTS)
    again = load_union(build(), tmp_path)
    assert torch.equal(logits(again.model), logits(union.model))
    assert again.state().digests == union.state().digests
    assert {union.spec[block].method for block in summary.peft_lacks} == {lacking}
    assert summary.union_max_logit_difference == 0.0
    assert summary.peft_max_logit_difference > 1e-3


def test_the_difference_told_for_incomplete_peft_files_is_the_one_peft_gives(tmp_path):
    union = trained(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit(), ia3=Ia3()))
    summary = export_peft(union, tmp_path, base="pypi:tiny", inputs=INPUTS)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    found = float((logits(loaded) - logits(union.model)).abs().max())
    assert found == pytest.approx(summary.peft_max_logit_difference, abs=1e-4)


def test_exporting_leaves_the_adapter_as_it_was(tmp_path):
    union = trained(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit()))
    before = union.state().digests
    export_peft(union, tmp_path, base="pypi:tiny", inputs=INPUTS)
    assert union.state().digests == before


def test_the_same_adapter_exports_to_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        export_peft(trained(tiny_bert(), Adapter(lora=LORA, ia3=Ia3())), tmp_path / name, base="pypi:tiny")
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "second" / f).read_bytes() for f in files)


def test_no_local_path_is_written(tmp_path):
    union = trained(tiny_bert(), Adapter(lora=LORA, ia3=Ia3()))
    summary = export_peft(union, tmp_path / "out", base=str(tmp_path / "secret" / "my-model"))
    assert summary.base == "my-model"
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_hub_base_is_named_with_its_revision(tmp_path):
    export_peft(trained(tiny_bert(), Adapter(lora=LORA)), tmp_path, base=f"hub:org/name@{'a' * 40}")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/name", "a" * 40)
    assert "base_model: org/name\n" in (tmp_path / "README.md").read_text()


def test_the_summary_and_the_card_say_what_the_peft_files_lack(tmp_path):
    export_peft(trained(tiny_bert(), Adapter(lora=LORA, ia3=Ia3())), tmp_path, base="pypi:tiny")
    assert json.loads((tmp_path / "inspect.json").read_text())["peft_lacks"] == ["ia3"]
    card = (tmp_path / "README.md").read_text()
    assert "Not in the PEFT files" in card
    assert "load_union" in card


def test_an_export_over_an_older_one_leaves_nothing_of_it(tmp_path):
    export_peft(trained(tiny_bert(), Adapter(lora=LORA, ia3=Ia3())), tmp_path, base="pypi:tiny")
    export_peft(trained(tiny_bert(), Adapter(lora=LORA)), tmp_path, base="pypi:tiny")
    with pytest.raises(SpecMismatch, match="PEFT files are complete"):
        load_union(tiny_bert(), tmp_path)


def test_another_base_model_is_refused(tmp_path):
    export_peft(trained(tiny_bert(), Adapter(lora=LORA, ia3=Ia3())), tmp_path, base="pypi:tiny")
    with pytest.raises(SpecMismatch, match="pypi:tiny"):
        load_union(tiny_bert(layers=2), tmp_path)


def test_a_damaged_description_is_refused(tmp_path: Path):
    export_peft(trained(tiny_bert(), Adapter(lora=LORA, ia3=Ia3())), tmp_path, base="pypi:tiny")
    (tmp_path / "union.json").write_text('{"adapter": {}}')
    with pytest.raises(IntegrityFailed, match="export_peft"):
        load_union(tiny_bert(), tmp_path)


@pytest.mark.parametrize("layers", ["all", 2])
def test_prefixes_of_an_encoder_come_back_with_load_union(layers, tmp_path):
    adapter = Adapter(p_tuning_v2=PTuningV2(length=5), layers=layers)
    union = trained(tiny_bert(), adapter)
    summary = export_peft(union, tmp_path, base="pypi:tiny", inputs=INPUTS)
    assert summary.peft_lacks == ("p_tuning_v2",)
    assert summary.peft_max_logit_difference is None  # no values of a prefix are those of no prefix
    assert torch.equal(logits(load_union(tiny_bert(), tmp_path).model), logits(union.model))
