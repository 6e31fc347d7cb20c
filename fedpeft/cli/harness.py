"""`fedpeft adapter harness`: EleutherAI's lm-evaluation-harness on a trained language model."""

from importlib.util import find_spec
from pathlib import Path

import click

from fedpeft.cli.asking import asked_as_trained
from fedpeft.cli.options import json_option, run_argument, say_json, store_option

__all__ = ["harness"]


def expect_tasks(files: tuple[Path, ...]) -> None:
    """Task files name local data and known metrics; no code of theirs is run yet.

    Raises:
        DataInvalid: one does not, or is no YAML.
    """
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY
    from lm_eval.tasks._yaml_loader import load_yaml

    from fedpeft.errors import DataInvalid
    from fedpeft.tasks.harness_tasks import expect_local_data, expect_metrics

    for file in files:
        try:
            config = load_yaml(file, resolve_func=False)
        except Exception as error:  # yaml, files and lm-eval have no common exception
            raise DataInvalid(f"Expected a task file, of {file} lm-eval said {error!s:.300}.") from error
        expect_local_data(config, file=file)
        expect_metrics(config, tuple(METRIC_REGISTRY), file=file)


@click.command()
@run_argument
@click.option(
    "--tasks",
    "files",
    metavar="FILE",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Task file in lm-eval's YAML, over local data. Repeatable.",
)
@click.option("--limit", type=click.IntRange(1), help="At most this many examples per task. Default: all.")
@store_option
@json_option
def harness(run: Path, files: tuple[Path, ...], limit: int | None, store: Path | None, as_json: bool) -> None:
    """Measure the language model of RUN on lm-eval tasks.

    Needs the extra `harness`. Prompts go through the base's chat template if the run was trained on conversations.
    Nothing is downloaded: the task file names local data. Python code that a task file names is run.

    \b
    Examples:
      fedpeft adapter harness latest --tasks triage.yaml
      fedpeft adapter harness runs/a --tasks triage.yaml --tasks notes.yaml --limit 200
    """
    from fedpeft.errors import ResourceMissing

    if find_spec("lm_eval") is None:
        raise ResourceMissing("Expected the package lm-eval, found none; pip install 'fedpeft[harness]'.")
    expect_tasks(files)
    from fedpeft_client.inference.harness import measure

    found = measure(asked_as_trained(run, store), files, limit=limit)
    if as_json:
        say_json(
            {
                "run": str(run),
                "results": [
                    {"task": one.task, "metric": one.metric, "value": one.value, "examples": one.examples}
                    for one in found
                ],
            }
        )
        return
    for one in found:
        click.echo(f"{one.task}  {one.metric} {one.value:.4f}  examples {one.examples}")
