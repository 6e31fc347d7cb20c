"""Where a coordinator or a device lives: the option that says so, and the home it means."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

Command = TypeVar("Command", bound="Callable[..., object]")

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedpeft_client.home import DeviceHome
    from fedpeft_server.home import CoordinatorHome

__all__ = ["coordinator_home", "coordinator_home_option", "device_home", "device_home_option"]


def _home_option(whose: str, folder: str) -> "Callable[[Command], Command]":
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"The {whose}'s home. Default: $FEDPEFT_HOME or ~/.local/share/fedpeft/{folder}.",
    )


coordinator_home_option = _home_option("coordinator", "coordinator")
device_home_option = _home_option("device", "device")


def coordinator_home(path: Path | None) -> "CoordinatorHome":
    """The home at ``path``, or the default one; it need not exist."""
    from fedpeft_server.home import CoordinatorHome, default_coordinator_home

    return CoordinatorHome((path or default_coordinator_home()).absolute())


def device_home(path: Path | None) -> "DeviceHome":
    """The home at ``path``, or the default one; it need not exist."""
    from fedpeft_client.home import DeviceHome, default_device_home

    return DeviceHome((path or default_device_home()).absolute())
