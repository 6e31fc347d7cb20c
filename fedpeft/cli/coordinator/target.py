"""Which coordinator a command works on: the home on this machine, or one that is reached by its administration API.

Either way a command asks for an operation by name (``fedpeft_server.admin.routes``) and gets the same value.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

import click

from fedpeft.cli.coordinator.opened import made_home
from fedpeft.cli.homes import coordinator_home_option

if TYPE_CHECKING:
    from fedpeft_server.admin.administered import Administered

__all__ = ["Asking", "Target", "asking", "target_options"]

Command = TypeVar("Command", bound=Callable[..., Any])
Given = str | int | bool


class Asking(Protocol):
    """A coordinator that can be asked."""

    def ask(self, operation: str, **given: Given) -> Any:
        """What the operation of that name answers; JSON. Without a value an argument is not given."""
        ...

    @contextmanager
    def file(self, operation: str, **given: Given) -> Iterator[BinaryIO]:
        """The file that it answers."""
        ...


@dataclass(frozen=True)
class Target:
    """What the options said.

    Args:
        home: on this machine; None: the default one.
        url: of another machine's administration port; empty: this machine.
        token_file: with the access token.
    """

    home: Path | None
    url: str
    token_file: Path | None


def target_options(command: Command) -> Command:
    """``--home``, or ``--coordinator`` and ``--token-file``; the command gets ``target``."""

    def gathered(*arguments: Any, home: Path | None, coordinator: str, token_file: Path | None, **more: Any) -> Any:
        if coordinator and home is not None:
            raise click.UsageError("Expected --home or --coordinator, found both.")
        if bool(coordinator) != (token_file is not None):
            raise click.UsageError("Expected --coordinator URL and --token-file FILE together.")
        return command(*arguments, target=Target(home, coordinator, token_file), **more)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option(
            "--token-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            envvar="FEDPEFT_TOKEN_FILE",
            help="File with the access token for --coordinator.",
        ),
        click.option(
            "--coordinator", default="", metavar="URL", help="Administer a remote coordinator: https://HOST:PORT."
        ),
        coordinator_home_option,
    ):
        gathered = option(gathered)
    return gathered  # type: ignore[return-value]


@contextmanager
def asking(target: Target) -> Iterator[Asking]:
    """The coordinator, ready to be asked.

    Raises:
        ConfigInvalid: no coordinator's home, no URL, or no token.
    """
    if target.token_file is not None:
        from fedpeft.cli.coordinator.remote import RemoteCoordinator
        from fedpeft.errors import ConfigInvalid
        from fedpeft.files import read_text

        try:
            token = read_text(target.token_file).strip()
        except ValueError as error:
            raise ConfigInvalid(f"{target.token_file}: {error}.") from error
        yield RemoteCoordinator(target.url, token)
        return
    from fedpeft_server.admin.administered import administered

    with administered(made_home(target.home)) as site:
        yield LocalCoordinator(site)


class LocalCoordinator:
    """The home on this machine; its operator is whoever has an account that may read it."""

    def __init__(self, site: "Administered") -> None:
        self.site = site

    def ask(self, operation: str, **given: Given) -> Any:
        """See ``Asking``."""
        from fedpeft_server.admin.asked import Asked
        from fedpeft_server.admin.routes import named

        return named(operation).does(self.site, Asked(values=given))

    @contextmanager
    def file(self, operation: str, **given: Given) -> Iterator[BinaryIO]:
        """See ``Asking``."""
        with self.ask(operation, **given).open() as file:
            yield file
