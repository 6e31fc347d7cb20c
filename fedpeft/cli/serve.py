"""`fedpeft adapter serve`: trained adapters behind HTTP."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import RunPath, store_option

if TYPE_CHECKING:
    from fedpeft_client.serving.registry import Snapshot

__all__ = ["RunSource", "serve"]


@dataclass(frozen=True)
class RunSource:
    """A run's folder as something to serve: its kept state (``fedpeft.api.kept``).

    Args:
        name: of requests.
        path: the folder.
        store: where base artifacts lie; None: the user's store.
    """

    name: str
    path: Path
    store: Path | None = None

    def version(self) -> str:
        """Changes with every commit."""
        found = (self.path / "metrics.jsonl").stat()
        return f"{found.st_mtime_ns}/{found.st_size}"

    def read(self) -> "Snapshot":
        """The state that ``adapters/final`` holds, or would hold if the run ended now."""
        from fedpeft.api.kept import state_of
        from fedpeft.tasks import Convention
        from fedpeft_client.serving.registry import Snapshot
        from fedpeft_server.run.run_view import read_run

        view = read_run(self.path)
        known = view.manifest.convention
        return Snapshot(
            config=view.config(),
            state=state_of(view, store=self.store),
            base=view.manifest.base_digest,
            convention=Convention(known) if known else None,
        )


@click.command()
@click.argument("runs", metavar="[NAME=]RUN...", nargs=-1, required=True)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any other than loopback needs --token-file.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0: any free port.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with the token that requests must send as `Authorization: Bearer`.",
)
@click.option(
    "--waiting",
    type=click.IntRange(1, 10_000),
    default=256,
    show_default=True,
    help="Longest queue, in texts; more are answered 503.",
)
@store_option
def serve(
    runs: tuple[str, ...], host: str, port: int, token_file: Path | None, waiting: int, store: Path | None
) -> None:
    """Serve the adapters of RUNS over HTTP. Routes: OpenAI-compatible ones, and /classify.

    A request's `model` is the name of a run; runs on one base share batches. Serves the state in adapters/final;
    while a run goes on, the best state so far, replaced within seconds by a better one. Ctrl-C or SIGTERM ends
    the server after the answers in progress.

    \b
    Examples:
      fedpeft adapter serve latest
      fedpeft adapter serve ward-a=runs/a ward-b=runs/b --port 8080
    """
    from fedpeft.errors import ConfigInvalid
    from fedpeft.files import read_text
    from fedpeft_client.serving.server import serve as serve_until_told

    token = None
    if token_file is not None:
        try:
            token = read_text(token_file).strip()
        except ValueError as error:
            raise ConfigInvalid(f"{token_file}: {error}.") from error
        if len(token) < 16:
            raise ConfigInvalid(f"Expected a token of at least 16 characters in {token_file}, found {len(token)}.")
    sources = []
    for named in runs:
        name, mark, run = named.partition("=")
        path = RunPath().convert(run if mark else named, None, None)
        sources.append(RunSource(name if mark else path.name, path, store))

    def ready(url: str) -> None:
        click.echo(f"{url}/v1 serves {', '.join(source.name for source in sources)}")

    serve_until_told(sources, store=store, host=host, port=port, token=token, waiting=waiting, ready=ready)
