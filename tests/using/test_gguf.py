"""GGUF files for llama.cpp: read back by transformers and the gguf package, and by llama.cpp where it is installed."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
from fedpeft.adapter import AdapterState  # noqa: E402
from fedpeft.base import BaseArtifact, build, load_model  # noqa: E402
from fedpeft.base.gguf import open_gguf  # noqa: E402
from fedpeft.cli import main  # noqa: E402
from fedpeft.config.model import Adapter, BitFit, DyLora, Ia3, Lora  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.export.gguf import ARCHITECTURES, write_gguf_adapter, write_gguf_base  # noqa: E402
from fedpeft.methods import UnionAdapter, attach  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402
from tests.using.conftest import Runs  # noqa: E402

pytestmark = pytest.mark.torch
# Unequal ranks: one alpha over a tensor's own rank is right only where all have one rank.
ADAPTER = Adapter(
    lora=Lora(rank=4, targets=("q", "k", "o", "up", "down"), scale=0.7), dylora=DyLora(rank=2, targets=("v",))
)
PROMPTS = 80


def trained_on(artifact: BaseArtifact, adapter: Adapter = ADAPTER) -> UnionAdapter:
    union = attach(load_model(artifact, task="causal-lm", head_seed=0), adapter, seed=1)
    start, draw = union.initial_state(), np.random.Generator(np.random.Philox(5))
    moved = {b: (start[b] + 0.2 * draw.standard_normal(start[b].size)).astype(np.float32) for b in start}
    union.load(AdapterState(start.spec, moved))
    return union


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseArtifact:
    folder = tmp_path_factory.mktemp(request.param)
    # transformers reads no head's width from a Qwen3 file and takes its default, which is that of all published ones.
    own = {"head_dim": 128} if request.param == "qwen3" else {}
    return build(str(save_model(request.param, folder / "m", **own)), quantize="int8", store=folder / "store")


def test_a_base_reads_back_as_it_is(artifact: BaseArtifact, tmp_path: Path) -> None:
    write_gguf_base(artifact, tmp_path / "base.gguf")
    _, tensors = open_gguf(tmp_path / "base.gguf")
    model = load_model(artifact, task="causal-lm", head_seed=0)
    for name, parameter in model.named_parameters():
        assert torch.equal(tensors[name].whole(), parameter), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


def test_the_factors_of_the_file_over_its_one_alpha_make_the_trained_model(
    artifact: BaseArtifact, tmp_path: Path
) -> None:
    union = trained_on(artifact)
    assert write_gguf_adapter(union, artifact, tmp_path / "a.gguf") > 0
    write_gguf_base(artifact, tmp_path / "base.gguf")
    reader, base = gguf.GGUFReader(tmp_path / "a.gguf"), gguf.GGUFReader(tmp_path / "base.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == base.fields["general.architecture"].contents()
    factors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert not {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in factors} - {
        t.name for t in base.tensors
    }
    # As llama.cpp does: W + alpha / (rank of the tensor) B A on its order of rows; then transformers reads it.
    writer = gguf.GGUFWriter(tmp_path / "merged.gguf", fields["general.architecture"])
    for name, field in base.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in base.tensors:
        values = np.array(tensor.data)
        if f"{tensor.name}.lora_a" in factors:
            down, up = factors[f"{tensor.name}.lora_a"], factors[f"{tensor.name}.lora_b"]
            values = values + fields["adapter.lora.alpha"] / up.shape[1] * up @ down
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, merged = open_gguf(tmp_path / "merged.gguf")
    model = load_model(artifact, task="causal-lm", head_seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(merged[name].whole())
        tokens = torch.arange(5, 40).reshape(5, 7)
        assert torch.allclose(model(input_ids=tokens).logits, union.model(input_ids=tokens).logits, atol=1e-4)


@pytest.mark.parametrize("adapter", [Adapter(ia3=Ia3()), Adapter(lora=Lora(rank=2), bitfit=BitFit())])
def test_what_a_gguf_adapter_cannot_hold_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    artifact = build(str(save_model("qwen2", tmp_path / "m")), quantize="int8", store=tmp_path / "store")
    with pytest.raises(ConfigInvalid, match="--full"):
        write_gguf_adapter(trained_on(artifact, adapter), artifact, tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["gpt2", "llama3-rope"])
def test_a_base_that_was_not_tried_is_refused(name: str, tmp_path: Path) -> None:
    artifact = build(str(save_model(name, tmp_path / "m")), quantize="int8", store=tmp_path / "store")
    with pytest.raises(ConfigInvalid, match=r"llama\.cpp.s convert_"):
        write_gguf_base(artifact, tmp_path / "base.gguf")
    assert not (tmp_path / "base.gguf").exists()


def test_the_commands_write_both_files(language: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, store = language.make(tmp_path / "runs", seed=1), ["--store", str(language.store)]
    assert main(["adapter", "export", str(run), "--format", "gguf", "--out", str(tmp_path / "a"), *store]) == 0
    assert "6 matrices" in capsys.readouterr().out
    assert main(["base", "export", language.digest, "--format", "gguf", "--out", str(tmp_path / "b"), *store]) == 0
    assert (tmp_path / "a" / "adapter.gguf").is_file()
    assert (tmp_path / "b" / "base.gguf").is_file()
    assert (
        main(["adapter", "export", str(run), "--format", "gguf", "--full", "--out", str(tmp_path / "c"), *store]) == 2
    )


def test_llama_cpp_itself_says_the_same_next_token(artifact: BaseArtifact, tmp_path: Path) -> None:
    """Needs the package xllamacpp, which no extra installs: llama.cpp's server in this process."""
    xllamacpp = pytest.importorskip("xllamacpp")
    union = trained_on(artifact)
    write_gguf_base(artifact, tmp_path / "base.gguf")
    write_gguf_adapter(union, artifact, tmp_path / "a.gguf")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(tmp_path / "base.gguf"), 128, 1
    settings.warmup, settings.verbosity, settings.cpuparams.n_threads = False, -1, 1
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(tmp_path / "a.gguf"), 1.0)]
    server, draw, compared = xllamacpp.Server(settings), np.random.Generator(np.random.Philox(9)), 0
    for _ in range(PROMPTS):
        prompt = draw.integers(5, 300, 12).tolist()
        asked = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 1, "cache_prompt": False}
        said = server.handle_completions(asked)["choices"][0]["logprobs"]
        if said is None:  # a token without a text of its own (the end, half a character) is not told
            continue
        with torch.no_grad():
            expected = union.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        (token,) = said["content"]
        assert int(expected.argmax()) == token["id"]
        assert abs(float(expected.max()) - token["logprob"]) < 0.02  # llama.cpp keeps keys and values in 16 bits
        compared += 1
    assert compared >= 50
