"""Options and output of the commands that evaluate a trained adapter."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedpeft.cli.options import json_option, map_option, say_json

if TYPE_CHECKING:
    from fedpeft.tuning import Evaluation

__all__ = ["say_evaluation", "told_metrics", "with_evaluation_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def with_evaluation_options(command: Command) -> Command:
    """``--data`` (also as an argument); the command gets ``data``, ``column_map``, ``generation`` and ``as_json``."""

    def chosen(context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
        found = [one for one in (value, context.params.pop("positional", None)) if one]
        if len(found) != 1:
            raise click.UsageError(f"Expected one set of examples, found {len(found)}; write --data FILE.")
        return str(found[0])

    @wraps(command)
    def asked(generate: int | None, max_new_tokens: int, **given: object) -> object:
        from fedpeft.tasks.generated import Generation

        wanted = None if generate is None else Generation(rows=generate, max_new_tokens=max_new_tokens)
        return command(generation=wanted, **given)

    found: Any = asked
    for option in (
        json_option,
        map_option,
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1, 1024),
            default=64,
            show_default=True,
            help="With --generate: tokens at which an answer is cut.",
        ),
        click.option(
            "--generate",
            type=click.IntRange(min=1),
            help="Generate answers to so many prompts, for ROUGE-L and exact match. [default: as the run did]",
        ),
        click.option(
            "--data", metavar="FILE", callback=chosen, help="Examples: a file, a data set directory or builtin:NAME."
        ),
        click.argument("positional", metavar="[DATA]", required=False, is_eager=True),
    ):
        found = option(found)
    return found  # type: ignore[no-any-return]


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
