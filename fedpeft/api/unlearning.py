"""``fedpeft.unlearn``: a simulated run made again without one of its devices, and the certificate of it (ADR 0063)."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.api.progress import Progress
from fedpeft.api.result import Result, open_run
from fedpeft.api.simulation import given_data, trained
from fedpeft.config import RunConfig
from fedpeft.config.resolved import resolved
from fedpeft.data.formats import located
from fedpeft.data.memory import Rows, is_memory
from fedpeft.directory_lock import in_use
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.files import expect_folder
from fedpeft.terminal import quoted
from fedpeft_server.run.run_view import RunView
from fedpeft_server.run.unlearning import Certificate, Equality, facts_of, rounds_with

if TYPE_CHECKING:
    from fedpeft_sim.population import Population

__all__ = ["Unlearned", "unlearn"]

COMMAND = ("fedpeft.unlearn",)
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Unlearned:
    """A device is forgotten.

    Args:
        result: the run without it.
        certificate: what was done.
    """

    result: Result
    certificate: Certificate


def unlearn(
    run: str | os.PathLike[str],
    device: str,
    data: object = None,
    *,
    out: str | Path | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | Progress = False,
    store: str | Path | None = None,
    command: Sequence[str] = COMMAND,
) -> Unlearned:
    """Make every round of a finished simulation again without one device; the first run stays as it is.

    Args:
        run: the directory of the run.
        device: the client to forget.
        data: the run's data if it came from Python or lies elsewhere now; as of ``fedpeft.simulate``.
        out: folder in which the new run directory is made; None: where ``run`` lies.
        resume: the directory of a run that this began and did not finish.
        progress, store, command: as of ``fedpeft.simulate``.

    Returns:
        The new run, with its certificate, which lies in it as ``unlearning.json`` and ``unlearning.txt``.

    Raises:
        ConfigInvalid: the run is no finished simulation, or owes nothing to such a device; it says what to do.
        IntegrityFailed: the data are not those of the run.
        FedpeftError: the new run failed; with ``resume`` it goes on.
    """
    view = open_run(run).view
    _expect_replayable(view)
    rows, changes = given_data(data)
    rows = None if rows is None else Rows(list(rows.rows), rows.name)  # read twice
    config = view.config()
    if rows is None and changes:
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": located(str(data))})})
    if rows is None and is_memory(config.data.source):
        raise ConfigInvalid("Expected the rows of a run whose data came from Python, found none; give them as `data`.")
    contributed = rounds_with(view, device)
    whole = _population(config, rows, view)
    examples = _examples(whole, device)
    if not contributed:
        raise ConfigInvalid(
            f"Expected a device of {view.path.name} that is in a sum, found that no round has summed anything of "
            f"{device}: there is nothing to forget."
        )
    how = config.data.partition.model_copy(update={"without": (*config.data.partition.without, device)})
    config = config.model_copy(update={"data": config.data.model_copy(update={"partition": how})})
    folder = Path(out) if out is not None else view.path.parent
    expect_folder(folder)
    config = config.model_copy(update={"directory": folder})
    result = trained(
        config,
        resolved(config),
        rows,
        begun=None if resume is None else _begun(resume, config),
        base_digest=view.manifest.base_digest,
        progress=progress,
        store=None if store is None else Path(store),
        command=command,
        loading=f"{view.path.name} again without {device}; loading",
    )
    certificate = Certificate(
        device=device,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        examples=examples,
        contributed=contributed,
        before=facts_of(view),
        after=facts_of(result.view),
        equality=_equality(config, whole, result.view),
        versions=result.view.manifest.versions,
        remains=_remains(view, whole, device),
    )
    certificate.write(result.path)
    return Unlearned(result, certificate)


def _expect_replayable(view: RunView) -> None:
    """Refuses a run that cannot be made again here.

    Raises:
        ConfigInvalid: its data are at its devices, or it has not finished.
    """
    if view.writer is not None:
        raise in_use(view.path, view.writer)
    if not view.manifest.data_digest:
        raise ConfigInvalid(
            f"Expected a simulation, whose data are on this machine, found {view.path.name}, whose data are with its "
            "devices. A coordinator knows who took part and the sum of all, never what one device gave, so it has "
            "nothing to subtract. Train again without it: fedpeft coordinator runs clone RUN --without NAME."
        )
    if view.state != "finished":
        raise ConfigInvalid(
            f"Expected a run that has finished, found {view.path.name} {view.state}; finish it with "
            f"`{quoted('fedpeft', 'simulate', '--resume', view.path)}`, or delete it."
        )


def _population(config: RunConfig, rows: Rows | None, view: RunView) -> "Population":
    """Everybody of the run, by the data of now.

    Raises:
        IntegrityFailed: the data are not those of the run: what is made of them would be another run.
    """
    from fedpeft_sim.population import populate

    whole = populate(config, rows)
    if whole.digest() != view.manifest.data_digest:
        raise IntegrityFailed(
            f"Expected the data that {view.path.name} was made of ({view.manifest.data_digest}), found "
            f"{whole.digest()} in {config.data.source}; restore the data, or name them with --data."
        )
    return whole


def _examples(whole: "Population", device: str) -> int:
    """How many the device has.

    Raises:
        ConfigInvalid: there is no such device.
    """
    sizes = {client.name: len(client.records) for client in whole.clients}
    if device not in sizes:
        near = get_close_matches(device, sizes, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        there = ", ".join(sorted(sizes)[:SHOWN]) + (", ..." if len(sizes) > SHOWN else "")
        raise ConfigInvalid(f"Expected a client of the run ({there}), found {device!r}{hint}")
    return sizes[device]


def _begun(resume: str | os.PathLike[str], config: RunConfig) -> RunView:
    """The unfinished run without the device.

    Raises:
        ConfigInvalid: it is of other settings, or of another device.
    """
    begun = open_run(resume).view
    if begun.writer is not None:
        raise in_use(begun.path, begun.writer)
    if resolved(begun.config()) != resolved(config):
        raise ConfigInvalid(
            f"Expected the run that was begun for this device, found {begun.path.name} with other settings; "
            "leave --resume away to start anew."
        )
    return begun


def _equality(config: RunConfig, whole: "Population", after: RunView) -> Equality:
    """What a run that never had the device has in common with the one that was made."""
    if config.privacy.unit != "none":
        return "distribution"
    stayed = [client for client in whole.clients if client.name not in config.data.partition.without]
    if any(client.device.fit_seconds for client in stayed):  # a simulated clock, which goes the same way each time
        return "bytes"
    too_late = any(one.state in ("dropped", "later") for row in after.rounds for one in row.clients)
    return "time" if config.rounds.over_select or too_late else "bytes"


def _remains(view: RunView, whole: "Population", device: str) -> tuple[str, ...]:
    """What the run without the device does not take away."""
    from fedpeft.data.targets import names_in

    target = whole.config.task.record.target
    holders = Counter(
        name
        for client in whole.clients
        for name in {name for row in client.records for name in names_in(row, target)}
        if whole.config.task.record.named_outputs
    )
    own = next(client for client in whole.clients if client.name == device).records
    alone = sorted({name for row in own for name in names_in(row, target)} & {n for n, c in holders.items() if c == 1})
    found = [
        (
            f"The first run, {view.path}: its states, its adapters, its report and the name {device} in its records. "
            "Delete it, and every copy, export and backup of it."
        ),
    ]
    if alone and whole.config.task.record.named_outputs:
        found.append(f"Names of outputs that {device} alone had, which the model can still give: {', '.join(alone)}.")
    if ends := _own_ends(whole, device):
        found.append(
            f"Ends of task.range that {device} alone reaches, in the configuration: {', '.join(map(str, ends))}."
        )
    if whole.config.base.adapters:
        found.append("What the adapters that the run began with had learnt: they were not made again.")
    if any(event.kind == "run.stopped" for event in view.events):
        found.append("The first run was ended before its last round; this one ended as its configuration says.")
    return tuple(found)


def _own_ends(whole: "Population", device: str) -> list[float]:
    """The lowest and the highest number of the run, as far as one device alone has them."""
    from fedpeft.data.targets import number_of

    if not whole.config.task.record.a_number or whole.config.task.range is None:
        return []
    holders = {client.name: {number_of(row.get("label")) for row in client.records} for client in whole.clients}
    own, others = holders[device], set().union(*(held for name, held in holders.items() if name != device))
    return [end for end in dict.fromkeys(whole.config.task.range) if end in own and end not in others]
