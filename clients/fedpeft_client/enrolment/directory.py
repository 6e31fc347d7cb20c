"""The site's own directory: which devices it has met in rounds, under which organisation and key.

The coordinator enrols devices, so it could give a known name to another key, move a device to another organisation, or
fill a round with devices that it made up. Devices remember every roster that they accepted, and refuse one that
contradicts it. The file is authenticated under the device's identity; who puts an older one back, or none, is whoever
owns the disk. What it does not do: make enrolment honest. Compare the fingerprint with another site by telephone.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from fedpeft.errors import IntegrityFailed
from fedpeft.files import PRIVATE, write_file
from fedpeft.secagg import Participant
from fedpeft.secagg.primitives import hkdf
from fedpeft_client.home import DeviceHome

__all__ = ["KnownDevice", "SiteDirectory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """One device.

    Args:
        device, organisation: its names.
        identity: its Ed25519 public key, hex.
        confirmed: whether the site said that it belongs here; those of the first round count as confirmed.
    """

    device: str
    organisation: str
    identity: str
    confirmed: bool


class SiteDirectory:
    """The directory of a device's home; ``secagg.Directory``.

    Args:
        home: the device's.
        mode: "follow", "confirm" or "pinned", as in site.toml.
    """

    def __init__(self, home: DeviceHome, mode: Literal["follow", "confirm", "pinned", "off"] = "follow") -> None:
        self._file, self._mode = home.directory, mode
        self._key = hkdf(home.identity().secret_bytes(), b"", "directory")

    def entries(self) -> tuple[KnownDevice, ...]:
        """Every device that was met, by name.

        Raises:
            IntegrityFailed: the file is not what this device wrote.
        """
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return ()
        tag, _, body = text.partition(b"\n")
        if not hmac.compare_digest(tag, self._tag(body)):
            raise IntegrityFailed(
                f"Expected {self._file} as this device wrote it, found another; restore it, or remove it to learn the "
                "other devices anew from the next round."
            )
        return tuple(KnownDevice(**entry) for entry in json.loads(body))  # ours: the tag says so

    def admit(self, roster: Sequence[Participant]) -> int | str:
        """See ``secagg.Directory``."""
        known = {entry.device: entry for entry in self.entries()}
        owners = {entry.identity: entry.device for entry in known.values()}
        first = not known
        added: list[KnownDevice] = []
        for peer in roster:
            found = KnownDevice(
                device=peer.device,
                organisation=peer.organisation,
                identity=peer.identity.hex(),
                confirmed=first,
            )
            objection = _contradiction(found, known.get(peer.device), owners.get(found.identity))
            if objection is not None:
                return objection
            if peer.device not in known:
                added.append(found)
        if added and not first and self._mode == "pinned":
            names = ", ".join(sorted(entry.device for entry in added)[:5])
            return f"Expected the devices of the site's pinned directory, found {names} besides; ask who they are."
        if added:
            self._write({**known, **{entry.device: entry for entry in added}})
        if self._mode != "confirm":
            return 0
        confirmed = {entry.device for entry in known.values() if entry.confirmed}
        return 0 if first else sum(peer.device not in confirmed for peer in roster)

    def confirm(self) -> int:
        """Says that every device met so far belongs here; returns how many were new."""
        entries = self.entries()
        new = [entry for entry in entries if not entry.confirmed]
        self._write({entry.device: replace(entry, confirmed=True) for entry in entries})
        return len(new)

    def forget(self, device: str) -> bool:
        """Forgets one device, e.g. one that was enrolled anew with other keys; whether it was known."""
        entries = {entry.device: entry for entry in self.entries()}
        known = entries.pop(device, None) is not None
        if known:
            self._write(entries)
        return known

    def fingerprint(self) -> str:
        """The same at two sites iff their directories are; four groups of four hex digits, to be read out."""
        rows = sorted((entry.device, entry.organisation, entry.identity) for entry in self.entries())
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return "-".join(digest[place : place + 4] for place in range(0, 16, 4))

    def _write(self, entries: dict[str, KnownDevice]) -> None:
        body = json.dumps([asdict(entry) for _, entry in sorted(entries.items())]).encode()
        write_file(self._file, self._tag(body) + b"\n" + body, mode=PRIVATE)

    def _tag(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, "sha256").hexdigest().encode()


def _contradiction(found: KnownDevice, known: KnownDevice | None, owner: str | None) -> str | None:
    """Why a row of a roster cannot be the device that the directory knows; None if it can."""
    if known is not None and known.organisation != found.organisation:
        return f"Expected {found.device} of {known.organisation}, as in earlier rounds; found {found.organisation}."
    if known is not None and known.identity != found.identity:
        return (
            f"Expected {found.device} with the key of earlier rounds, found another; if its owner enrolled it anew, "
            f"run `fedpeft client directory --forget {found.device}`."
        )
    if owner is not None and owner != found.device:
        return f"Expected the key of {owner} under that name, found it under {found.device}."
    return None
