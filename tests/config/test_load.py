"""Every mistake in a run.toml is reported, all of them at once, with the key, what was expected and found."""

import cProfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config import RunConfig, load, parse
from fedpeft.config.model import Rounds
from fedpeft.errors import ConfigInvalid
from fedpeft.secagg.spec import MAX_STAGE_DEADLINE_S

VALID = """
[run]
name = "small"
[base]
model = "pypi:some-model"
[task]
kind = "classify"
[data]
source = "x.jsonl"
partition = {by = "iid", clients = 6}
[adapter]
lora = {rank = 8}
[[device]]
clients = ["*"]
methods = ["lora"]
"""


def found(text: str = VALID, *overrides: str, simulation: bool = True) -> list[str]:
    """The problems of a configuration, as text."""
    try:
        parse(text, source="run.toml", overrides=overrides, simulation=simulation)
    except ConfigInvalid as error:
        return [str(problem) for problem in error.problems] or ["an error without a problem"]
    return []


SHORT = """
[base]
model = "pypi:some-model"
[task]
kind = "classify"
[data]
source = "x.jsonl"
"""


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("run.seed=1",),
        ("run.name=mine",),
        ("data.partition.clients=9",),
        ("data.partition.column=ward",),
        ("data.partition.by=column", "data.partition.column=ward"),
        ("data.partition.by=iid",),
        ("adapter.bitfit={}",),
        ("adapter.lora.rank=2", "rounds.count=3"),
    ],
)
def test_an_override_in_a_table_that_a_short_file_leaves_out_changes_its_default(overrides: tuple[str, ...]) -> None:
    assert found(SHORT, *overrides) == []


def test_a_valid_file_is_a_frozen_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(VALID)
    config = load(path, simulation=True)
    assert isinstance(config, RunConfig)
    assert config.adapter.lora is not None
    assert config.adapter.lora.targets == ("auto",)
    assert config.device[0].clients == ("*",)
    with pytest.raises(Exception, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


def test_every_problem_is_reported_at_once() -> None:
    text = VALID.replace("rank = 8", "rank = 8, tiers = [4, 2]").replace('name = "small"', 'nmae = "small"')
    problems = found(text.replace("[[device]]", "[train]\nlocal_steps = 1.5\nwarmup_rounds = 99\n[[device]]"))
    assert [problem.split(":")[1].strip() for problem in problems] == [
        "run.name",
        "run.nmae",
        "train.local_steps",
        "adapter.lora.tiers",
        "train.warmup_rounds",
    ]


@pytest.mark.parametrize("text", ['source = "x\udcff.jsonl"', '"so\udcffrce" = "x.jsonl"'])
def test_half_a_character_is_named_whether_in_a_key_or_in_a_value(text: str) -> None:
    """As a file's name has it whose bytes are no UTF-8: `fedpeft init` hands it on."""
    (problem,) = found(VALID.replace('source = "x.jsonl"', text))
    assert "expected text of UTF-8, found" in problem


def test_an_unknown_key_gets_the_nearest_known_one() -> None:
    (problem,) = found(VALID.replace("[task]", "[task]\nmax_lenght = 3"))
    assert problem == (
        "run.toml: task.max_lenght: expected one of kind, labels, max_length, beta, scale, range, generate, "
        "max_new_tokens, found an unknown key. Did you mean `max_length`?"
    )


def test_a_key_in_the_wrong_section_is_told_where_it_belongs() -> None:
    (problem,) = found(VALID.replace("[task]", "[task]\nbatch_size = 3"))
    assert problem.endswith("Did you mean `train.batch_size`?")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('rounds.count="3"', 'rounds.count: expected a whole number, found "3"'),
        ("rounds.count=3.0", "rounds.count: expected a whole number, found 3.0"),
        ("rounds.count=true", "rounds.count: expected a whole number, found true"),
        ("rounds.count=0", "rounds.count: expected a number >= 1, found 0"),
        ("rounds.min_devices=2", "rounds.min_devices: expected a number >= 3, found 2"),
        ("train.learning_rate=nan", 'train.learning_rate: expected a finite number or "auto" or "measured", found nan'),
        ("train.learning_rate=0", 'train.learning_rate: expected a number > 0 or "auto" or "measured", found 0'),
        ("train.optimizer=adam", 'train.optimizer: expected "adamw", "paged-adamw" or "sgd", found "adam"'),
        ("secagg.bits=24", 'secagg.bits: expected "auto", 16 or 32, found 24'),
        ("adapter.layers=some", 'adapter.layers: expected a whole number or "all", found "some"'),
        ("adapter.layers=0", 'adapter.layers: expected a number >= 1 or "all", found 0'),
        ("adapter.lora=3", "adapter.lora: expected a table, found 3"),
        ("task.labels=3", "task.labels: expected a list, found 3"),
        ("task.labels=[3]", "task.labels[0]: expected text in quotes, found 3"),
        ("device=[]", "device: expected at least 1 in the list, found []"),
        ("run.name=2020-01-01", "run.name: expected no date or time, found 2020-01-01"),
        ("data.map.text=12:00:00", "data.map.text: expected no date or time, found 12:00:00"),
    ],
)
def test_a_value_of_another_type_or_range_is_named(override: str, expected: str) -> None:
    (problem,) = found(VALID, override)
    assert problem.startswith(f"--set {expected}")


@pytest.mark.parametrize("key", [name for name in Rounds.model_fields if name.endswith("_s")])
def test_no_wait_is_longer_than_the_timers_of_a_system(key: str) -> None:
    """A timer answers 1e300 with an OverflowError; devices refuse terms of more than this."""
    assert found(VALID, f"rounds.{key}={MAX_STAGE_DEADLINE_S}") == []
    for wait in ("2592001.0", "1e300", "inf"):
        (problem,) = found(VALID, f"rounds.{key}={wait}")
        assert key in problem


def test_every_missing_section_is_named() -> None:
    problems = found("")
    for section in ("base", "task", "data"):
        assert any(problem.startswith(f"run.toml: {section}: expected a table, found nothing") for problem in problems)


SHORT = '[base]\nmodel = "m"\n[task]\nkind = "classify"\n[data]\nsource = "d.csv"\n'


def test_a_short_file_is_a_simulation_of_lora_on_equal_shares() -> None:
    config = parse(SHORT, source="run.toml", simulation=True)
    assert (config.data.partition.by, config.data.partition.clients, config.run.name) == ("iid", 5, "run")
    assert [(device.clients, device.methods) for device in config.device] == [(("*",), ("lora",))]
    named = parse(SHORT + "[adapter.bitfit]\n[adapter.ia3]\n", source="run.toml", simulation=True)
    assert set(named.device[0].methods) == {"bitfit", "ia3"}


def test_nothing_is_filled_in_for_real_devices() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse(SHORT, source="run.toml", simulation=False)
    assert {"run.toml: run", "run.toml: adapter"} <= {problem.where for problem in caught.value.problems}


def test_a_fault_does_not_bring_forth_others() -> None:
    # rank is wrong, so nothing is said of the tiers that end in it, nor of the device that stops at one.
    text = VALID.replace("rank = 8", 'rank = "eight", tiers = [2, 16]').replace('["lora"]', '["lora"]\nrank = 16')
    (problem,) = found(text)
    assert problem.startswith("run.toml: adapter.lora.rank: expected a whole number")


def test_a_syntax_error_is_told_with_its_line() -> None:
    assert found("[run]\nname = \n") == ["run.toml: line 2, column 8: expected valid TOML, found invalid value"]


@pytest.mark.parametrize("text", ["[run]\nname = 'a'\nname = 'b'\n", "[run]\nname = 'a'\n[run]\nseed = 1\n"])
def test_a_key_or_table_given_twice_is_an_error(text: str) -> None:
    (problem,) = found(text)
    assert problem.startswith("run.toml: line 3, column")
    assert "once only" in problem


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=r"run\.toml: expected (a readable TOML file|UTF-8)"):
        load(path)
    with pytest.raises(ConfigInvalid, match="expected a readable TOML file"):
        load(tmp_path)


@given(st.text(max_size=60))
def test_no_text_at_all_ends_in_anything_but_a_configuration_or_its_problems(text: str) -> None:
    found(text)
    found(VALID + text)


@given(
    st.sampled_from(
        ["run", "run.name", "task.labels", "device", "device.0", "adapter.lora", "data.map", "secagg.bits"]
    ),
    st.text(max_size=20) | st.sampled_from(["[]", "{}", "[[]]", "[{}]", "{a = {}}", "1979-05-27", "0x10", "inf", "''"]),
)
def test_no_override_ends_in_anything_but_a_configuration_or_its_problems(key: str, value: str) -> None:
    found(VALID, f"{key}={value}")


LATE_WARMUP = VALID + "[train]\nwarmup_rounds = 99\n"
"""With a fault across fields too: what is told of it depends on the other faults."""
MANY = {
    "unknown keys": lambda count: "\n".join(f"k{number} = 1" for number in range(count)) + LATE_WARMUP,
    "unknown keys of a section": lambda count: LATE_WARMUP.replace(
        "[base]", "\n".join(f"k{number} = 1" for number in range(count)) + "\n[base]"
    ),
    "unknown tables": lambda count: LATE_WARMUP + "\n".join(f"[k{number}]\na = 1" for number in range(count)),
    "wrong entries of a list": lambda count: LATE_WARMUP.replace("[task]", f"[task]\nlabels = [{'1, ' * count}]"),
    "wrong entries of a list of tables": lambda count: LATE_WARMUP + "[[device]]\nrnak = 1\n" * count,
    "dates": lambda count: LATE_WARMUP.replace("[task]", f"[task]\nlabels = [{'1979-05-27, ' * count}]"),
}


@pytest.mark.parametrize("of", MANY.values(), ids=MANY.keys())
def test_what_refusing_many_mistakes_costs_grows_no_faster_than_they_do(of: Callable[[int], str]) -> None:
    def cost(count: int) -> int:
        """Function calls: the same on every machine."""
        profile = cProfile.Profile()
        profile.enable()
        problems = found(of(count))
        profile.disable()
        assert len(problems) >= count
        return sum(entry.callcount for entry in profile.getstats())

    cost(1)  # what is computed once a process
    assert cost(400) < 4.4 * cost(100)
