"""A federation of an encoder-decoder from files alone, through the secure sum, and its adapter in plain peft."""

import json
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.entropy import generator
from fedpeft.testing.zoo import WORDS, save_model
from fedpeft_server.run.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]


def write_pairs(path: Path, columns: tuple[str, str]) -> None:
    """Four words, of which the first two are wanted."""
    words, draw = WORDS.split(), generator(0, "pairs of words")
    rows = [[words[i] for i in draw.choice(len(words), 4, replace=False)] for _ in range(60)]
    pairs = [dict(zip(columns, (" ".join(row), " ".join(row[:2])), strict=True)) for row in rows]
    path.write_text("\n".join(map(json.dumps, pairs)))


def test_an_encoder_decoder_is_federated_asked_and_loaded_by_plain_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    save_model("bart", tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", ("document", "summary"))
    assert main(["init", "--data", "pairs.jsonl", "--model", "model"]) == 0
    assert "seq2seq" in capfd.readouterr().out
    generating = ["task.generate=8", "task.max_new_tokens=5", 'rounds.metric="rouge_l"']
    quick = [
        *generating,
        "rounds.count=1",
        "train.local_steps=4",
        "data.partition={by='iid',clients=3}",
        'base.quantize="none"',
    ]
    options = [part for one in quick for part in ("--set", one)]
    assert main(["simulate", "run.toml", "--no-baselines", "--out", "runs", *options]) == 0, capfd.readouterr()
    (run,) = (tmp_path / "runs").iterdir()
    view = read_run(run)
    before, after = (row.loss for row in view.rounds)
    assert before is not None
    assert after is not None
    assert after < before
    assert all({"rouge_l", "exact_match"} <= {*row.metrics} for row in view.rounds)
    assert verify_run(run) == ()

    from peft import AutoPeftModelForSeq2SeqLM
    from transformers import AutoTokenizer

    folder = run / "adapters" / "final"
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "hello fox yes no"
    source = tokenizer([text], return_tensors="pt")["input_ids"]
    free = {"forced_bos_token_id": None, "forced_eos_token_id": None}
    written = model.generate(input_ids=source, max_new_tokens=12, do_sample=False, num_beams=1, **free)
    theirs = tokenizer.decode(written[0], skip_special_tokens=True)
    capfd.readouterr()
    assert main(["adapter", "predict", str(run), text, "--max-tokens", "12"]) == 0
    ours = capfd.readouterr().out.splitlines()[-1].removesuffix(f"\t{text}")
    assert ours.strip() == theirs.strip()

    assert main(["adapter", "eval", str(run), "pairs.jsonl", "--generate", "9", "--max-new-tokens", "5", "--json"]) == 0
    assert {"rouge_l", "exact_match", "perplexity"} <= json.loads(capfd.readouterr().out).keys()


def test_private_examples_of_pairs_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", ("source", "target"))
    save_model("t5", tmp_path / "model")
    assert main(["init", "--data", "pairs.jsonl", "--model", "model"]) == 0
    private = ["--set", 'privacy.unit="example"', "--set", "privacy.epsilon=8", "--set", "privacy.delta=1e-5"]
    assert main(["config", "validate", "run.toml", *private]) == 3
    assert "encoder-decoder" in "".join(capfd.readouterr())
