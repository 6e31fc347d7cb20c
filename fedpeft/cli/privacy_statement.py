"""`fedpeft privacy report --statement` and `fedpeft privacy verify`: a signed document, and whether it is as signed."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import json_option, say_json

if TYPE_CHECKING:
    from fedpeft.secagg.primitives import IdentityKey
    from fedpeft_server.run.run_view import RunView

__all__ = ["issue", "verify"]


def issue(view: "RunView", target: Path, home: Path | None) -> None:
    """Write the statement of a run.

    Raises:
        ConfigInvalid: ``home`` is nobody's.
    """
    from fedpeft.files import write_file
    from fedpeft_server.report.filed_statement import as_html, as_json, as_text, document_of, file_statement

    key, signer = _signer(view, home)
    filed = file_statement(document_of(view, signer=signer), key)
    written = {".json": as_json, ".html": as_html}.get(target.suffix, as_text)
    write_file(target, written(filed))
    click.echo(f"{target}: signed by the {signer}, key {filed.public_key}" if key else f"{target}: not signed")
    if key is None:
        click.echo("This run lies in no coordinator's home, so no key vouches for it; --home names one.", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--key", help="Public key of the signer in hex, which you got from its owner over another channel.")
@json_option
def verify(file: Path, key: str | None, as_json: bool) -> None:
    """Verify a signed privacy statement. Exits with 6 if signature and content do not match."""
    from fedpeft.errors import IntegrityFailed
    from fedpeft.files import read_bytes
    from fedpeft.terminal import printable
    from fedpeft_server.report.filed_statement import MAX_BYTES, read_filed

    filed = read_filed(read_bytes(file, MAX_BYTES + 1))
    if not filed.signature:
        raise IntegrityFailed(
            f"Expected a signed statement, found {file} without a signature: anybody can have written it."
        )
    if key is not None and key.strip().lower() != filed.public_key:
        raise IntegrityFailed(f"Expected a statement signed by {key}, found one signed by {filed.public_key}.")
    document = filed.document
    if as_json:
        say_json({"file": str(file), "key": filed.public_key, "statement": document})
        return
    said = (f"{name} {document.get(name)}" for name in ("run", "unit", "epsilon", "delta"))
    click.echo(f"{file}: {printable(', '.join(said))}")
    click.echo(printable(f"signed by {document.get('signed by')}, key {filed.public_key}"))
    if key is None:
        click.echo("Whose key that is, no file can say: compare it with the one its owner told you, or give --key.")


def _signer(view: "RunView", home: Path | None) -> "tuple[IdentityKey | None, str]":
    from fedpeft.errors import ConfigInvalid
    from fedpeft_client.home import DeviceHome
    from fedpeft_server.home import CoordinatorHome

    where = home or view.path.absolute().parent.parent
    coordinator, device = CoordinatorHome(where), DeviceHome(where)
    if coordinator.settings_file.is_file():
        return coordinator.identity(), "coordinator"
    if device.identity_seed.is_file():
        return device.identity(), "device"
    if home is not None:
        raise ConfigInvalid(f"Expected a coordinator's or a device's home in {home}, found neither.")
    return None, ""
