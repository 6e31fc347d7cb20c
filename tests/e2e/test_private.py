"""A private run as a user starts it: nothing measured, everything charged, everything said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from fedpeft_server.run.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]
TINY = ("--no-baselines", "--model", "./tiny")
"""What is promised and charged does not depend on the weights: test_simulate.py has real ones."""


@pytest.fixture(scope="module", autouse=True)
def _tiny(scenario: Path) -> None:
    from fedpeft.testing.models import save_tiny, tiny_bert

    save_tiny(tiny_bert(layers=2), scenario / "tiny")


PRIVATE = [
    "rounds.count=2",
    'aggregate.weight="uniform"',
    'privacy.unit="client"',
    "privacy.epsilon=8.0",
    "privacy.delta=0.1",
]
SETTINGS = [word for setting in PRIVATE for word in ("--set", setting)]


def test_a_private_simulation_says_what_it_promises_and_keeps_it(
    run_command: Callable, tmp_path: Path, home: Path
) -> None:
    code, out, err = run_command("simulate", "run.toml", *TINY, "--out", tmp_path / "runs", *SETTINGS)
    assert code == 0, out + err
    for fact in ("epsilon", "delta 0.1", "no amplification", "noise multiplier", "not covered"):
        assert fact in out
    (run,) = (tmp_path / "runs").iterdir()
    view = read_run(run)
    assert [(row.round, row.loss, row.accuracy, row.evaluators) for row in view.rounds] == [
        (1, None, None, 0),
        (2, None, None, 0),
    ]
    assert verify_run(run) == ()
    assert not (run / "clients").exists(), "no value of one client is kept of a run that measures nothing"
    assert "Held-out values by client: withheld" in (run / "report.html").read_text()
    assert (run / "adapters" / "final").is_dir()
    charges = [json.loads(line) for line in (run / "privacy" / "ledger.jsonl").read_text().splitlines()]
    assert [charge["sequence"] for charge in charges] == [1, 2]
    assert (home / "privacy" / f"{view.manifest.run_id}.witness").exists()

    code, out, err = run_command("privacy", "report", run)
    assert code == 0, err
    assert "epsilon 7.99" in out
    assert "2 rounds committed" in out
    assert "rounds: 2, each a release" in out


EXAMPLES = [
    "rounds.count=2",
    "train.local_steps=2",
    'privacy.unit="example"',
    "privacy.epsilon=8.0",
    "privacy.delta=0.02",
]


def test_dp_sgd_on_every_device_is_said_charged_and_resumed(run_command: Callable, tmp_path: Path, home: Path) -> None:
    chosen = [
        *EXAMPLES,
        'privacy.engine="opacus"',
    ]  # auto leaves bitfit, which the toy run has, to ours
    settings = [word for setting in chosen for word in ("--set", setting)]
    code, out, err = run_command("simulate", "run.toml", *TINY, "--out", tmp_path / "runs", *settings)
    assert code == 0, out + err
    for fact in ("epsilon", "delta 0.02", "one training example", "Poisson", "noise multiplier", "not covered"):
        assert fact in out
    (run,) = (tmp_path / "runs").iterdir()
    view = read_run(run)
    assert [(row.round, row.loss, row.evaluators, row.devices_survived) for row in view.rounds] == [
        (1, None, 0, 6),
        (2, None, 0, 6),
    ]
    assert view.summary is not None
    assert any(line.startswith("each device's epsilon") for line in view.summary.privacy)
    stated = [event for event in view.events if event.kind == "privacy.stated"]
    assert len(stated) == 12
    assert all(0 < float(event.detail["epsilon"]) <= 8.0 for event in stated)
    ledgers = sorted((run / "privacy" / "devices").iterdir())
    assert len(ledgers) == 6
    assert all(len(ledger.read_text().splitlines()) == 2 for ledger in ledgers)
    assert (home / "privacy" / view.manifest.run_id / "united").exists()
    report = (run / "report.html").read_text()
    assert "one training example of one device" in report
    assert "by Opacus&#39;s hooks (privacy.engine = opacus)" in report


def test_a_ring_too_narrow_for_the_noise_is_refused_before_anything_is_written(
    run_command: Callable, tmp_path: Path
) -> None:
    """Of an adapter of the real base, which has parameters enough."""
    narrow = ["--set", "secagg.bits=16", "--set", 'adapter.layers="all"']
    code, out, err = run_command(
        "simulate", "run.toml", "--no-baselines", "--out", tmp_path / "runs", *SETTINGS, *narrow
    )
    assert code == 3, out + err
    assert "Use secagg.bits = 32" in err
    assert not (tmp_path / "runs").exists()


def test_a_clip_norm_that_adapts_goes_through_a_whole_simulation(
    run_command: Callable, tmp_path: Path, home: Path
) -> None:
    settings = [*SETTINGS, "--set", 'privacy.clip="adaptive"']
    code, out, err = run_command("simulate", "run.toml", *TINY, "--out", tmp_path / "runs", *settings)
    assert code == 0, out + err
    assert "follows the 0.5 quantile" in out
    (run,) = (tmp_path / "runs").iterdir()
    norms = [json.loads(state.read_text())["l2_clip_norm"] for state in run.rglob("server.json")]
    assert any(norm != 1.0 for norm in norms)
    assert all(0.8 < norm < 1.3 for norm in norms), "two rounds of at most a factor e^0.1 each way"
    assert verify_run(run) == ()


def test_the_head_alone_trains_by_the_plans_own_recipe(run_command: Callable, scenario: Path, tmp_path: Path) -> None:
    """What `fedpeft privacy plan --unit example` recommends."""
    whole = (scenario / "run.toml").read_text()
    kept = whole[: whole.index("lora = {")] + whole[whole.index("[train]") : whole.index("[[device]]")]
    (scenario / "head.toml").write_text(kept + '[[device]]\nclients = ["*"]\nmethods = []\n')
    recipe = [*EXAMPLES, 'train.optimizer="sgd"', "train.batch_size=32", 'aggregate.server_optimizer="momentum"']
    settings = [word for setting in recipe for word in ("--set", setting)]
    code, out, err = run_command("simulate", "head.toml", *TINY, "--out", tmp_path / "runs", *settings)
    assert code == 0, out + err
    (run,) = (tmp_path / "runs").iterdir()
    view = read_run(run)
    assert [row.devices_survived for row in view.rounds] == [6, 6]
    with safe_open(run / "checkpoints" / "r0001" / "global.safetensors", "numpy") as state:
        assert set(state.keys()) == {"head"}


def test_people_are_hidden_whole_and_nothing_names_them(
    run_command: Callable, tmp_path: Path, scenario: Path, home: Path
) -> None:
    """Tweets of made-up people, three of each: said, charged and audited in people, and none is named on the disk."""
    rows = [json.loads(line) for line in (scenario / "tweets.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["traveller"] = f"zebulon {row['airline']} {number // 3}"
    notes = tmp_path / "notes.jsonl"
    notes.write_text("\n".join(map(json.dumps, rows)))
    settings = [
        f'data.source="{notes}"',
        "rounds.count=1",
        "train.local_steps=2",
        'privacy.unit="person"',
        'privacy.column="traveller"',
        'privacy.persons="do-not-cross"',
        "privacy.examples_per_person=2",
        'privacy.engine="fedpeft"',
        "privacy.epsilon=8.0",
        "privacy.delta=0.05",
    ]
    chosen = [word for setting in settings for word in ("--set", setting)]
    code, out, err = run_command("simulate", "run.toml", *TINY, "--out", tmp_path / "runs", *chosen)
    assert code == 0, out + err
    for fact in (
        "one person of one device",
        "mean gradient of at most 2 of a person's examples",
        "delta 0.05",
        "by fedpeft's own hooks",
    ):
        assert fact in out
    assert "by fedpeft's own hooks (privacy.engine = fedpeft)" in out
    (run,) = (tmp_path / "runs").iterdir()
    lines = [line for ledger in (run / "privacy" / "devices").iterdir() for line in ledger.read_text().splitlines()]
    assert len(lines) == 6
    assert all('"unit":"person"' in line for line in lines)
    written = [path for place in (run, home) for path in place.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"zebulon" in path.read_bytes()]
    assert "zebulon" not in out + err


def test_correlated_noise_goes_on_over_the_rounds_of_a_run(run_command: Callable, tmp_path: Path, home: Path) -> None:
    """One stream on each device, charged by its turns; its rows are not in the run directory, which is handed on."""
    chosen = [
        "rounds.count=3",
        "train.local_steps=2",
        "train.batch_size=2",
        'privacy.unit="example"',
        'privacy.noise="correlated"',
        "privacy.epsilon=8.0",
        "privacy.delta=0.02",
        'aggregate.server_optimizer="momentum"',
    ]
    settings = [word for setting in chosen for word in ("--set", setting)]
    code, out, err = run_command("simulate", "run.toml", *TINY, "--out", tmp_path / "runs", *settings)
    assert code == 0, out + err
    for fact in ("every b-th step is a group's turn", "correlated over b steps", "turns: "):
        assert fact in out
    (run,) = (tmp_path / "runs").iterdir()
    stated = [event for event in read_run(run).events if event.kind == "privacy.stated"]
    assert len(stated) == 18
    assert max(int(event.detail["steps"]) for event in stated) < 6, "fewer turns than steps"
    assert all(0 < float(event.detail["epsilon"]) <= 8.0 for event in stated)
    marks = [
        {json.loads(line)["label"].rpartition(" ")[2].partition("@")[0] for line in ledger.read_text().splitlines()}
        for ledger in (run / "privacy" / "devices").iterdir()
    ]
    assert [len(names) for names in marks] == [1] * 6, "one stream for the whole run"
    assert (home / "privacy" / f"{read_run(run).manifest.run_id}.noise" / "united" / "noise").exists()
    assert not [path for path in run.rglob("*") if "noise" in path.name]
