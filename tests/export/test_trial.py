"""A PEFT directory is claimed only where plain peft, on a base loaded anew, computes what was trained."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from peft import PeftModel  # noqa: E402

from fedpeft.base import BaseArtifact, build, load_model  # noqa: E402
from fedpeft.catalogue.llama_adapter import LlamaAdapter  # noqa: E402
from fedpeft.catalogue.p_tuning_v2 import PTuningV2  # noqa: E402
from fedpeft.config.model import Adapter, Lora  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.export import export_peft, load_union  # noqa: E402
from fedpeft.export import trial as trials  # noqa: E402
from fedpeft.grafting.anatomy import dissect  # noqa: E402
from fedpeft.grafting.attention import use_own_attention  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402
from fedpeft.testing.zoo_methods import CLASSES, attached  # noqa: E402

pytestmark = pytest.mark.torch
IDS = torch.randint(5, 60, (2, 40), generator=torch.Generator().manual_seed(4))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
PREFIX, GATED = Adapter.having(PTuningV2(length=4)), Adapter.having(LlamaAdapter(length=4))
# Whether peft computes a prefix as the paper has it: not with windows, soft caps, interleaved or missing positions.
HELD = {"llama": True, "qwen3": True, "mistral": False, "gemma2": False, "cohere": False, "gemma3_text": False}


def base_of(name: str, folder: Path) -> BaseArtifact:
    return build(str(save_model(name, folder / name)), quantize="none", store=folder / "store")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**INPUTS).logits


@pytest.mark.parametrize(("name", "held"), HELD.items())
def test_a_prefix_is_in_peft_form_only_where_peft_computes_it(tmp_path: Path, name: str, held: bool):
    artifact = base_of(name, tmp_path)
    union = attached(artifact, "causal-lm", PREFIX)
    summary = export_peft(union, tmp_path / "out", base=name, artifact=artifact, inputs=INPUTS)
    assert (not summary.peft_lacks) == held
    again = load_model(artifact, task="causal-lm", head_seed=9)
    if held:
        assert torch.allclose(
            logits(PeftModel.from_pretrained(again, tmp_path / "out")), logits(union.model), atol=1e-4
        )
    else:
        assert torch.allclose(logits(load_union(again, tmp_path / "out").model), logits(union.model), atol=1e-5)


def test_what_peft_refuses_to_load_is_in_our_own_file(tmp_path: Path):
    artifact = base_of("qwen2", tmp_path)  # peft's ADAPTION_PROMPT takes Llama, Mistral and GPT-2
    union = attached(artifact, "causal-lm", GATED)
    assert export_peft(union, tmp_path / "out", base="qwen2", artifact=artifact, inputs=INPUTS).peft_lacks
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"  # of zeros: what is there loads, and changes nothing


def test_a_part_of_the_head_that_the_files_lack_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    artifact = base_of("distilbert", tmp_path)
    union = attached(artifact, "classify", Adapter.having(Lora(rank=2)))
    assert len([name for name in union.anatomy.head if name.startswith("pre_classifier")]) == 2
    whole = export_peft(union, tmp_path / "out", base="m", artifact=artifact, inputs=INPUTS)
    assert not whole.peft_lacks
    assert whole.peft_max_logit_difference < 1e-4
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(settings["modules_to_save"]) == ["classifier", "pre_classifier"]
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    fewer = {name: value for name, value in weights.items() if "pre_classifier" not in name}
    save_file(fewer, tmp_path / "out" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert trials.peft_apart(union, tmp_path / "out", artifact, CLASSES, INPUTS) > 1e-3


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mistral", "llama"])
def test_our_attention_without_parts_is_the_models_own(tmp_path: Path, name: str):
    artifact = base_of(name, tmp_path)
    model, ours = (load_model(artifact, task="causal-lm", head_seed=0) for _ in range(2))
    use_own_attention(dissect(ours, "all"))
    assert torch.allclose(logits(ours), logits(model), atol=2e-5)


def test_an_attention_that_asks_for_more_is_refused_by_name(tmp_path: Path):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = load_model(base_of("llama", tmp_path), task="causal-lm", head_seed=0)
    use_own_attention(dissect(model, "all"))
    function = ALL_ATTENTION_FUNCTIONS["fedpeft"]
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ConfigInvalid, match="novel_bias"):
        function(model.model.layers[0].self_attn, x, x, x, None, scaling=1.0, novel_bias=torch.ones(1))
