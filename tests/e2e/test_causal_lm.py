"""A federation of a language model from nothing but files that the user brings: model, tokenizer, JSONL."""

import json
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft_server.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "the", "a", "what", "does", "do", "?"]

RUN_TOML = """
[run]
name = "tiny"
[base]
model = "./model"
quantize = "int8"
[task]
kind = "causal-lm"
max_length = 16
[data]
source = "pairs.jsonl"
partition = { by = "iid", clients = 4 }
[adapter]
lora = { rank = 4, tiers = [2, 4], targets = ["q", "v"] }
[train]
local_steps = 12
batch_size = 4
learning_rate = 2e-2
[rounds]
count = 2
[[device]]
clients = ["*"]
methods = ["lora"]
"""


def make_model(folder: Path) -> None:
    """A random Llama of two layers and a tokenizer of a few words, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from fedpeft.testing.models import tiny_llama

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    model = tiny_llama(layers=2)
    assert isinstance(model, LlamaForCausalLM)
    assert isinstance(model.config, LlamaConfig)
    model.save_pretrained(folder)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def test_a_causal_language_model_is_federated_from_local_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path / "model")
    pairs = [
        {"prompt": f"what does {article} {colour} {animal} do ? ", "completion": f"{article} {colour} {animal} {verb}"}
        for article in ("the", "a")
        for colour in ("red", "green", "blue")
        for animal, verb in (("cat", "sleeps"), ("dog", "runs"), ("bird", "sings"))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs * 2))
    (tmp_path / "run.toml").write_text(RUN_TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))

    code = main(["simulate", "run.toml", "--no-baselines"])
    out, err = capfd.readouterr()
    assert code == 0, out + err
    (run,) = (tmp_path / "runs").iterdir()
    view = read_run(run)
    first, last = view.rounds[0], view.rounds[-1]
    assert first.loss is not None
    assert last.loss is not None
    assert last.loss < first.loss, "the held-out loss falls"
    assert verify_run(run) == ()

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model = PeftModel.from_pretrained(base, str(run / "adapters" / "final"))
    moved = [v.detach().abs().max() > 0 for name, v in model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(moved)
