"""A federation of a language model from nothing but files that the user brings: model, tokenizer, JSONL."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft.cli import main
from fedpeft.round.rates.search import MULTIPLES, scale_of_losses
from fedpeft_server.run.run_view import read_run, verify_run

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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, pairs and run.toml."""
    folder = tmp_path_factory.mktemp("files")
    make_model(folder / "model")
    pairs = [
        {"prompt": f"what does {article} {colour} {animal} do ? ", "completion": f"{article} {colour} {animal} {verb}"}
        for article in ("the", "a")
        for colour in ("red", "green", "blue")
        for animal, verb in (("cat", "sleeps"), ("dog", "runs"), ("bird", "sings"))
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs * 2))
    (folder / "run.toml").write_text(RUN_TOML)
    return folder


@pytest.fixture
def out(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's run goes; the working directory is that of the files."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("FEDPEFT_HOME", str(files / "home"))
    return tmp_path / "runs"


def test_a_causal_language_model_is_federated_from_local_files(
    files: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["simulate", "run.toml", "--no-baselines", "--out", str(out)])
    assert code == 0, "".join(capfd.readouterr())
    (run,) = out.iterdir()
    view = read_run(run)
    first, last = view.rounds[0], view.rounds[-1]
    assert first.loss is not None
    assert last.loss is not None
    assert last.loss < first.loss, "the held-out loss falls"
    assert verify_run(run) == ()

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(files / "model")
    model = PeftModel.from_pretrained(base, str(run / "adapters" / "final"))
    moved = [v.detach().abs().max() > 0 for name, v in model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(moved)
    assert view.manifest.convention == "prompt+completion"
    assert main(["adapter", "predict", str(run), "what does the red dog do ?"]) == 0
    assert "the red dog" in capfd.readouterr().out.splitlines()[-1]


BOTH = ('adapter.lora.train="both"',)
OFF = ('secagg.mode="off"',)
RULES = {
    "nested with A-rounds and momentum": (
        *BOTH, "aggregate.a_round_every=2", "aggregate.server_optimizer=\"momentum\"", "aggregate.server_beta1=0.3"
    ),
    "flexlora": (*BOTH, *OFF, "aggregate.rule=\"flexlora\""),
    "scaffold": ("train.scaffold=true", "train.optimizer=\"sgd\"", "train.learning_rate=0.5"),
    "fedsa": (*BOTH, "aggregate.rule=\"fedsa\""),
    "fedit": (*BOTH, "aggregate.rule=\"fedit\""),
    **{name: (*BOTH, f"aggregate.rule=\"{name}\"") for name in ("hetlora", "rbla", "rolora", "lora-a2", "fedrot")},
    **{name: (f"aggregate.rule=\"{name}\"",) for name in ("ffa", "fedsvd")},
    **{
        name: (*BOTH, *OFF, f"aggregate.rule=\"{name}\"", "adapter.lora.carried_rank=8") for name in ("flora", "fedex")
    },
    "lora-fair": (*BOTH, *OFF, "aggregate.rule=\"lora-fair\""),
    "fold": ("aggregate.fold_every=2", "adapter.lora.carried_rank=8"),
    "fedprox": ("train.proximal_mu=0.1",),
    "adam": ("aggregate.server_optimizer=\"adam\"", "aggregate.server_learning_rate=0.01"),
    "median of devices": (*OFF, "aggregate.robust=\"median\"", "aggregate.weight=\"uniform\""),
}  # fmt: skip


def test_a_run_that_measures_its_rate_trains_on_at_what_it_found(
    files: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = ('train.learning_rate="measured"', "rounds.count=3", "rounds.checkpoints_kept=9", "train.local_steps=4")
    asked = [part for change in changes for part in ("--set", change)]
    code = main(["simulate", "run.toml", "--no-baselines", "--out", str(out), *asked])
    said = "".join(capfd.readouterr())
    assert code == 0, said
    assert "the run measures what suits it" in said
    (run,) = out.iterdir()
    assert verify_run(run) == ()
    known = read_run(run).rounds
    assert [len(row.rate_losses) for row in known] == [0, len(MULTIPLES), 0, 0]
    assert known[1].rate_losses[MULTIPLES.index(1.0)] == pytest.approx(known[1].loss, rel=1e-4)
    scale = scale_of_losses(known[1].rate_losses)
    assert f"{scale:.3g} times the table's learning rates" in said
    states = [load_file(run / "checkpoints" / f"r{r:04d}" / "global.safetensors") for r in (1, 2, 3)]
    up = next(name for name in states[0] if name.startswith("lora.B"))
    values = [np.zeros_like(states[0][up]), *(state[up] for state in states)]
    one, table, scaled = (float(np.abs(after - before).max()) for before, after in pairwise(values))
    assert one < table < scaled / scale * 2


def test_the_rate_that_nobody_set_learns_more_than_the_one_that_served_all(
    files: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for rate in ('"auto"', "0.003"):
        folder = out / rate.strip('"')
        code = main(
            ["simulate", "run.toml", "--no-baselines", "--out", str(folder), "--set", f"train.learning_rate={rate}"]
        )
        said = "".join(capfd.readouterr())
        assert code == 0, said
        assert "learning rates: lora.B 0." in said
        losses[rate] = [row.loss for row in read_run(next(folder.iterdir())).rounds]
    assert losses['"auto"'][0] == losses["0.003"][0]
    assert losses['"auto"'][-1] < losses["0.003"][-1]


def test_a_gradient_start_sums_a_in_round_one_then_trains_b_alone(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ('adapter.lora.start="gradient"', "rounds.count=3", "rounds.checkpoints_kept=9")
    overrides = [word for setting in settings for word in ("--set", setting)]
    code = main(["simulate", "run.toml", "--out", str(out), *overrides])
    said = "".join(capfd.readouterr())
    assert code == 0, said
    assert "lora.A" not in said[said.index("learning rates") :].splitlines()[0]
    (run,) = out.iterdir()
    assert verify_run(run) == ()
    losses = [row.loss for row in read_run(run).rounds]
    assert losses[1] == losses[0], "the model of round 2 is the base's"
    assert losses[-1] < losses[0]
    states = [load_file(run / "checkpoints" / f"r{r:04d}" / "global.safetensors") for r in (1, 2, 3)]
    downs, ups = (sorted(name for name in states[0] if name.startswith(f"lora.{f}")) for f in "AB")
    assert all((states[0][name] == state[name]).all() for name in downs for state in states)
    assert [any(state[name].any() for name in ups) for state in states] == [False, True, True]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_learns(name: str, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = [word for setting in RULES[name] for word in ("--set", setting)]
    code = main(["simulate", "run.toml", "--no-baselines", "--out", str(out), *overrides])
    assert code == 0, "".join(capfd.readouterr())
    (run,) = out.iterdir()
    view = read_run(run)
    first, last = view.rounds[0].loss, view.rounds[-1].loss
    assert first is not None
    assert last is not None
    assert last < first, "the held-out loss falls"
    assert verify_run(run) == ()


def test_a_rule_that_needs_single_deltas_is_refused_under_secure_aggregation(
    out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [word for setting in (*BOTH, 'aggregate.rule="flora"') for word in ("--set", setting)]
    assert main(["simulate", "run.toml", "--out", str(out), *overrides]) == 3
    assert "side by side, which is the individual update" in capfd.readouterr().err.replace("\n", " ")
    assert not out.exists()
