"""Every rule of [aggregate] and of what it asks of the other sections."""

import pytest

from fedpeft.config import RunConfig, parse
from fedpeft.config.rules import RULES
from fedpeft.errors import ConfigInvalid
from fedpeft.testing.runs import toy_run

VALID = toy_run(
    """
[rounds]
min_devices = 9
""",
    clients=12,
    name="x",
    labels=("a", "b"),
)
BOTH = 'adapter.lora.train="both"'
UNIFORM = 'aggregate.weight="uniform"'
MEDIAN = 'aggregate.robust="median"'
PRIVATE = ('privacy.unit="client"', "privacy.epsilon=8.0", "privacy.delta=0.01", UNIFORM)
MEANS = 'adapter.head_start="class-means"'
SGD = 'train.optimizer="sgd"'
SKETCH = 'adapter.lora.start="gradient"'


def load(*overrides: str) -> RunConfig:
    return parse(VALID, source="t", overrides=overrides, simulation=True)


def settings_of(rule: str) -> list[str]:
    """What it takes to run a rule."""
    traits = RULES[rule]  # type: ignore[index]
    found = [f'aggregate.rule="{rule}"']
    found += [BOTH] if traits.trains != "B" else []
    found += ['secagg.mode="off"'] if traits.individual else []
    return found + (["adapter.lora.carried_rank=8"] if traits.carries else [])


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_valid_configuration(rule: str) -> None:
    assert load(*settings_of(rule)).aggregate.rule == rule


@pytest.mark.parametrize("rule", [name for name, traits in RULES.items() if traits.individual])
def test_rules_of_single_deltas_are_refused_under_secure_aggregation_with_the_reason(rule: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"aggregate\.rule") as refused:
        load(*(setting for setting in settings_of(rule) if "secagg" not in setting))
    assert RULES[rule].individual in str(refused.value)  # type: ignore[index]


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (['aggregate.rule="fedit"'], "adapter.lora.train", "fedit trains A as well"),
        (["aggregate.a_round_every=2"], "adapter.lora.train", "trains A as well"),
        ([BOTH, 'aggregate.rule="fedit"', "aggregate.a_round_every=2"], "aggregate.a_round_every", "0 unless"),
        (["aggregate.fold_every=2"], "adapter.lora.carried_rank", "a rank for what is folded"),
        (["adapter.lora.carried_rank=4"], "adapter.lora.carried_rank", "nothing folds"),
        ([*PRIVATE, BOTH, 'aggregate.rule="fedit"'], "aggregate.rule", "would be a release"),
        ([*PRIVATE, "aggregate.fold_every=2", "adapter.lora.carried_rank=8"], "aggregate.fold_every", "keep the noise"),
        ([*PRIVATE, MEDIAN, "aggregate.buckets=3"], "aggregate.buckets", "one sum of the whole cohort"),
        (
            ['aggregate.rule="fedsvd"', "aggregate.server_learning_rate=0.5"],
            "aggregate.server_optimizer",
            "replaces both",
        ),
        ([*PRIVATE, "aggregate.auto_rank=0.01"], "aggregate.auto_rank", "same summed blocks in every round"),
        ([*PRIVATE, BOTH, 'aggregate.rule="rolora"'], "aggregate.rule", "the same summed blocks"),
        ([BOTH, "aggregate.a_round_every=2", "aggregate.auto_rank=0.1"], "aggregate.auto_rank", "turn or empty"),
        (["aggregate.buckets=3"], "aggregate.buckets", '0 while robust = "none"'),
        ([MEDIAN, "aggregate.buckets=3"], "aggregate.weight", "a way to attack"),
        ([MEDIAN, UNIFORM], "aggregate.buckets", "at least 3 under secure aggregation"),
        ([MEDIAN, UNIFORM, "aggregate.buckets=4"], "rounds.min_devices", "4 buckets x 3 devices that a sum needs = 12"),
        (
            [MEDIAN, BOTH, 'aggregate.rule="fedit"'],
            "aggregate.rule",
            "they take one mean",
        ),
        (["train.scaffold=true"], "train.optimizer", "sums of plain gradient steps"),
        ([SGD, "train.scaffold=true", BOTH, 'aggregate.rule="fedit"'], "train.scaffold", "without robust"),
        (['aggregate.local=["loraB"]'], "aggregate.local", "lora.B"),
        ([MEANS, "adapter.head=false"], "adapter.head_start", "without a trained class head"),
        ([MEANS, 'aggregate.local=["head"]'], "adapter.head_start", "no sum of class means"),
        ([MEANS, "rounds.count=1"], "adapter.head_start", "the first one only measures"),
        ([SKETCH, MEANS], "adapter.lora.start", "a head of zeros has no gradient"),
        ([SKETCH, "rounds.count=1"], "adapter.lora.start", "the first one trains nothing"),
        ([SKETCH, BOTH, 'aggregate.rule="fedit"'], "adapter.lora.start", "keep the A that is found"),
        ([SKETCH, 'aggregate.rule="fedsvd"'], "adapter.lora.start", "keep the A that is found"),
        ([SKETCH, "aggregate.fold_every=2", "adapter.lora.carried_rank=8"], "adapter.lora.start", "draws A anew"),
        ([SKETCH, MEDIAN, UNIFORM, "aggregate.buckets=3"], "adapter.lora.start", "the sketch is one sum"),
        ([SKETCH, SGD, "train.scaffold=true"], "adapter.lora.start", "count rounds that train"),
        ([SKETCH, 'aggregate.local=["lora.B"]'], "adapter.lora.start", "LoRA among what is summed"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], key: str, words: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load(*overrides)
    found = [problem for problem in refused.value.problems if key in problem.where]
    assert found, refused.value
    assert words in str(refused.value)


BY_EXAMPLES = ('privacy.unit="example"', "privacy.epsilon=8.0", "privacy.delta=0.001")


@pytest.mark.parametrize("private", [PRIVATE, BY_EXAMPLES])
@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([SGD, "train.scaffold=true"], "train.scaffold"),
        (['aggregate.local=["head"]'], "aggregate.local"),
        ([MEANS], "adapter.head_start"),
        ([SKETCH], "adapter.lora.start"),
        ([BOTH, "aggregate.a_round_every=2"], "aggregate.a_round_every"),
        (["aggregate.auto_rank=0.1"], "aggregate.auto_rank"),
        ([MEDIAN, UNIFORM, "aggregate.buckets=3"], "aggregate.robust"),
    ],
)
def test_what_is_not_proved_to_keep_a_promise_is_refused(
    private: tuple[str, ...], overrides: list[str], key: str
) -> None:
    with pytest.raises(ConfigInvalid, match=r"under privacy\.unit") as refused:
        load(*private, *overrides)
    assert any(key in problem.where for problem in refused.value.problems)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"nested"}))
def test_dp_sgd_runs_with_the_default_rule_alone(rule: str) -> None:
    with pytest.raises(ConfigInvalid, match=r'nested under privacy\.unit = "example"'):
        load(*BY_EXAMPLES, *settings_of(rule))


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"nested", "ffa", "fedsvd"}))
def test_noise_in_the_sum_runs_with_rules_of_one_mean_alone(rule: str) -> None:
    with pytest.raises(ConfigInvalid, match=r'nested under privacy\.unit = "client"'):
        load(*PRIVATE, *settings_of(rule))


@pytest.mark.parametrize("option", ["label_calibration", "proximal_mu"])
def test_options_of_the_loss_are_refused_by_examples_and_clipped_by_clients(option: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"train\.{option}"):
        load(*BY_EXAMPLES, f"train.{option}=0.5")
    load(*PRIVATE, f"train.{option}=0.5")


@pytest.mark.parametrize("private", [PRIVATE, BY_EXAMPLES])
def test_a_server_optimizer_is_post_processing(private: tuple[str, ...]) -> None:
    load(*private, 'aggregate.server_optimizer="momentum"')


def test_what_can_work_is_accepted() -> None:
    load(MEDIAN, UNIFORM, "aggregate.buckets=3")
    load(SGD, "train.scaffold=true")
    load('aggregate.local=["head", "lora.B"]')
    load(BOTH, "aggregate.a_round_every=3", 'aggregate.server_optimizer="yogi"')
    load(MEANS, SGD, "train.scaffold=true")
