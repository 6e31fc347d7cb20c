"""SmolLM2 from its GGUF file: fetched by `make base-smollm`; int4-g32 loses nothing of a Q4_1 source."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import build, load_model, load_tokenizer  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
GGUF = Path(__file__).resolve().parents[2] / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not GGUF.is_file():
        pytest.skip(f"no {GGUF}: run `make base-smollm`")
    return tmp_path_factory.mktemp("store")


def test_int4_is_the_known_artifact_and_equals_transformers_own_conversion_to_the_bit(store: Path):
    from transformers import AutoModelForCausalLM

    artifact = build(str(GGUF), quantize="int4-g32", store=store)
    assert artifact.digest == "sha256:da6ac6bee8842bc77fc02471110ffb7686e957bf9c5b92ddc91ee374dd322584"
    assert artifact.size_bytes < 97 * 2**20
    tokenizer = load_tokenizer(artifact)
    batch = tokenizer("Photosynthesis is the process by which", return_tensors="pt")
    reference = AutoModelForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(**batch).logits
        for residency in ("dense", "quantized"):
            model = load_model(artifact, task="causal-lm", labels=(), head_seed=0, residency=residency)
            assert torch.equal(model(**batch).logits, expected)
    text = tokenizer.decode(model.generate(**batch, max_new_tokens=8, do_sample=False)[0])
    assert "plants convert sunlight into energy" in text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in prompt
