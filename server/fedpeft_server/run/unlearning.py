"""What a run owes to one device, and the certificate that another run was made without it (ADR 0063).

``unlearning.json`` lies in the directory of the run without the device, beside ``unlearning.txt``, which says the same
to a person. It is a record for an audit file, not a proof: whoever holds the data proves it by making the run again,
whose files then have the digests that are named here.
"""

from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Literal, get_args

from fedpeft.errors import IntegrityFailed, said_by
from fedpeft.files import write_file
from fedpeft_server.run.run_view import RunView, file_digest

__all__ = ["CERTIFICATE", "Certificate", "RunFacts", "adapter_digests", "facts_of", "read_certificate", "rounds_with"]

CERTIFICATE = "unlearning.json"
TEXT = "unlearning.txt"

Equality = Literal["bytes", "distribution", "time"]
"""Of the state and that of a run that never had the device: the same bytes on the same machine and versions; where the
noise of a privacy unit was drawn anew, the same probabilities; or, where the machine's clock decided who was in a sum,
the same rounds but for whom they are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One of the two runs.

    Args:
        run: its id.
        config, data, base: digests, ``sha256:<hex>``: of its resolved.toml, of all clients' examples, of its base.
        rounds: committed.
        state: digest of the state after the last round.
        adapter: file -> digest, of the adapter that it keeps.
    """

    run: str
    config: str
    data: str
    base: str
    rounds: int
    state: str
    adapter: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was done to forget a device.

    Args:
        device: its name in the run.
        at: when it was done, UTC, ISO 8601.
        examples: of the device, held out ones among them, that the run without it was not given.
        contributed: rounds of the first run whose sum it is in.
        before, after: the run with it, and the run without it.
        equality: see ``Equality``.
        versions: package -> version, of the run without it.
        remains: what of the device is still there, a sentence each.
    """

    schema_version: Literal[1] = 1
    device: str
    at: str
    examples: int
    contributed: tuple[int, ...]
    before: RunFacts
    after: RunFacts
    equality: Equality
    versions: dict[str, str]
    remains: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object."""
        return dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """The same for a person."""
        before, after = self.before, self.after
        how = {
            "bytes": "A run that never had the device makes the same files: with these versions, on a machine of this\n"
            "kind, a run of the data without it has the digests under `after`.",
            "distribution": "Noise was drawn anew, so no two runs give the same bytes; the state has the distribution\n"
            "of that of a run that never had the device. The privacy of the others was spent a second time.",
            "time": "Rounds were of whoever was ready in time, by the clock of this machine, so no two runs give the\n"
            "same bytes; whatever was in a sum was trained without the device.",
        }[self.equality]
        lines = [
            f"Certificate: {self.device} forgotten",
            "",
            f"At {self.at} (UTC) every round of run {before.run} was made again",
            f"without {self.device} and its {self.examples} examples, from the first state, as run {after.run}.",
            f"It was in the sums of {len(self.contributed)} of {before.rounds} rounds: {_spans(self.contributed)}.",
            how,
            "",
            *_compared(before, after),
            "",
            "What remains:",
            *(f"- {sentence}" for sentence in self.remains),
            "",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items())),
        ]
        return "\n".join(lines) + "\n"

    def write(self, run: Path) -> Path:
        """Keep it in the directory of the run without the device; returns the JSON file."""
        write_file(run / TEXT, self.to_text().encode())
        write_file(run / CERTIFICATE, self.to_json().encode())
        return run / CERTIFICATE


def read_certificate(run: Path) -> Certificate:
    """The certificate in a run directory, held against the files that it names.

    Raises:
        IntegrityFailed: it is damaged, or the run's files are not those that it names.
    """
    path = run / CERTIFICATE
    try:
        found = loads(path.read_text(encoding="utf-8"))
        before, after = RunFacts(**found.pop("before")), RunFacts(**found.pop("after"))
        contributed, remains = tuple(map(int, found.pop("contributed"))), tuple(map(str, found.pop("remains")))
        kept = Certificate(**found, before=before, after=after, contributed=contributed, remains=remains)
        if kept.schema_version != 1 or kept.equality not in get_args(Equality):
            raise ValueError(f"schema {kept.schema_version}, equality {kept.equality!r}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityFailed(f"Expected a certificate in {path}, found {said_by(error)}; restore it.") from error
    if (now := adapter_digests(run)) != after.adapter:
        raise IntegrityFailed(f"{path}: expected the adapter {after.adapter}, found {now}.")
    return kept


def facts_of(view: RunView) -> RunFacts:
    """What a finished run is, in digests."""
    last = view.rounds[-1].checkpoint if view.rounds else {}
    return RunFacts(
        run=view.manifest.run_id,
        config=view.manifest.config_digest,
        data=view.manifest.data_digest,
        base=view.manifest.base_digest,
        rounds=len(view.rounds),
        state=last.get("global.safetensors", ""),
        adapter=adapter_digests(view.path),
    )


def adapter_digests(run: Path) -> dict[str, str]:
    """Weight file -> digest, of the adapter that a run keeps."""
    files = sorted((run / "adapters" / "final").glob("*.safetensors"))
    return {file.name: file_digest(file.read_bytes()) for file in files}


def rounds_with(view: RunView, device: str) -> tuple[int, ...]:
    """The committed rounds whose sum a device is in; those too of which no row says whom the sum is of."""
    return tuple(
        row.round
        for row in view.rounds
        if row.devices_survived
        and (not row.clients or any(one.client == device and one.state == "summed" for one in row.clients))
    )


def _spans(rounds: tuple[int, ...]) -> str:
    """ "1 to 4, 7"."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)


def _compared(before: RunFacts, after: RunFacts) -> list[str]:
    rows = [(f"{name}", getattr(before, name), getattr(after, name)) for name in ("config", "data", "base", "state")]
    names = sorted({*before.adapter, *after.adapter})
    rows += [(name, before.adapter.get(name, "none"), after.adapter.get(name, "none")) for name in names]
    return [line for name, first, then in rows for line in (f"{name}", f"  before  {first}", f"  after   {then}")]
