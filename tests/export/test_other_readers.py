"""Who reads an export elsewhere: readers without peft's patterns, transformers alone, a pipeline, the card's lines."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
from fedpeft.adapter import AdapterState  # noqa: E402
from fedpeft.base import BaseArtifact, build, load_model  # noqa: E402
from fedpeft.catalogue.bottleneck import Bottleneck  # noqa: E402
from fedpeft.catalogue.prompt import Prompt  # noqa: E402
from fedpeft.cli.base import command as base_command  # noqa: E402
from fedpeft.config.model import AdaLora, Adapter, BitFit, DyLora, Ia3, LayerNorm, Lora, QaLora  # noqa: E402
from fedpeft.errors import ConfigInvalid, IntegrityFailed  # noqa: E402
from fedpeft.export import export_peft  # noqa: E402
from fedpeft.export.merge import merge_adapters, read_exported  # noqa: E402
from fedpeft.export.whole_model import export_base, export_merged  # noqa: E402
from fedpeft.methods import UnionAdapter, attach  # noqa: E402
from fedpeft.testing.models import tiny_llama  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402

pytestmark = pytest.mark.torch
INPUTS = {
    "input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 11, 4]]),
    "attention_mask": torch.ones(2, 5, dtype=torch.int64),
}
HEAD_SEED = 3
LABELS = ("good", "so so", "bad")
UNEQUAL = {
    "lora and a smaller dylora": Adapter(lora=Lora(rank=8, targets=("q", "o")), dylora=DyLora(rank=2, targets=("v",))),
    "lora and adalora on one matrix": Adapter(
        lora=Lora(rank=4, targets=("q", "v"), scale=0.7), adalora=AdaLora(rank=3, targets=("v", "up"))
    ),
    "lora beside qalora": Adapter(lora=Lora(rank=4, targets=("v",)), qalora=QaLora(rank=1, targets=("q", "v"))),
}
Scale = Callable[[dict[str, float], np.ndarray], float]
READERS: dict[str, Scale] = {
    "vLLM: lora_alpha / r": lambda settings, up: settings["lora_alpha"] / settings["r"],
    "llama.cpp: lora_alpha / the tensor's rank": lambda settings, up: settings["lora_alpha"] / up.shape[1],
}


def moved(union: UnionAdapter, *, by: float = 0.2) -> UnionAdapter:
    draw, start = np.random.Generator(np.random.Philox(5)), union.initial_state()
    moved = {
        b.block_id: (start[b.block_id] + by * draw.standard_normal(b.size)).astype(np.float32)
        for b in union.spec.blocks
        if b.trainable
    }
    union.load(AdapterState(start.spec, {**start.vectors, **moved}))
    return union


@torch.no_grad()
def logits(model: "torch.nn.Module") -> "torch.Tensor":
    found: torch.Tensor = model(**INPUTS).logits
    return found


def read_without_patterns(folder: Path, scale: Scale) -> "torch.Tensor":
    """A reader that knows nothing but two factors a matrix and one scale: adds scale * B A to the weight."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    model = tiny_llama()
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." in name:
                up = tensors[name.replace("lora_A", "lora_B")]
                path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_submodule(path).weight += torch.from_numpy(scale(settings, up) * up @ down)
    return logits(model)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", UNEQUAL)
def test_unequal_ranks_are_scaled_alike_by_every_reader(case: str, reader: str, tmp_path: Path) -> None:
    union = moved(attach(tiny_llama(), UNEQUAL[case], seed=6))
    export_peft(union, tmp_path, base="pypi:tiny")
    assert torch.allclose(read_without_patterns(tmp_path, READERS[reader]), logits(union.model), atol=1e-5)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not settings.get("rank_pattern")
    assert not settings.get("alpha_pattern")


@pytest.mark.parametrize("reader", READERS)
def test_merged_adapters_of_unequal_ranks_are_scaled_alike_by_every_reader(reader: str, tmp_path: Path) -> None:
    first = Adapter(lora=Lora(rank=8, targets=("q", "o")))
    second = Adapter(lora=Lora(rank=2, targets=("q", "v")))
    for name, adapter in (("a", first), ("b", second)):
        export_peft(moved(attach(tiny_llama(), adapter, seed=6)), tmp_path / name, base="pypi:tiny")
    merge_adapters([read_exported(tmp_path / name) for name in "ab"], (0.5, 0.5), "cat", tmp_path / "out")
    from peft import PeftModel

    peft = logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval())
    assert torch.allclose(read_without_patterns(tmp_path / "out", READERS[reader]), peft, atol=1e-5)


def test_adapters_of_other_classes_do_not_merge(tmp_path: Path) -> None:
    artifact = built(tmp_path, "bert")
    for name, labels in (("a", LABELS), ("b", LABELS[::-1])):
        model = load_model(artifact, task="classify", labels=labels, head_seed=0)
        export_peft(attach(model, Adapter(lora=Lora(rank=2)), seed=0), tmp_path / name, base="pypi:tiny")
    with pytest.raises(ConfigInvalid, match="one set of classes, found bad, so so, good and good, so so, bad"):
        merge_adapters([read_exported(tmp_path / name) for name in "ab"], (0.5, 0.5), "linear", tmp_path / "out")


def built(folder: Path, name: str, quantize: str = "int8") -> BaseArtifact:
    return build(str(save_model(name, folder / "m")), quantize=quantize, store=folder / "store")


def trained_on(artifact: BaseArtifact, adapter: Adapter) -> UnionAdapter:
    task = "causal-lm" if "causal-lm" in artifact.manifest.tasks and artifact.model_type == "llama" else "classify"
    labels = LABELS if task == "classify" else ()
    return moved(attach(load_model(artifact, task=task, labels=labels, head_seed=HEAD_SEED), adapter, seed=1))


@pytest.mark.parametrize(("name", "quantize"), [("bert", "int8"), ("roberta", "nf4"), ("llama", "int4-g32")])
def test_the_lines_of_the_card_load_the_trained_model_on_the_exported_base(
    name: str, quantize: str, tmp_path: Path
) -> None:
    artifact = built(tmp_path, name, quantize)
    union = trained_on(artifact, Adapter(lora=Lora(rank=4)))
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    export_peft(union, adapter, base=str(tmp_path), artifact=artifact)
    card = (adapter / "README.md").read_text()
    assert f'fedpeft base export {artifact.digest} --out "<the base model>"' in card
    arguments = ["export", artifact.digest, "--out", str(base), "--store", str(tmp_path / "store")]
    assert "loaded anew" in CliRunner().invoke(base_command, arguments, catch_exceptions=False).output
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("<the base model>", str(base)).replace("<this directory>", str(adapter))
    scope: dict[str, object] = {}
    exec(code, scope)  # noqa: S102 - our own card
    model, tokenizer = scope["model"], scope["tokenizer"]
    assert torch.allclose(logits(model.eval()), logits(union.model), atol=1e-5)  # type: ignore[attr-defined]
    assert tokenizer(["a text"])["input_ids"]  # type: ignore[operator]
    if name != "llama":
        assert model.config.id2label == dict(enumerate(LABELS))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(lora=Lora(rank=4)),
        Adapter(ia3=Ia3(), lora=Lora(rank=2)),
        Adapter(layernorm=LayerNorm(), lora=Lora(rank=2)),
    ],
    ids=["lora", "lora beside ia3", "norms and lora"],
)
def test_a_merged_model_is_the_trained_one_for_transformers_alone(name: str, adapter: Adapter, tmp_path: Path) -> None:
    from transformers import pipeline

    artifact = built(tmp_path, name)
    union = trained_on(artifact, adapter)
    folder = tmp_path / "whole"
    written = export_merged(union, artifact, folder, INPUTS, head_seed=HEAD_SEED, max_length=64)
    assert written.max_difference <= 1e-4
    kind = "text-generation" if name == "llama" else "text-classification"
    loaded = pipeline(kind, model=str(folder))  # model and tokenizer by the folder's name alone
    assert torch.allclose(logits(loaded.model.eval()), logits(union.model), atol=1e-4)
    if name == "bert":
        assert loaded("a text")[0]["label"] in LABELS
    assert not list(folder.glob("adapter*"))


def test_biases_fold_into_a_model_that_has_them(tmp_path: Path) -> None:
    artifact = built(tmp_path, "bert")
    union = trained_on(artifact, Adapter(bitfit=BitFit(), lora=Lora(rank=2)))
    assert (
        export_merged(union, artifact, tmp_path / "whole", INPUTS, head_seed=HEAD_SEED, max_length=64).max_difference
        <= 1e-4
    )


@pytest.mark.parametrize("adapter", [Adapter(bottleneck=Bottleneck(width=4)), Adapter(prompt=Prompt(length=3))])
def test_an_adapter_that_is_no_change_of_weights_is_not_folded(adapter: Adapter, tmp_path: Path) -> None:
    artifact = built(tmp_path, "bert")
    with pytest.raises(ConfigInvalid, match="cannot be folded"):
        export_merged(
            trained_on(artifact, adapter), artifact, tmp_path / "whole", INPUTS, head_seed=HEAD_SEED, max_length=64
        )


def test_a_folder_with_files_in_it_is_not_written_into(tmp_path: Path) -> None:
    artifact = built(tmp_path, "bert")
    with pytest.raises(ConfigInvalid, match="new or empty folder"):
        export_base(artifact, tmp_path, INPUTS)


def test_a_merged_model_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a library had lost a tensor on the way: what is loaded anew differs."""
    from transformers import PreTrainedModel

    artifact = built(tmp_path, "bert")
    save = PreTrainedModel.save_pretrained

    def lossy(self: PreTrainedModel, folder: Path) -> None:
        with torch.no_grad():
            next(self.parameters()).zero_()
        save(self, folder)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lossy)
    with pytest.raises(IntegrityFailed, match="compute what they stand for"):
        export_base(artifact, tmp_path / "base", INPUTS)


def test_all_files_of_an_export_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    artifact = built(tmp_path, "bert")
    export_peft(trained_on(artifact, Adapter(lora=Lora(rank=2))), tmp_path / "a", base="x", artifact=artifact)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()}
    assert len(set(modes.values())) == 1, modes
