"""No number on a command line or in a run.toml reaches a user as a bug: it is taken, or refused by its name."""

import click
import pytest

from fedpeft.cli import cli, main

STRANGE = ("0", "-1", "9" * 30, "9" * 5000, "1e9", "0x10", "²", "٣", "", " 5", "inf", "nan", "1_000", "--1")
PLAN = ("--steps", "--length", "--batch-size", "--labels", "--ram", "--uplink", "--deadline")
VALUES = (
    "9" * 30,
    "9" * 5000,
    "[" * 3000,
    "[" * 3000 + "]" * 3000,
    "{a=" * 2000,
    "1e400",
    "nan",
    "1_0",
    "²",
    "--1",
    "'",
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:8])
@pytest.mark.parametrize("key", ["rounds.count", "run.seed", "train.learning_rate", "task.labels", "x." * 500 + "y"])
def test_an_override_is_taken_or_refused_as_a_configuration(
    key: str, value: str, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["config", "template"])
    text = capsys.readouterr().out
    path = f"{tmp_path}/run.toml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    code = main(["config", "validate", path, "--set", f"{key}={value}"])
    assert code in (0, 3)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a = " + "[" * 5000 + "]" * 5000, "a = " + "9" * 5000, "a." * 3000 + "b = 1"]
)
def test_a_file_of_nothing_but_depth_is_refused_as_a_configuration(text: str, tmp_path: object) -> None:
    path = f"{tmp_path}/run.toml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    assert main(["config", "validate", path]) == 3


def test_every_whole_number_of_a_plan_has_a_lower_bound() -> None:
    context = click.Context(cli)
    for group in ("methods", "privacy"):
        inner = cli.get_command(context, group)
        assert isinstance(inner, click.Group)
        for name, command in inner.commands.items():
            for option in command.params:
                if option.type is click.INT:
                    pytest.fail(f"{group} {name} --{option.name} takes any whole number")


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: value[:8] or "empty")
@pytest.mark.parametrize("option", PLAN)
def test_a_strange_number_for_a_plan_is_taken_or_a_usage_error(option: str, value: str) -> None:
    context = cli.get_command(click.Context(cli), "methods")
    assert isinstance(context, click.Group)
    plan = context.commands["plan"]
    (parameter,) = [one for one in plan.params if option in one.opts]
    try:
        parameter.type_cast_value(click.Context(plan), value)
    except click.BadParameter:
        return
    except ValueError as error:
        pytest.fail(f"{option} {value[:20]!r}: {error}")
