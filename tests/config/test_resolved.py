"""resolved.toml says everything, and reading it gives the same run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config import config_digest, parse, resolved
from fedpeft.config.schema import template

FULL = template()


@given(st.integers(0, 2**63 - 1), st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False), st.text())
def test_a_resolved_file_is_read_back_as_the_same_configuration(seed: int, rate: float, name: str) -> None:
    config = parse(FULL, source="x", simulation=True)
    changed = config.model_copy(
        update={
            "run": config.run.model_copy(update={"seed": seed}),
            "train": config.train.model_copy(update={"learning_rate": rate}),
            "data": config.data.model_copy(update={"map": {"text": name, name or "x": "y"}}),
        }
    )
    assert parse(resolved(changed), source="x", simulation=True) == changed


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter.bitfit={}", "adapter.ia3={learning_rate = 0.1}"],
        ["data.partition={by = 'shards', clients = 4}"],
        ["adapter.layers=2", "device.0.rank=4"],
        ["task={kind = 'causal-lm'}", "secagg.mode=off"],
    ],
)
def test_optional_sections_survive_the_round_trip(overrides: list[str]) -> None:
    config = parse(FULL, source="x", overrides=overrides, simulation=True)
    again = parse(resolved(config), source="x", simulation=True)
    assert again == config
    assert config_digest(again) == config_digest(config)


def test_two_files_that_mean_the_same_run_have_one_digest() -> None:
    plain = parse(FULL, source="x", simulation=True)
    explicit = parse(FULL, source="x", overrides=["rounds.count=8", "train.decay=constant"], simulation=True)
    other = parse(FULL, source="x", overrides=["rounds.count=9"], simulation=True)
    assert config_digest(plain) == config_digest(explicit) != config_digest(other)
