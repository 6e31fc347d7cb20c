"""`fedpeft base merge`: QA-LoRA in the minima of an int4-g32 base, as another base of the store."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import ArtifactStore, build, load_model  # noqa: E402
from fedpeft.base.load import packed_weights  # noqa: E402
from fedpeft.cli import main  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402
from tests.using.conftest import Runs  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On a Llama of toys in four bits."""
    folder = tmp_path_factory.mktemp("int4")
    artifact = build(str(save_model("llama", folder / "model")), quantize="int4-g32", store=folder / "store")
    return Runs(folder / "store", artifact.digest, "causal-lm")


@torch.no_grad()
def test_a_merged_base_computes_the_trained_model_with_the_codes_and_scales_of_the_old_one(
    packed: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedpeft.api.kept import trained_model

    run = packed.make(tmp_path, seed=4, methods='qalora = {rank = 1, targets = ["q", "up"]}', moved_by=0.02)
    store = ArtifactStore(packed.store)
    assert main(["base", "merge", str(run), "--store", str(packed.store)]) == 0
    digest = capsys.readouterr().out.split()[0]
    merged, old = store.get(digest), store.get(packed.digest)
    assert digest != packed.digest
    merged.verify()
    before, after = packed_weights(old), packed_weights(merged)
    assert before.keys() == after.keys()
    changed = 0
    for name in before:
        for part, value in before[name].parts.items():
            same = torch.equal(value, after[name].parts[part])
            assert same or part == "min", f"{name}/{part}"
            changed += not same
    assert changed == 2 * 3, "two matrices in each of three layers"
    ids = torch.tensor([[5, 9, 17, 33, 2]])
    expected = trained_model(run, store=packed.store).torch_model(ids).logits
    found, plain = (load_model(base, task="causal-lm", head_seed=0)(ids).logits for base in (merged, old))
    apart, effect = (float((one - expected).abs().max()) for one in (found, plain))
    assert apart < 0.02 * effect, "the minima are float16"
    assert main(["base", "merge", str(run), "--store", str(packed.store)]) == 0
    assert capsys.readouterr().out.split()[0] == digest, "the same run makes the same base"


def test_adapter_and_new_base_are_measured_on_the_same_examples(
    packed: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = 'qalora = {rank = 1, targets = ["q", "up"]}'
    run = packed.make(tmp_path, seed=3, methods=methods, convention="prompt+completion", moved_by=0.02)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "hello {word}", "completion": " fox"}}\n' for word in ("quick", "late")))
    assert main(["base", "merge", str(run), "--data", str(file), "--store", str(packed.store)]) == 0
    *_, before, after = capsys.readouterr().out.splitlines()
    assert before.endswith("the adapter on its base")
    assert after.endswith("the new base")
    losses = [float(line.split()[1]) for line in (before, after)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-2), "but for the rounding of the minima"
    assert main(["adapter", "eval", str(run), "--data", str(file), "--store", str(packed.store), "--json"]) == 0
    assert f'"loss": {losses[0]:.3f}'[:12] in capsys.readouterr().out


def test_what_a_base_cannot_hold_is_refused(
    packed: Runs, language: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = packed.make(tmp_path, seed=4)
    assert main(["base", "merge", str(lora), "--store", str(packed.store)]) == 3
    assert "qalora alone, found lora" in capsys.readouterr().err
    int8 = language.make(tmp_path, seed=4, methods='qalora = {rank = 1, targets = ["q"]}')
    assert main(["base", "merge", str(int8), "--store", str(language.store)]) == 3
    assert "int4-g32" in capsys.readouterr().err
