"""What `submit` does before a run is queued: paths made absolute, and a look whether the base can be had."""

import tomllib
from pathlib import Path

import tomli_w

from fedpeft.base.source import resolve
from fedpeft.base.store import ArtifactStore
from fedpeft.config.load import parse
from fedpeft.errors import ConfigInvalid
from fedpeft.files import expanded
from fedpeft_server.track import expect_trackers

__all__ = ["submission"]

_ELSEWHERE = ("hub:",)
"""Sources that are fetched when the run begins; looking means downloading."""
_NAMED = ("sha256:", "pypi:", *_ELSEWHERE)


def submission(text: str, *, source: Path, bases: Path) -> str:
    """The run.toml as it is queued.

    Args:
        text: as the user wrote it.
        source: its file, for messages.
        bases: the coordinator's store of base artifacts.

    Raises:
        ConfigInvalid: it is wrong, or its base is not there; nothing was queued.
        ResourceMissing: a package, or an artifact of its base, is missing here.
    """
    config = parse(text, source=str(source))
    expect_trackers(config.track.to)
    match tomllib.loads(text):
        case {
            "data": {"partition": {"without": [_, *_]}}
        }:  # data are not read here, and whom to leave out is no detail
            raise ConfigInvalid(
                f"Expected no data.partition.without in {source}, found one: it is of simulations. To never ask a "
                "device, submit with --without NAME."
            )
    model = config.base.model
    if not model.startswith(_NAMED):
        absolute = str(expanded(model).absolute())  # the coordinator runs in another directory
        if absolute != model:
            document = tomllib.loads(text)
            document["base"]["model"] = model = absolute
            text = tomli_w.dumps(document)
    if model.startswith("sha256:"):
        if ArtifactStore(bases).find(model) is None:
            raise ConfigInvalid(
                f"Expected the base {model[:19]}... in {bases}, found none; build it with `fedpeft base build MODEL "
                f"--store {bases}`, or name one of `fedpeft base ls --store {bases}` in {source}."
            )
    elif not model.startswith(_ELSEWHERE):
        resolve(model)
    return text
