import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.cli import main
from fedpeft.cli.options import FiniteFloat, RunPath, map_option, parse_map, quoted
from fedpeft.errors import DataInvalid


@pytest.mark.parametrize(
    "pairs",
    [("text=note,label=dx",), ("text=note", "label=dx"), (" text = note , label = dx ",), ("label=dx,text=note",)],
)
def test_every_spelling_of_a_map_means_the_same(pairs: tuple[str, ...]) -> None:
    assert parse_map(pairs) == {"text": "note", "label": "dx"}


@pytest.mark.parametrize("pairs", [("label",), ("text=note,label",), ("=dx",), ("text=",), ("text=a", "text=b"), ("",)])
def test_a_map_without_both_sides_is_a_usage_error(pairs: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter):
        parse_map(pairs)


@pytest.mark.parametrize(
    "command", ["data check d.csv", "simulate run.toml", "adapter eval . d.csv", "adapter hub . --data d --out o"]
)
def test_every_command_with_a_map_refuses_half_a_pair_alike(command: str) -> None:
    assert main([*command.split(), "--map", "text=note", "--map", "label"]) == 2


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "Infinity", "NaN"])
@pytest.mark.parametrize("option", ["--epsilon", "--delta"])
def test_a_number_that_is_none_is_a_usage_error(value: str, option: str) -> None:
    rest = [] if option == "--epsilon" else ["--epsilon", "8"]
    assert main(["privacy", "plan", option, value, *rest, "--rounds", "20", "--clients", "50"]) == 2


def test_no_option_of_any_command_takes_a_float_that_is_not_finite() -> None:
    import fedpeft.cli as shell

    context = click.Context(shell.cli)

    def visit(command: click.Command, path: str) -> list[str]:
        if isinstance(command, click.Group):
            parts = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
            return [found for name, part in parts if part for found in visit(part, f"{path} {name}")]
        floats = [one for one in command.params if isinstance(one.type, (click.FloatRange, type(click.FLOAT)))]
        return [f"{path} {one.name}" for one in floats if not isinstance(one.type, FiniteFloat)]

    assert visit(shell.cli, "fedpeft") == []


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1))
def test_a_printed_command_can_be_pasted(words: list[str]) -> None:
    assert shlex.split(quoted(*words)) == words


def run_in(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.json").write_text(json.dumps({}))
    return folder / name


def test_a_run_is_found_by_path_name_beginning_and_as_the_latest(tmp_path: Path) -> None:
    first = run_in(tmp_path, "20261122T001231Z-airlines-7f3a")
    second = run_in(tmp_path, "20261123T001231Z-notes-11aa")
    found = RunPath(tmp_path)
    for said in (str(first), first.name, "20261122", "airlines"):
        assert found.convert(said, None, None) == first
    assert found.convert("latest", None, None) == second


@pytest.mark.parametrize("said", ["2026112", "absent", "LATEST", ""])
def test_what_names_no_run_or_several_is_refused_with_those_that_there_are(tmp_path: Path, said: str) -> None:
    for name in ("20261122T001231Z-airlines-7f3a", "20261123T001231Z-notes-11aa"):
        run_in(tmp_path, name)
    with pytest.raises(DataInvalid, match="notes-11aa"):
        RunPath(tmp_path).convert(said or "x" * 300, None, None)


def test_the_map_option_hands_over_a_dictionary() -> None:
    @click.command()
    @map_option
    def command(column_map: dict[str, str]) -> None:
        click.echo(json.dumps(column_map))

    answer = CliRunner().invoke(command, ["--map", "text=a,label=b", "--map", "input=c"])
    assert json.loads(answer.output) == {"text": "a", "label": "b", "input": "c"}


@pytest.mark.parametrize(("words", "offered"), [("fedpeft da", "data"), ("fedpeft simulate --re", "--resume")])
def test_the_shell_completes_commands_and_options(
    words: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FEDPEFT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main([]) == 0
    assert offered in capsys.readouterr().out
    monkeypatch.setenv("_FEDPEFT_COMPLETE", "bash_source")
    main([])
    assert "complete -o nosort -F" in capsys.readouterr().out
