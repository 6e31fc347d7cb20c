"""site.toml: what is read, what is refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedpeft.config.model import Adapter, Aggregate, BitFit, Bottleneck, Ia3, Lora, SecureAggregation, Task, Train
from fedpeft.errors import ConfigInvalid, PolicyRefused
from fedpeft.round.plan import ExampleTerms, LearningPlan, PlannedRounds
from fedpeft_client.site import Hours, Site

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
PLAN = LearningPlan(
    run_id="run",
    seed=0,
    base="sha256:" + "a" * 64,
    adapter_spec="",
    task=Task(kind="causal-lm"),
    adapter=Adapter(lora=Lora(), bitfit=BitFit()),
    train=Train(),
    aggregate=Aggregate(),
    rounds=PlannedRounds(count=1, eval_examples=0),
    secagg=SecureAggregation(),
)


def site(tmp_path: Path, text: str) -> Site:
    path = tmp_path / "site.toml"
    path.write_text('[data]\nsource = "notes.jsonl"\n' + text)
    return Site.load(path)


def test_a_site_reads_back_as_it_was_written(tmp_path: Path) -> None:
    read = site(tmp_path, '[limits]\nmethods = ["lora"]\nrank = 4\n[policy]\nmin_cohort = 5\nhours = "20:00-06:00"\n')
    again = tmp_path / "again.toml"
    again.write_text(read.to_toml())
    assert Site.load(again) == read
    assert (read.limits.rank, read.policy.min_cohort) == (4, 5)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[policy]\nmin_cohort = 2\n", "policy.min_cohort"),
        ("[policy]\nallow_everything = true\n", "policy.allow_everything"),
        ('[policy]\nhours = "8 to 5"\n', "policy.hours"),
        ("[limits]\nmethods = []\n", "limits.methods"),
        ('[limits]\nmethods = ["lorra"]\n', "lorra"),
        ('[policy]\nallow_methods = ["lora", "bitfitt"]\n', "bitfitt"),
        ("[policy]\nmax_person_epsilon = 3.0\nmax_example_epsilon = 3.0\n", "one budget"),
    ],
)
def test_a_wrong_rule_is_named_rather_than_skipped(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        site(tmp_path, text)
    assert names in str(refused.value)


def test_a_missing_file_says_which_command_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="client join"):
        Site.load(tmp_path / "site.toml")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ('allow_bases = ["sha256:other"]', "allow_bases"),
        ('allow_methods = ["ia3"]', "ia3"),
        ('hours = "20:00-06:00"', "20:00-06:00"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused_with_the_rule(tmp_path: Path, rule: str, says: str) -> None:
    with pytest.raises(PolicyRefused, match=says):
        site(tmp_path, f"[policy]\n{rule}\n").permit(PLAN, now=NOON)


def test_a_plan_within_the_rules_is_permitted_and_only_allowed_methods_are_trained(tmp_path: Path) -> None:
    mine = site(tmp_path, '[policy]\nallow_methods = ["bitfit", "ia3"]\nhours = "08:00-18:00"\n')
    mine.permit(PLAN, now=NOON)
    assert mine.trained(("lora", "bitfit")) == ("bitfit",)
    mine.permit(PLAN.model_copy(update={"adapter": Adapter(ia3=Ia3())}), now=NOON)


@pytest.mark.parametrize(
    ("span", "inside", "outside"), [("20:00-06:00", (23, 5), (6, 12)), ("08:00-18:00", (8, 17), (7, 18))]
)
def test_hours_may_pass_midnight(span: str, inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    hours = Hours(span)
    assert all(NOON.replace(hour=hour) in hours for hour in inside)
    assert not any(NOON.replace(hour=hour) in hours for hour in outside)
    assert NOON in Hours("")


@pytest.mark.parametrize(
    ("adapter", "changes", "refused"),
    [
        (Adapter(bottleneck=Bottleneck()), {"optimizer": "sgd", "local_steps": 1}, True),
        (Adapter(lora=Lora(), bottleneck=Bottleneck()), {"optimizer": "sgd", "local_steps": 1}, True),
        (Adapter(bottleneck=Bottleneck(activation="gelu")), {"optimizer": "sgd", "local_steps": 1}, False),
        (Adapter(bottleneck=Bottleneck()), {"optimizer": "sgd", "local_steps": 2}, False),
        (Adapter(bottleneck=Bottleneck()), {"optimizer": "adamw", "local_steps": 1}, False),
        (Adapter(lora=Lora()), {"optimizer": "sgd", "local_steps": 1}, False),
    ],
)
def test_a_site_may_refuse_what_makes_imprints(tmp_path: Path, adapter: Adapter, changes: dict, refused: bool) -> None:
    plan = PLAN.model_copy(update={"adapter": adapter, "train": Train(**changes)})
    site(tmp_path, "").permit(plan, now=NOON)
    strict = site(tmp_path, "[policy]\nrefuse_imprints = true\n")
    if not refused:
        strict.permit(plan, now=NOON)
        return
    with pytest.raises(PolicyRefused, match="one step of SGD"):
        strict.permit(plan, now=NOON)
    noisy = ExampleTerms(epsilon=8.0, delta=1e-5, l2_clip_norm=1.0, noise_multiplier=None, steps=10)
    strict.permit(plan.model_copy(update={"privacy": noisy}), now=NOON)


PEOPLE = ExampleTerms(
    epsilon=3.0,
    delta=1e-5,
    l2_clip_norm=1.0,
    noise_multiplier=None,
    steps=10,
    unit="person",
    examples_per_person=8,
    persons="do-not-cross",
)


def test_a_run_by_people_needs_both_sides_to_say_that_nobody_is_on_two_devices(tmp_path: Path) -> None:
    declared = 'persons = "do-not-cross"\n'
    by_people = PLAN.model_copy(update={"privacy": PEOPLE})
    site(tmp_path, declared).permit(by_people, now=NOON)
    with pytest.raises(PolicyRefused, match=r"data\.persons"):
        site(tmp_path, "").permit(by_people, now=NOON)
    silent = PLAN.model_copy(update={"privacy": PEOPLE.model_copy(update={"persons": "undeclared"})})
    with pytest.raises(PolicyRefused, match=r"privacy\.persons"):
        site(tmp_path, declared).permit(silent, now=NOON)


def test_a_site_that_protects_people_takes_part_in_no_run_that_protects_less(tmp_path: Path) -> None:
    strict = site(tmp_path, 'persons = "do-not-cross"\n[policy]\nmax_person_epsilon = 3.0\n')
    strict.permit(PLAN.model_copy(update={"privacy": PEOPLE}), now=NOON)
    by_examples = PEOPLE.model_copy(update={"unit": "example"})
    for privacy in (None, by_examples):
        with pytest.raises(PolicyRefused, match="protects no person"):
            strict.permit(PLAN.model_copy(update={"privacy": privacy}), now=NOON)
