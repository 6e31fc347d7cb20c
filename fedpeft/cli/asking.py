"""Asking a trained adapter on the command line: what `fedpeft adapter` and `fedpeft client adapter` share."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedpeft.cli.options import FiniteFloat, json_option, map_option, say_json

if TYPE_CHECKING:
    from fedpeft.data import Record, Records
    from fedpeft.tuning import Evaluation
    from fedpeft_client.inference import Answerer, Sampling

__all__ = [
    "asked_as_trained",
    "chat",
    "say_evaluation",
    "say_predictions",
    "told_metrics",
    "with_how",
    "with_prediction_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])
ROWS_AT_ONCE = 64
LONGEST_LINE = 1 << 20
CONVENTIONS = ["messages", "prompt+completion", "instruction/input/output", "text"]


def asked_as_trained(run: Path, store: Path | None, written_as: str | None = None) -> "Answerer":
    """The model of a run, asked in the form that it was trained on, or in another (one of ``CONVENTIONS``)."""
    from fedpeft.api.kept import trained_model
    from fedpeft.tasks import Convention
    from fedpeft_server.run.run_view import read_run

    known = written_as or read_run(run).manifest.convention
    return trained_model(run, store=store).answerer(Convention(known) if known else None)


def with_how(command: Command) -> Command:
    """How a language model is asked: the command gets ``written_as``, ``max_tokens``, ``temperature``, ``top_p`` and
    ``seed``.
    """
    for option in (
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed for sampling."),
        click.option(
            "--top-p",
            type=FiniteFloat(0, 1, min_open=True),
            default=1.0,
            show_default=True,
            help="Nucleus sampling: draw from the most likely tokens of this total probability.",
        ),
        click.option(
            "--temperature",
            type=FiniteFloat(0, 10),
            default=0.0,
            show_default=True,
            help="Sampling temperature; 0: always the most likely token.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(1, 8192),
            default=64,
            show_default=True,
            help="Longest answer of a language model, in tokens.",
        ),
        click.option(
            "--as",
            "written_as",
            type=click.Choice(CONVENTIONS),
            help="Prompt form of a language model. Default: the form the run was trained on.",
        ),
    ):
        command = option(command)
    return command


def with_prediction_options(command: Command) -> Command:
    """TEXTS or ``--file``; the command gets ``texts``, ``file``, ``column_map``, ``probabilities`` and ``as_json``."""
    for option in (
        json_option,
        click.option(
            "--probabilities",
            is_flag=True,
            help="For a classifier: also print probabilities; with --file or --json, of every class.",
        ),
        map_option,
        click.option(
            "--file",
            metavar="FILE",
            help="Ask for each row of a data file, or for each line of JSON or text on standard input (-). One line of "
            "JSON a row comes out.",
        ),
        click.argument("texts", nargs=-1),
    ):
        command = option(command)
    return with_how(command)


def say_predictions(
    asked: "Answerer",
    how: "Sampling",
    *,
    texts: tuple[str, ...],
    file: str | None,
    column_map: dict[str, str],
    probabilities: bool,
    as_json: bool,
) -> None:
    """Print an answer for each of the texts or rows.

    Raises:
        DataInvalid: a row asks nothing.
        click.UsageError: both texts and a file, or neither.
    """
    if bool(texts) == (file is not None):
        raise click.UsageError("Expected texts or --file, found both." if texts else "Expected texts, or --file FILE.")
    if file is None:
        answers = _answered(asked, how, [{"text": text} for text in texts], probabilities=probabilities)
        if as_json:
            say_json([{"text": text, **answer} for text, answer in zip(texts, answers, strict=True)])
            return
        for text, answer in zip(texts, answers, strict=True):
            shares = f"{max(answer['probabilities'].values()):.3f}\t" if probabilities and asked.labels else ""
            click.echo(f"{answer['answer']}\t{shares}{text}")
        return
    rows, number = _rows(file, column_map), 0
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        for answer in _answered(asked, how, batch, probabilities=probabilities):
            number += 1
            click.echo(json.dumps({"row": number, **answer}, ensure_ascii=False))


def chat(asked: "Answerer", how: "Sampling") -> None:
    """Questions from standard input, answers as they come. After training on conversations earlier turns count.

    Raises:
        ConfigInvalid: the model classifies.
    """
    from fedpeft.data.prompts import conversation_tokens
    from fedpeft.errors import ConfigInvalid, DataInvalid
    from fedpeft.tasks import Convention

    if asked.decoder is None:
        found = "a model of vectors" if asked.embeds else "a classifier"
        raise ConfigInvalid(f"Expected a language model, found {found}; use `predict`.")
    remembers = asked.convention is Convention.MESSAGES
    how_long = "/new begins anew" if remembers else "it was not trained on conversations: each question stands alone"
    click.echo(f"asked as {asked.convention.value}; {how_long}; an empty line or Ctrl-D ends", err=True)
    turns: list[dict[str, str]] = []
    while question := _line("> "):
        if question == "/new":
            turns.clear()
            continue
        turns.append({"role": "user", "content": question})
        try:
            tokens = conversation_tokens(turns, asked.tokenizer) if remembers else asked.tokens_of({"text": question})
            answer = ""
            for piece in asked.stream([tokens], [how]):
                answer += piece.text
                click.echo(piece.text, nl=False)
            click.echo()
        except DataInvalid as refused:  # one question is refused, the conversation goes on
            turns.pop()
            click.echo(str(refused), err=True)
            continue
        turns.append({"role": "assistant", "content": answer})


def _line(prompt: str) -> str:
    if sys.stdin.isatty():
        click.echo(prompt, nl=False, err=True)
    return sys.stdin.readline(LONGEST_LINE).strip()


def _answered(
    asked: "Answerer", how: "Sampling", rows: "Sequence[Record]", *, probabilities: bool
) -> list[dict[str, Any]]:
    from fedpeft.data import Records
    from fedpeft.errors import DataInvalid
    from fedpeft_client.inference.outputs import question_of

    if asked.embeds:
        return _vectors(asked, rows)
    if asked.labels:
        texts = [question_of(row) for row in rows]
        if None in texts:
            raise DataInvalid("Expected a column text in every row, found rows without; name yours by --map text=NOTE.")
        choices = asked.classify([text for text in texts if text is not None])
        return [
            {"answer": one.label} | ({"probabilities": one.probabilities} if probabilities else {}) for one in choices
        ]
    if asked.margins is not None and all("chosen" in row and "rejected" in row for row in rows):
        margins = asked.margins(Records.of(rows))
        return [{"answer": "chosen" if one > 0 else "rejected", "margin": one} for one in margins]
    answers = asked.answers([asked.tokens_of(row) for row in rows], [how] * len(rows))
    return [{"answer": one.text, "tokens": one.tokens, "complete": one.complete} for one in answers]


def _vectors(asked: "Answerer", rows: "Sequence[Record]") -> list[dict[str, Any]]:
    """Of a text its vector; of texts that belong together how close the others are to the first."""
    from fedpeft.data.together.tokens import texts_together
    from fedpeft.errors import DataInvalid

    texts = [texts_together(row) if "anchor" in row else [row.get("text")] for row in rows]
    if any(not isinstance(text, str) for some in texts for text in some):
        raise DataInvalid("Expected a column text, or anchor and positive, in every row, found rows without.")
    flat = [(str(text),) for some in texts for text in some]
    found = {row: values for row, values, _ in asked.vectors(flat)}
    answers, start = list[dict[str, Any]](), 0
    for some in texts:
        first, *others = (found[start + place] for place in range(len(some)))
        start += len(some)
        close = [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]
        answer = f"{close[0]:.4f}" if close else json.dumps(first)
        answers.append({"answer": answer, **({"cosines": close} if close else {"vector": first})})
    return answers


def _rows(file: str, column_map: dict[str, str]) -> "Iterator[Record]":
    if file != "-":
        yield from _read(file, column_map)
        return
    from fedpeft.bounded_json import JsonRefused, loads
    from fedpeft.errors import DataInvalid

    theirs = {name: ours for ours, name in column_map.items()}
    for number, line in enumerate(iter(lambda: sys.stdin.readline(LONGEST_LINE), ""), 1):
        text = line.strip()
        if not text.startswith("{"):
            if text:
                yield {"text": text}
            continue
        try:
            row = loads(text)
        except JsonRefused as refused:
            raise DataInvalid(f"Expected a JSON object on line {number}, found {refused}.") from refused
        yield {theirs.get(name, name): value for name, value in row.items()} if isinstance(row, dict) else {}


def _read(file: str, column_map: dict[str, str]) -> "Records":
    from fedpeft.data import load_records

    return load_records(str(Path(file)) if not file.startswith("builtin:") else file, column_map)


def say_evaluation(run: str, metrics: "Mapping[str, float]", score: "Evaluation", *, unit: str, as_json: bool) -> None:
    """Print every metric; of a language model perplexity too, and its predictions are called tokens.

    Args:
        run: whose adapter it is.
        metrics: by name.
        score: what they were made of.
        unit: what loss and accuracy are means over, as the task's record says.
    """
    words = {"perplexity": _perplexity(metrics["loss"])} if unit == "tokens" else {}
    if as_json:
        say_json({"run": run, **metrics, "predictions": score.examples, **words})
        return
    shown = told_metrics(metrics)
    more = "".join(f"  {name} {value:.4g}" for name, value in words.items())
    click.echo(f"{shown}{more}  {'predictions' if unit == 'examples' else unit} {score.examples}")


def told_metrics(metrics: "Mapping[str, float]") -> str:
    """Every metric in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _perplexity(loss: float) -> float:
    import math

    return math.exp(min(loss, 700.0))
