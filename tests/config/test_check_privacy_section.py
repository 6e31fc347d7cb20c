"""Every rule of [privacy], with the nearest file that is valid."""

import pytest

from fedpeft.config import RunConfig, parse
from fedpeft.config.private_engine import engine_line
from fedpeft.errors import ConfigInvalid
from fedpeft.round.plan import example_terms
from fedpeft.testing.runs import toy_run

VALID = toy_run(
    """
[aggregate]
weight = "uniform"
[privacy]
unit = "client"
epsilon = 8.0
delta = 0.0135
""",
    clients=50,
    name="x",
    labels=("a", "b"),
)


def load(*overrides: str, without: str = "") -> RunConfig:
    return parse(VALID.replace(without, "") if without else VALID, source="t", overrides=overrides, simulation=True)


def test_the_valid_file_is_valid() -> None:
    assert load().privacy.unit == "client"
    assert load(without=VALID[VALID.index("[privacy]") : VALID.index("[[device]]")]).privacy.unit == "none"


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("privacy.delta=0.0201", "privacy.delta", "at most 1 / 50 clients (clients^-1.1 = 0.014"),
        ('aggregate.weight="examples"', "aggregate.weight", 'Set aggregate.weight = "uniform"'),
        ('secagg.mode="off"', "secagg.mode", "a share of the noise only"),
        ("privacy.colluders=3", "privacy.colluders", "fewer than secagg.min_cohort=3"),
        ('privacy.unit="none"', "privacy.epsilon", "nothing is promised now"),
        ('privacy.unit="person"', "privacy.persons", "k devices is promised k epsilon"),
        ("privacy.examples_per_person=3", "privacy.examples_per_person", 'unless privacy.unit = "person"'),
        ('privacy.engine="opacus"', "privacy.engine", 'unless privacy.unit = "example" or "person"'),
        ('privacy.column="patient"', "privacy.column", 'unless privacy.unit = "person"'),
        ("privacy.epsilon=0.0", "privacy.epsilon", "a number > 0"),
        ("privacy.delta=1.0", "privacy.delta", "a number < 1"),
        ("privacy.l2_clip_norm=-1.0", "privacy.l2_clip_norm", "a number > 0"),
    ],
)
def test_what_would_make_epsilon_a_lie_is_refused(override: str, key: str, words: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load(override)
    found = [problem for problem in refused.value.problems if key in problem.where]
    assert found, refused.value
    assert words.lower() in str(found[0]).lower()


@pytest.mark.parametrize(("without", "key"), [("epsilon = 8.0\n", "epsilon"), ("delta = 0.0135\n", "delta")])
def test_a_budget_needs_both_numbers(without: str, key: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load(without=without)
    assert [problem.where for problem in refused.value.problems] == [f"t: privacy.{key}"]


@pytest.mark.parametrize("override", ["privacy.delta=0.02", "privacy.colluders=2", "privacy.noise_multiplier=3.0"])
def test_the_nearest_that_works_is_accepted(override: str) -> None:
    load(override)


def test_colluders_mean_nothing_to_noise_that_each_device_adds_whole() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load('privacy.unit="example"', "privacy.delta=0.0001", "privacy.colluders=2")
    assert [problem.where for problem in refused.value.problems] == ["--set privacy.colluders"]


@pytest.mark.parametrize("method", ["adalora", "diffpruning", "dylora", "fish"])
def test_methods_that_measure_in_a_step_are_refused_under_example_privacy(method: str) -> None:
    changes = ('privacy.unit="example"', "privacy.delta=1e-5", f"adapter.{method}={{}}")
    with pytest.raises(ConfigInvalid) as refused:
        load(*changes)
    (problem,) = refused.value.problems
    assert problem.where.endswith(f"adapter.{method}")


def test_bfloat16_adapters_are_refused_under_example_privacy() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load('privacy.unit="example"', "privacy.delta=1e-5", 'adapter.dtype="bfloat16"')
    (problem,) = refused.value.problems
    assert problem.where.endswith("adapter.dtype")


def test_an_adaptive_clip_is_for_clients_and_its_options_are_for_it() -> None:
    adaptive = 'privacy.clip="adaptive"'
    assert load(adaptive, "privacy.clip_quantile=0.8").privacy.clip_quantile == 0.8
    for overrides, key in (
        (('privacy.unit="example"', adaptive), "privacy.clip"),
        (("privacy.clip_quantile=0.8",), "privacy.clip_quantile"),
        (("privacy.clip_learning_rate=0.5",), "privacy.clip_learning_rate"),
        ((adaptive, "privacy.clip_quantile=1.0"), "privacy.clip_quantile"),
        ((adaptive, "privacy.clip_learning_rate=0.0"), "privacy.clip_learning_rate"),
    ):
        with pytest.raises(ConfigInvalid) as refused:
            load(*overrides)
        assert any(problem.where.endswith(key) for problem in refused.value.problems), refused.value


def test_opacus_is_the_engine_where_nothing_was_measured_against_it_and_is_not_asked_for_what_it_lacks() -> None:
    example = ('privacy.unit="example"', "adapter.lora={}")
    assert example_terms(load(*example)).engine == "opacus"
    assert example_terms(load(*example, 'privacy.engine="fedpeft"')).engine == "fedpeft"
    config = load(*example, "adapter.prompt={}", 'adapter.layers="all"')
    assert example_terms(config).engine == "fedpeft"
    assert "prompt: nobody measured Opacus's time" in engine_line(config.adapter, config.privacy.engine)
    with_prefix = (*example, "adapter.prefix={}", 'adapter.layers="all"')
    config = load(*with_prefix)
    assert example_terms(config).engine == "fedpeft"
    assert "prefix: its parameters are no module's" in engine_line(config.adapter, config.privacy.engine)
    with pytest.raises(ConfigInvalid, match="Opacus has no gradients of single examples of it"):
        load(*with_prefix, 'privacy.engine="opacus"')
