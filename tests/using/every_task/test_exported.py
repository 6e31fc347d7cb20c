"""Each task written out in every form: read again by what the form is for, it answers as the exported folder does.

See ``test_asked``.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from fedpeft.cli import main
from tests.using.every_task.plain import Plain, by_readme, by_transformers
from tests.using.every_task.rows import ROWS, Made
from tests.using.every_task.test_asked import asked_as_texts, close, plain

__all__ = ["plain"]
pytestmark = [pytest.mark.torch, pytest.mark.e2e]
cell = pytest.mark.drawn(2)
every_row = pytest.mark.parametrize("name", ROWS)
Given = Callable[[str], Made]
Capture = pytest.CaptureFixture[str]


def same(one: Plain, other: Plain, rows: list[dict[str, Any]]) -> None:
    """Both answer alike. Where the base is needed for an answer (preferences), what each writes is compared."""
    for row in rows:
        asked = {"prompt": row["prompt"]} if "prompt" in row else row
        close(one.answer(asked), other.answer(asked))


@cell
@every_row
def test_full(name: str, made: Given, plain: Callable[[str], Plain], tmp_path: Path) -> None:
    one, out = made(name), tmp_path / "model"
    assert main(["adapter", "export", str(one.run), "--full", "--out", str(out), "--store", str(one.store)]) == 0
    same(Plain(*by_transformers(out, one.row.kind), one.row.kind, one.row.longest), plain(name), one.asked)


@cell
@every_row
def test_merge(name: str, made: Given, plain: Callable[[str], Plain], tmp_path: Path, capsys: Capture) -> None:
    """Of an adapter and itself, by a rule under which that is the adapter."""
    one, out, store = made(name), tmp_path / "merged", ["--store", str(made(name).store)]
    rule = ("linear", "cat", "svd")[list(ROWS).index(name) % 3]
    shutil.copytree(one.final, tmp_path / "other")
    line = ["adapter", "merge", str(one.run), str(tmp_path / "other"), "--rule", rule, "--out", str(out), "--json"]
    capsys.readouterr()
    assert main([*line, "--data", str(one.file), *store]) == 0
    measured = list(json.loads(capsys.readouterr().out)["measured"].values())
    assert len(measured) == 3
    for scores in measured:
        assert scores == pytest.approx(measured[0], rel=1e-3, abs=1e-3)
    same(Plain(*by_readme(out, one.base), one.row.kind, one.row.longest), plain(name), one.asked)


@cell
@every_row
def test_hub(name: str, made: Given, tmp_path: Path, capsys: Capture) -> None:
    """The loss that it says of its mixture is that of the folder that it writes."""
    one, out, run = made(name), tmp_path / "mixed", str(made(name).run)
    line = ["adapter", "hub", run, run, "--data", str(one.file), "--tries", "3", "--out", str(out), "--json"]
    capsys.readouterr()
    assert main([*line, "--store", str(one.store)]) == 0
    said = json.loads(capsys.readouterr().out)["loss"]
    mixed = Plain(*by_readme(out, one.base), one.row.kind, one.row.longest)
    if one.row.kind == "embeddings":
        assert mixed.vector("hello fox").norm().item() == pytest.approx(1.0, abs=1e-5)
        return
    losses = [mixed.loss(row) for row in one.asked]
    assert said == pytest.approx(sum(loss for loss, _ in losses) / sum(count for _, count in losses), rel=1e-3)


@cell
@every_row
def test_part(name: str, made: Given, plain: Callable[[str], Plain], tmp_path: Path) -> None:
    """For a class of devices: at the run's own rank it is the adapter."""
    one, out = made(name), tmp_path / "part"
    assert main(["adapter", "export", str(one.run), "--rank", "2", "--out", str(out), "--store", str(one.store)]) == 0
    same(Plain(*by_readme(out, one.base), one.row.kind, one.row.longest), plain(name), one.asked)


@cell
@every_row
def test_card(name: str, made: Given, plain: Callable[[str], Plain]) -> None:
    """Its code is what ``plain`` runs; its words name the task, the columns and the classes."""
    one, card = made(name), (made(name).final / "README.md").read_text()
    form = "messages" if name == "preference, conversations" else "prompt+completion"
    written = f"its prompts written as {form}" if one.row.kind == "preference" else "from the columns"
    assert f"Task: {one.row.kind}, {written}" in card
    assert f"{one.row.longest} tokens at most" in card
    assert one.digest in card
    for label in plain(name).config.label2id if one.row.kind in ("classify", "multi-label", "token-classify") else ():
        assert label in card
    assert str(one.store) not in card, "no local path"
    assert str(one.source) not in card


@cell
@every_row
def test_inspect(name: str, made: Given, capsys: Capture) -> None:
    one = made(name)
    capsys.readouterr()
    line = ["adapter", "inspect", str(one.run), "--original", str(one.source), "--store", str(one.store), "--json"]
    assert main(line) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["base_digest"] == one.digest
    assert said["task"]["kind"] == one.row.kind
    assert said["peft_lacks"] == []
    assert said["peft_max_logit_difference"] < 1e-3
    moved = said["original"]
    assert moved["adapter_on_original"] < moved["effect"], "int8 moves less than what was trained"
    assert moved["effect"] > 1e-2
    assert main(["adapter", "inspect", str(one.run)]) == 0
    assert "PeftModel.from_pretrained" in capsys.readouterr().out


@cell
@every_row
def test_gguf(name: str, made: Given, tmp_path: Path, capsys: Capture) -> None:
    """llama.cpp writes: of a decoder that writes there is a file (tests/using/test_gguf.py reads it), or a refusal."""
    one, kind = made(name), ROWS[name].kind
    capsys.readouterr()
    line = ["adapter", "export", str(one.run), "--format", "gguf", "--out", str(tmp_path), "--store", str(one.store)]
    done = main(line)
    said = capsys.readouterr()
    if kind in ("causal-lm", "preference") or name == "embeddings, decoder":
        assert done == 0
        assert "6 matrices" in said.out
        return
    assert done == 3, said
    assert "--full" in said.err or "convert_lora_to_gguf.py" in said.err, said.err
    assert not list(tmp_path.iterdir())


@cell
@every_row
def test_vllm(name: str, made: Given) -> None:
    """The rules of vLLM's PEFTHelper and of its names of tensors; it serves models that write."""
    from safetensors.numpy import load_file

    one = made(name)
    settings = json.loads((one.final / "adapter_config.json").read_text())
    if one.row.kind not in ("causal-lm", "preference"):
        assert settings.get("modules_to_save") or settings["task_type"] in ("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
        return
    assert not settings.get("modules_to_save")
    assert not settings.get("use_dora")
    assert settings["bias"] == "none"
    assert settings.get("rank_pattern", {}) == settings.get("alpha_pattern", {}) == {}, "it reads neither"
    factors = load_file(one.final / "adapter_model.safetensors")
    for tensor, values in factors.items():
        found = re.fullmatch(r"base_model\.model\.(model\.layers\.\d+\.\w+\.(\w+))\.lora_(A|B)\.weight", tensor)
        assert found, tensor
        assert {found[1], found[2]} & {*settings["target_modules"]}
        assert values.shape[0 if found[3] == "A" else 1] == settings["r"] <= 16, "its max_lora_rank unless told"


@cell
@every_row
def test_pipeline(name: str, made: Given, plain: Callable[[str], Plain], tmp_path: Path) -> None:
    """transformers' own pipelines on the merged folder, several texts in a batch: names, not numbers of classes."""
    transformers = pytest.importorskip("transformers")
    kinds = {"classify": "text-classification", "multi-label": "text-classification", "causal-lm": "text-generation"}
    kinds |= {
        "regression": "text-classification",
        "preference": "text-generation",
        "token-classify": "token-classification",
    }
    one, out, kind = made(name), tmp_path / "model", ROWS[name].kind
    assert main(["adapter", "export", str(one.run), "--full", "--out", str(out), "--store", str(one.store)]) == 0
    if kind == "embeddings":
        sentences = pytest.importorskip("sentence_transformers")
        texts = [row["anchor"] for row in one.asked]
        vectors = sentences.SentenceTransformer(str(out), device="cpu").encode(texts)
        for found, text in zip(vectors, texts, strict=True):
            assert found.tolist() == pytest.approx(plain(name).vector(text).tolist(), abs=1e-3)
        return
    if kind not in kinds:
        return  # seq2seq: transformers 5 has no pipeline for it
    asked = transformers.pipeline(kinds[kind], model=str(out), device="cpu", batch_size=4)
    if kind in ("causal-lm", "preference"):
        assert len(asked(asked_as_texts(one)[0], max_new_tokens=2)) == len(one.asked)
        return
    if kind == "token-classify":
        found = [[piece["entity"] for piece in asked(" ".join(row["words"]), ignore_labels=[])] for row in one.asked]
        assert {tag for tags in found for tag in tags} <= {"O", "B-how", "I-how"}
        return
    texts = [
        {"text": row["text"], "text_pair": row["text_pair"]} if "text_pair" in row else row["text"] for row in one.asked
    ]
    how = {"top_k": None, "function_to_apply": "none"} if kind == "regression" else {"top_k": None}
    cut = {"truncation": True, "max_length": one.row.longest}
    for said, row in zip(asked(texts, **how, **cut), one.asked, strict=True):
        expected = plain(name).answer(row)
        if kind == "regression":
            assert said[0]["score"] == pytest.approx(expected["answer"], abs=1e-3)
        else:
            assert {entry["label"]: entry["score"] for entry in said} == pytest.approx(
                expected["probabilities"], abs=1e-3
            )
