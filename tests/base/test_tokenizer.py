"""The tokenizer that is shipped: whole, without sentencepiece, and no token beyond the model's embedding."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import BaseArtifact, build, facts_of, load_tokenizer  # noqa: E402
from fedpeft.base.facts import FACTS_FILE  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402

pytestmark = pytest.mark.torch
VOCABULARIES = {
    "xlm-roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model"),
    "deberta-v2": ("DebertaV2Tokenizer", "spm.model"),
    "llama": ("LlamaTokenizer", "tokenizer.model"),
}


def with_slow_tokenizer(name: str, directory: Path) -> Path:
    """A model whose vocabulary is in sentencepiece's format alone."""
    spm = pytest.importorskip("sentencepiece")
    save_model(name, directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).unlink()
    kind, file = VOCABULARIES[name]
    text = ["the patient was seen on the ward and sent home with a refund of the flight"] * 20
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(directory / "trained"), vocab_size=60, hard_vocab_limit=False,
        model_type="bpe" if name == "llama" else "unigram", minloglevel=2,
    )  # fmt: skip
    (directory / "trained.model").rename(directory / file)
    (directory / "trained.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    return directory


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_of_sentencepiece_is_converted_once_and_encodes_the_same(tmp_path: Path, name: str):
    from transformers import AutoTokenizer

    directory = with_slow_tokenizer(name, tmp_path / "m")
    artifact = build(str(directory), quantize="none", store=tmp_path / "store")
    assert (artifact.path / "tokenizer.json").is_file()
    assert not (artifact.path / VOCABULARIES[name][1]).exists()
    sentence = "The patient was sent home with a refund."
    ids = load_tokenizer(artifact)(sentence)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(directory)(sentence)["input_ids"]
    assert len(set(ids)) > 8


@pytest.mark.parametrize("broken", [b"\x0a\x00", b""])
def test_a_slow_tokenizer_whose_vocabulary_cannot_be_read_is_refused_by_class_and_file(tmp_path: Path, broken: bytes):
    pytest.importorskip("sentencepiece")
    directory = save_model("xlm-roberta", tmp_path / "m")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    (directory / "sentencepiece.bpe.model").write_bytes(broken)
    with pytest.raises(ConfigInvalid, match=r"XLMRobertaTokenizer.*sentencepiece\.bpe\.model"):
        build(str(directory), quantize="none", store=tmp_path / "store")


@pytest.mark.parametrize(("name", "kind"), [("xlm-roberta", "XLMRobertaTokenizer"), ("bert", "BertTokenizer")])
def test_a_tokenizer_that_lost_its_vocabulary_is_refused(tmp_path: Path, name: str, kind: str):
    directory = save_model(name, tmp_path / "m")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(ConfigInvalid, match=r"vocabulary of .*tokenizer\.json"):
        build(str(directory), quantize="none", store=tmp_path / "store")


def test_a_token_without_an_embedding_is_refused_by_name(tmp_path: Path):
    from transformers import AutoTokenizer

    directory = save_model("llama", tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"<new-{number}>" for number in range(40)])
    tokenizer.save_pretrained(directory)
    with pytest.raises(ConfigInvalid, match=r"below 320.*<new-"):
        build(str(directory), quantize="none", store=tmp_path / "store")


@pytest.mark.parametrize("pad", [-1, 5000])
def test_a_padding_token_that_the_embedding_lacks_is_replaced_and_said(tmp_path: Path, pad: int):
    directory = save_model("llama", tmp_path / "m")
    config = json.loads((directory / "config.json").read_text()) | {"pad_token_id": pad}
    (directory / "config.json").write_text(json.dumps(config))
    artifact = build(str(directory), quantize="none", store=tmp_path / "store")
    facts = facts_of(artifact)
    assert json.loads((artifact.path / "config.json").read_text())["pad_token_id"] == facts.tokenizer.eos_token_id
    assert str(pad) in facts.notes[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> BaseArtifact:
    folder = tmp_path_factory.mktemp("facts")
    return build(str(save_model("llama", folder / "m")), quantize="none", store=folder / "store")


def test_facts_say_what_a_task_must_fit(llama: BaseArtifact):
    facts = facts_of(llama)
    assert (facts.model.embedding_rows, facts.model.positions, facts.model.positions_are_rows) == (320, 160, False)
    assert facts.model.matrices["q_proj"] == 3
    assert facts.tokenizer.adds_bos
    assert not facts.tokenizer.adds_eos
    assert not facts.tokenizer.has_chat_template
    assert facts.tokenizer.probe_unknown == 0
    assert facts.tokenizer.largest_id < 320


@pytest.mark.parametrize(("name", "positions"), [("bert", 160), ("roberta", 160), ("opt", 160), ("gpt2", 160)])
def test_learned_positions_are_those_that_a_sequence_can_use(tmp_path: Path, name: str, positions: int):
    artifact = build(str(save_model(name, tmp_path / "m")), quantize="none", store=tmp_path / "store")
    model = facts_of(artifact).model
    assert model.positions_are_rows
    assert abs(model.positions - positions) <= 3  # RoBERTa's padding token is not always token 1 here


def test_facts_are_found_anew_where_no_file_holds_them_and_are_no_part_of_the_digest(llama: BaseArtifact):
    noted = facts_of(llama)
    file = llama.path / FACTS_FILE
    content = file.read_bytes()
    file.unlink()
    try:
        assert facts_of(llama).model_dump() == noted.model_dump()
        llama.verify()
        assert FACTS_FILE not in {entry.name for entry in llama.manifest.files}
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_in_the_folder_is_refused_by_name(tmp_path: Path, alone: bool):
    directory = save_model("llama", tmp_path / "m")
    (directory / "adapter_config.json").write_text("{}")
    if alone:
        (directory / "model.safetensors").unlink()
    with pytest.raises(ConfigInvalid, match="adapter"):
        build(str(directory), quantize="none", store=tmp_path / "store")


def test_two_sets_of_weights_in_a_folder_are_refused(tmp_path: Path):
    directory = save_model("llama", tmp_path / "m")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    with pytest.raises(ConfigInvalid, match="found both"):
        build(str(directory), quantize="none", store=tmp_path / "store")
