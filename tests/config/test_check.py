"""Combinations that are each valid alone and impossible together, one test a rule; each also has a valid neighbour."""

import pytest

from fedpeft.config import parse
from fedpeft.errors import ConfigInvalid

BASE = {
    "run": 'name = "small"',
    "base": 'model = "pypi:some-model"',
    "task": 'kind = "classify"',
    "data": 'source = "x.jsonl"',
    "data.partition": 'by = "iid"\nclients = 6',
    "adapter": "",
    "adapter.lora": "rank = 8",
    "device": 'clients = ["*"]\nmethods = ["lora"]',
}


def toml(**sections: str | None) -> str:
    """A valid file with some sections replaced (None: left out); `__` stands for a dot."""
    named = {**BASE, **{name.replace("__", "."): body for name, body in sections.items()}}
    parts = []
    for name, body in named.items():
        if body is None:
            continue
        if name == "device":
            parts += [f"[[device]]\n{entry}" for entry in body.split("---\n")]
        else:
            parts.append(f"[{name}]\n{body}")
    return "\n".join(parts)


def refused(text: str, *, simulation: bool = True) -> list[str]:
    try:
        parse(text, source="f", simulation=simulation)
    except ConfigInvalid as error:
        return [str(problem).removeprefix("f: ") for problem in error.problems]
    return []


AGAIN = 'head_start = "class-means"\nhead_refresh = 4'
EXAMPLE = 'unit = "example"\nepsilon = 8\ndelta = 1e-5'
HUB = "hub:org/name@" + "0" * 40
DEVICES = 'clients = ["a", "b"]\nmethods = ["lora"]\n---\nclients = ["{}"]\nmethods = ["lora"]\n'

RULES: dict[str, tuple[str, str, str]] = {
    # rule: (a file that breaks it, how the one problem begins, the nearest file that does not)
    "a task that does not write generates no answers": (
        toml(task='kind = "classify"\ngenerate = 8'),
        "task.generate: expected 0 for classify: answers are generated for causal-lm, seq2seq",
        toml(task='kind = "causal-lm"\ngenerate = 8'),
    ),
    "no score of what is generated is released under privacy": (
        toml(task='kind = "causal-lm"\ngenerate = 8', privacy=EXAMPLE, train="local_steps = 4"),
        "task.generate: expected 0 under [privacy], which releases no score of what is generated",
        toml(task='kind = "causal-lm"', privacy=EXAMPLE, train="local_steps = 4"),
    ),
    "rouge_l needs answers": (
        toml(task='kind = "causal-lm"', rounds='metric = "rouge_l"'),
        "rounds.metric: expected task.generate above 0",
        toml(task='kind = "causal-lm"\ngenerate = 8', rounds='metric = "rouge_l"'),
    ),
    "adalora's ranks fall": (
        toml(adapter__adalora="rank = 4\ntarget_rank = 5", device='clients = ["*"]\nmethods = ["adalora"]'),
        "adapter.adalora.target_rank: expected at most adapter.adalora.rank=4",
        toml(adapter__adalora="rank = 4\ntarget_rank = 4", device='clients = ["*"]\nmethods = ["adalora"]'),
    ),
    "the round of class means is none of adalora's": (
        toml(adapter__adalora="prune_until = 7", adapter='head_start = "class-means"', rounds="count = 8"),
        "adapter.adalora.prune_until: expected above warmup_rounds=1 and below rounds.count=8 less the round of class",
        toml(adapter__adalora="prune_until = 6", adapter='head_start = "class-means"', rounds="count = 8"),
    ),
    "the rounds that measure class means again are none of adalora's": (
        toml(
            adapter__adalora="prune_until = 6",
            adapter='head_start = "class-means"\nhead_refresh = 4',
            rounds="count = 8",
        ),
        "adapter.adalora.prune_until: expected above warmup_rounds=1 and below rounds.count=8 less 2 rounds of class",
        toml(
            adapter__adalora="prune_until = 5",
            adapter='head_start = "class-means"\nhead_refresh = 4',
            rounds="count = 8",
        ),
    ),
    "some rounds train": (
        toml(adapter="head_refresh = 1"),
        "adapter.head_refresh: expected 0, or 2 and more",
        toml(adapter="head_refresh = 2"),
    ),
    "only class means are measured again": (
        toml(adapter='head_start = "seed"\nhead_refresh = 2'),
        'adapter.head_refresh: expected 0 with head_start = "seed"',
        toml(adapter='head_start = "class-means"\nhead_refresh = 2'),
    ),
    "adalora is done before the run": (
        toml(adapter__adalora="prune_until = 8", rounds="count = 8"),
        "adapter.adalora.prune_until: expected above warmup_rounds=1 and below rounds.count=8",
        toml(adapter__adalora="prune_until = 7", rounds="count = 8"),
    ),
    "every cycle of relora begins": (
        toml(adapter__relora="cycles = 4\nrounds_each = 2", rounds="count = 6"),
        "adapter.relora.cycles: expected cycles that begin within rounds.count=6",
        toml(adapter__relora="cycles = 4\nrounds_each = 2", rounds="count = 7"),
    ),
    "a mask is fixed before the run is over": (
        toml(adapter__diffpruning="prune_round = 3", rounds="count = 3"),
        "adapter.diffpruning.prune_round: expected below rounds.count=3",
        toml(adapter__diffpruning="prune_round = 2", rounds="count = 3"),
    ),
    "fish mask needs a round to measure": (
        toml(adapter__fish="", rounds="count = 1"),
        "adapter.fish: expected at least two rounds",
        toml(adapter__fish="", rounds="count = 2"),
    ),
    "a hub model needs a commit": (
        toml(base='model = "hub:org/name@main"'),
        "base.model: expected `hub:ORG/NAME@REVISION`",
        toml(base=f'model = "{HUB}"'),
    ),
    "a digest has 64 digits": (
        toml(base='model = "sha256:12"'),
        "base.model: expected `sha256:` and 64",
        toml(base=f'model = "sha256:{"0" * 64}"'),
    ),
    "a package has a name": (
        toml(base='model = "pypi:"'),
        "base.model: expected `pypi:PACKAGE`",
        toml(base='model = "pypi:a"'),
    ),
    "data is no model": (
        toml(base='model = "builtin:airline-tweets"'),
        "base.model: expected a directory",
        toml(base='model = "builtin"'),
    ),
    "a source is named": (
        toml(data='source = " "'),
        "data.source: expected a name or a path",
        toml(data='source = "x"'),
    ),
    "labels once": (
        toml(task='kind = "classify"\nlabels = ["a", "b", "a"]'),
        "task.labels: expected each label once, found again: a",
        toml(task='kind = "classify"\nlabels = ["a", "b"]'),
    ),
    "two classes at least": (
        toml(task='kind = "classify"\nlabels = ["a"]'),
        "task.labels: expected at least 2 classes",
        toml(task='kind = "classify"\nlabels = []'),
    ),
    "no labels for a causal lm": (
        toml(task='kind = "causal-lm"\nlabels = ["a", "b"]'),
        "task.labels: expected no labels",
        toml(task='kind = "causal-lm"'),
    ),
    "tiers ascend": (
        toml(adapter__lora="rank = 8\ntiers = [4, 2, 8]"),
        "adapter.lora.tiers: expected ascending",
        toml(adapter__lora="rank = 8\ntiers = [2, 4, 8]"),
    ),
    "tiers end in the rank": (
        toml(adapter__lora="rank = 8\ntiers = [2, 4]"),
        "adapter.lora.tiers: expected ascending",
        toml(adapter__lora="rank = 8\ntiers = [8]"),
    ),
    "tiers are positive": (
        toml(adapter__lora="rank = 8\ntiers = [0, 8]"),
        "adapter.lora.tiers: expected ascending",
        toml(adapter__lora="rank = 8\ntiers = [1, 8]"),
    ),
    "targets once": (
        toml(adapter__lora='targets = ["q", "q"]'),
        "adapter.lora.targets: expected at least one target, each once",
        toml(adapter__lora='targets = ["q"]'),
    ),
    "a target at least": (
        toml(adapter__lora="targets = []"),
        "adapter.lora.targets: expected at least one target",
        toml(adapter__lora='targets = ["gate"]'),
    ),
    "a method that devices train exists": (
        toml(device='clients = ["*"]\nmethods = ["lora", "ia3"]'),
        'device[0].methods: expected methods that [adapter] declares (lora), found "ia3". Add [adapter.ia3]',
        toml(device='clients = ["*"]\nmethods = ["lora", "ia3"]', adapter__ia3=""),
    ),
    "a device trains something": (
        toml(device='clients = ["*"]\nmethods = []\nhead = false'),
        "device[0].methods: expected at least one method, or the class head, to train, found neither",
        toml(device='clients = ["*"]\nmethods = []'),
    ),
    "a method once a device": (
        toml(device='clients = ["*"]\nmethods = ["lora", "lora"]'),
        "device[0].methods: expected each method once",
        toml(device='clients = ["*"]\nmethods = ["lora"]'),
    ),
    "a device's rank is a tier": (
        toml(device='clients = ["*"]\nmethods = ["lora"]\nrank = 3'),
        "device[0].rank: expected a tier of adapter.lora (2, 4, 8), found 3",
        toml(device='clients = ["*"]\nmethods = ["lora"]\nrank = 4'),
    ),
    "a rank is for lora": (
        toml(device='clients = ["*"]\nmethods = ["bitfit"]\nrank = 4', adapter__bitfit=""),
        'device[0].rank: expected no rank without "lora"',
        toml(device='clients = ["*"]\nmethods = ["bitfit"]', adapter__bitfit=""),
    ),
    "a planned device has no rank of its own": (
        toml(device='clients = ["*"]\nmethods = "auto"\nrank = 4'),
        "device[0].rank: expected no rank, found 4. The planner chooses it",
        toml(device='clients = ["*"]\nmethods = "auto"'),
    ),
    "memory is a limit of the planner": (
        toml(device='clients = ["*"]\nmethods = ["lora"]\nram_mb = 900'),
        'device[0].ram_mb: expected no ram_mb without methods = "auto", found 900',
        toml(device='clients = ["*"]\nmethods = "auto"\nram_mb = 900'),
    ),
    "an uplink is a limit of the planner": (
        toml(device='clients = ["*"]\nmethods = ["lora"]\nuplink_mbit = 0.5'),
        'device[0].uplink_mbit: expected no uplink_mbit without methods = "auto", found 0.5',
        toml(device='clients = ["*"]\nmethods = "auto"\nuplink_mbit = 0.5'),
    ),
    "a device entry names clients": (
        toml(device='clients = []\nmethods = ["lora"]\n---\nclients = ["*"]\nmethods = ["lora"]'),
        "device[0].clients: expected client names",
        toml(device='clients = ["a"]\nmethods = ["lora"]\n---\nclients = ["*"]\nmethods = ["lora"]'),
    ),
    "a star stands alone": (
        toml(device='clients = ["*", "a"]\nmethods = ["lora"]'),
        'device[0].clients: expected "*" alone',
        toml(device='clients = ["*"]\nmethods = ["lora"]'),
    ),
    "a client in one entry": (
        toml(device=DEVICES.format("b"), data__partition='by = "iid"\nclients = 3'),
        "device: expected client 'b' in one [[device]], found 2 times",
        toml(device=DEVICES.format("c"), data__partition='by = "iid"\nclients = 3'),
    ),
    "one star": (
        toml(device='clients = ["*"]\nmethods = ["lora"]\n---\nclients = ["*"]\nmethods = ["lora"]'),
        'device: expected "*" in at most one',
        toml(device='clients = ["a"]\nmethods = ["lora"]\n---\nclients = ["*"]\nmethods = ["lora"]'),
    ),
    "every client has a device": (
        toml(device=DEVICES.format("c")),
        "device: expected each of the 6 clients in one [[device]]",
        toml(device=DEVICES.format("*")),
    ),
    "a column partition names its column": (
        toml(data__partition='by = "column"'),
        "data.partition.column: expected the column",
        toml(data__partition='by = "column"\ncolumn = "site"'),
    ),
    "a column partition counts no clients": (
        toml(data__partition='by = "column"\ncolumn = "site"\nclients = 6'),
        'data.partition.clients: expected no `clients` when by = "column"',
        toml(data__partition='by = "column"\ncolumn = "site"'),
    ),
    "other partitions count their clients": (
        toml(data__partition='by = "dirichlet"'),
        'data.partition.clients: expected a number of clients when by = "dirichlet"',
        toml(data__partition='by = "dirichlet"\nclients = 3\nalpha = 0.1\ncolumn = "label"'),
    ),
    "alpha is for dirichlet": (
        toml(data__partition='by = "iid"\nclients = 6\nalpha = 0.1'),
        "data.partition.alpha: expected no `alpha`",
        toml(data__partition='by = "iid"\nclients = 6\nalpha = 0.5'),
    ),
    "shards are for shards": (
        toml(data__partition='by = "iid"\nclients = 6\nshards_per_client = 3'),
        "data.partition.shards_per_client: expected no",
        toml(data__partition='by = "shards"\nclients = 6\nshards_per_client = 3'),
    ),
    "the learning rate arrives": (
        toml(train="warmup_rounds = 8"),
        "train.warmup_rounds: expected fewer than rounds.count=8",
        toml(train="warmup_rounds = 7"),
    ),
    "a quorum is possible": (
        toml(rounds="min_devices = 7"),
        "rounds.min_devices: expected at most the 6 clients there are, found 7",
        toml(rounds="min_devices = 6"),
    ),
    "a cohort is within a quorum": (
        toml(secagg="min_cohort = 4"),
        "rounds.min_devices: expected at least 4",
        toml(secagg="min_cohort = 4", rounds="min_devices = 4"),
    ),
    "a value keeps eight bits": (
        toml(secagg="bits = 16", data__partition='by = "iid"\nclients = 257'),
        "secagg.bits: expected at least 8 bits for a value; a sum of 257 devices takes 9 of the ring's 16, found 7",
        toml(secagg="bits = 16", data__partition='by = "iid"\nclients = 257', rounds="fraction = 0.5"),
    ),
    "a threshold exists": (
        toml(secagg="dropout_fraction = 0.4\ncorrupt_fraction = 0.2"),
        "secagg.dropout_fraction: expected 2 * dropout_fraction + corrupt_fraction < 1",
        toml(secagg="dropout_fraction = 0.3\ncorrupt_fraction = 0.2"),
    ),
}


def test_the_file_that_the_rules_start_from_is_valid() -> None:
    assert refused(toml()) == []


@pytest.mark.parametrize("rule", RULES)
def test_one_broken_rule_is_one_problem(rule: str) -> None:
    broken, expected, _ = RULES[rule]
    (problem,) = refused(broken)
    assert problem.startswith(expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_refuses_nothing_that_keeps_it(rule: str) -> None:
    assert refused(RULES[rule][2]) == []


def test_an_adapter_without_a_block_is_refused() -> None:
    lm = toml(task='kind = "causal-lm"', adapter__lora=None)
    assert any(problem.startswith("adapter: expected at least one of") for problem in refused(lm))
    headless = toml(adapter="head = false", adapter__lora=None)
    assert any(problem.startswith("adapter: expected at least one of") for problem in refused(headless))


def test_a_deployment_must_have_the_secure_sum_and_the_labels() -> None:
    text = toml(secagg='mode = "off"')
    assert refused(text) == []
    assert [problem.split(":")[0] for problem in refused(text, simulation=False)] == ["secagg.mode", "task.labels"]
    sound = toml(secagg='mode = "fast"', task='kind = "classify"\nlabels = ["a", "b"]')
    assert refused(sound, simulation=False) == []
