import errno
import json
import os
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.cli import main
from fedpeft.cli.options import AdapterPath, FiniteFloat, RunPath, map_option, parse_map
from fedpeft.errors import DataInvalid
from fedpeft.terminal import quoted


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


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, click.Command]]:
    """Every command that does something, with its words."""
    context = click.Context(command)
    if not isinstance(command, click.Group):
        return [(" ".join(path), command)]
    names = command.list_commands(context)
    parts = [(name, command.get_command(context, name)) for name in names]
    return [leaf for name, part in parts if part for leaf in leaves(part, (*path, name))]


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_every_command_can_be_quiet_verbose_and_without_colour() -> None:
    import fedpeft.cli as shell

    for name, command in leaves(shell.cli):
        assert {"-q", "--quiet", "-v", "--verbose", "--no-color"} <= options_of(command), name


WITHOUT_JSON = {
    "init": "writes a file",
    "adapter export": "writes a folder; `adapter inspect --json` says what is in it",
    "base export": "writes a folder",
    "adapter chat": "a conversation with a person",
    "adapter serve": "runs until it is stopped",
    "base gc": "deletes",
    "base merge": "writes a folder",
    "config show": "prints TOML",
    "config schema": "prints JSON already",
    "config template": "prints TOML",
    "runs report": "writes a page",
    "client join": "an exchange with a person",
    "client run": "runs until it is stopped",
    "client adapter chat": "a conversation with a person",
    "client adapter pull": "does one thing; `client adapter ls --json` lists",
    "client leave": "does one thing",
    "client runs approve": "does one thing; `client runs pending --json` shows what",
    "client runs refuse": "does one thing",
    "client rotate-key": "does one thing",
    "client reset-ledger": "does one thing",
    "coordinator init": "does one thing",
    "coordinator runs clone": "does one thing",
    "coordinator runs priority": "does one thing",
    "coordinator clients group": "does one thing; `coordinator clients ls --json` lists",
    "coordinator up": "runs until it is stopped",
    "coordinator backup": "writes one file",
    "coordinator admin-token revoke": "does one thing",
    "coordinator runs download": "writes files",
    "coordinator upgrade": "does one thing",
    "coordinator restore": "does one thing",
    "local up": "runs until it is stopped; the run directory says all",
    "coordinator submit": "does one thing; `coordinator status --json` shows it",
    "coordinator stop": "does one thing",
    "coordinator resume": "does one thing",
    "coordinator token": "prints a secret",
    "coordinator clients": "does one thing",
    "coordinator webhook rm": "does one thing",
    "coordinator webhook test": "does one thing",
}
"""Commands, or groups of them, that print no facts for programs, and why."""


def groups(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, click.Group]]:
    """Every command with commands below it, with its words."""
    if not isinstance(command, click.Group):
        return []
    context = click.Context(command)
    parts = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [(" ".join(path), command)] + [
        found for name, part in parts if part for found in groups(part, (*path, name))
    ]


def test_every_list_of_commands_says_what_each_does_on_one_line_of_a_narrow_terminal() -> None:
    import fedpeft.cli as shell

    for name, group in groups(shell.cli):
        text = group.get_help(click.Context(group, info_name=f"fedpeft {name}".strip(), terminal_width=80))
        assert [line for line in text.splitlines() if line.endswith("...") and not line.startswith("Usage")] == [], name


def test_every_command_that_prints_facts_prints_them_as_json_too() -> None:
    import fedpeft.cli as shell

    for name, command in leaves(shell.cli):
        excused = any(name == words or name.startswith(f"{words} ") for words in WITHOUT_JSON)
        assert "--json" in options_of(command) or excused, name
    names = [f"{name} " for name, _ in leaves(shell.cli)]
    assert not [words for words in WITHOUT_JSON if not any(name.startswith(f"{words} ") for name in names)]


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


def test_an_adapter_is_named_by_its_folder_or_by_its_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, "20261122T001231Z-airlines-7f3a")
    final = run / "adapters" / "final"
    final.mkdir(parents=True)
    found = AdapterPath(tmp_path)
    for said in (str(run), run.name, "latest", str(final)):
        assert found.convert(said, None, None) == final
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "inspect.json").write_text("{}")
    assert found.convert(str(exported), None, None) == exported


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(**_: object) -> None:
        raise error

    from fedpeft.cli.runs import command

    monkeypatch.setattr(command.commands["ls"], "callback", fails)


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [
        (errno.ENOENT, "given/sub/file", 8),
        (errno.ENOTDIR, "given", 8),
        (errno.ENOENT, ".", 8),  # a folder above what was given
        (errno.ENOENT, "/usr/lib/fedpeft/forgotten.json", 70),
        (errno.ENOENT, None, 70),
        (errno.EISDIR, "/srv/other", 70),
        (errno.ENOSPC, "/srv/other", 8),
        (errno.EACCES, None, 8),
    ],
)
def test_a_path_that_nobody_named_and_is_not_there_is_a_bug_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    name: str | None,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("FEDPEFT_HOME", raising=False)
    failing(monkeypatch, OSError(number, "what the system says", name))
    assert main(["runs", "ls", "given"]) == code
    assert ("Traceback" in capsys.readouterr().err) is (code == 70)


def test_verbose_shows_where_an_error_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, DataInvalid("Expected one, found another."))
    for flags, shown in (([], False), (["-v"], True), ([], False)):
        assert main([*flags, "runs", "ls"]) == 3
        assert ("Traceback" in capsys.readouterr().err) is shown
        assert main(["runs", "ls", *flags]) == 3
        assert ("Traceback" in capsys.readouterr().err) is shown


def test_json_is_one_value_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    (tmp_path / "runs").mkdir()
    for command in (
        ["runs", "ls", str(tmp_path / "runs")],
        ["data", "check", str(tmp_path / "d.jsonl")],
        ["base", "ls", "--store", str(tmp_path / "bases")],
        ["methods", "ls"],
    ):
        assert main([*command, "--json"]) == 0
        json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [["--no-color", "runs", "ls"], ["runs", "ls", "--no-color"]])
def test_no_color_is_what_the_variable_is(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("NO_COLOR", "")
    assert main(words) == 0
    assert os.environ["NO_COLOR"] == "1"
