"""What `fedpeft doctor` found: one line a check, with what to do when it failed."""

import shutil
import ssl
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedpeft.deployment.proxy import Proxy, connected
from fedpeft.errors import FedpeftError

__all__ = ["CheckResult", "answers_tls", "check", "disk", "private", "why_tls_fails"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check.

    Args:
        check: what was looked at.
        sound: whether it is as it should be.
        result: what was found.
        remedy: what to do; empty when sound.
        exit_code: of the error's kind; 0 when sound.
    """

    check: str
    sound: bool
    result: str
    remedy: str = ""
    exit_code: int = 0


def check(name: str, look: Callable[[], str]) -> CheckResult:
    """Looks, and turns a ``FedpeftError`` (whose text ends in what to do) into a finding."""
    try:
        return CheckResult(check=name, sound=True, result=look())
    except FedpeftError as error:
        result, _, remedy = str(error).partition("; ")
        return CheckResult(check=name, sound=False, result=result, remedy=remedy, exit_code=error.exit_code)


def private(paths: Iterable[Path]) -> CheckResult:
    """Whether only the owner can read these files."""
    open_to_others = [path for path in paths if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if not open_to_others:
        return CheckResult(check="secrets", sound=True, result="readable by the owner only")
    names = ", ".join(path.name for path in open_to_others)
    remedy = f"chmod 600 {' '.join(str(path) for path in open_to_others)}, and think about who may have read them"
    return CheckResult(check="secrets", sound=False, result=f"others can read {names}", remedy=remedy, exit_code=8)


def disk(path: Path, *, need_bytes: int) -> CheckResult:
    """Whether the disk of a path, or of its nearest parent, has room."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    result = f"{free / 2**30:.1f} GiB free at {path}"
    if free >= need_bytes:
        return CheckResult(check="disk", sound=True, result=result)
    remedy = f"make room: at least {need_bytes / 2**30:.1f} GiB"
    return CheckResult(check="disk", sound=False, result=result, remedy=remedy, exit_code=8)


def why_tls_fails(host: str, port: int, authority: bytes, *, proxy: Proxy | None = None, timeout_s: float = 5.0) -> str:
    """Why a server's certificate is not accepted, in OpenSSL's words; empty when it is.

    Args:
        host, port: of the server.
        authority: the certificate that must have signed its, PEM.
        proxy: on the way to it.
        timeout_s: for the connection.
    """
    context = ssl.create_default_context(cadata=authority.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    try:
        with (
            connected(host, port, proxy=proxy, timeout_s=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except OSError as error:
        return str(error)


def answers_tls(host: str, port: int, authority: Path, *, proxy: Proxy | None = None, timeout_s: float = 2.0) -> str:
    """Empty when a server of this authority answers; else what happened: ``refused``, or why TLS failed."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            connected(host, port, proxy=proxy, timeout_s=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:  # ssl.SSLError is one
        return str(error)
