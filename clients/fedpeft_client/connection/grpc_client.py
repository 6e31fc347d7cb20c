"""The device's end of the coordinator's gRPC service: its calls, and what their failures mean to a device.

Every failure is one of: ``NotEnrolled`` (the coordinator says so: exit 4), ``Unreachable`` (try again later),
``ResourceMissing`` (it has no such thing), ``IntegrityFailed`` (somebody else answered).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, TypeVar, cast

import grpc

from fedpeft import __version__
from fedpeft.deployment import rpc
from fedpeft.deployment.doctor import why_tls_fails
from fedpeft.deployment.messages import (
    Accepted,
    AdapterEntry,
    AdapterFile,
    AdapterFileRequest,
    AdapterList,
    AdapterListRequest,
    BaseRequest,
    ChunksRequest,
    EnrolRequest,
    Greeting,
    GreetRequest,
    LeaveRequest,
    Refused,
    Renewed,
    RenewRequest,
    Waiting,
    Wake,
    WakeRequest,
)
from fedpeft.deployment.pin import Pinned, authority_of_pin
from fedpeft.deployment.proxy import Proxy, proxy_trouble
from fedpeft.deployment.token import JoinToken
from fedpeft.errors import ConfigInvalid, DeadlineMissed, FedpeftError, IntegrityFailed, NotEnrolled, ResourceMissing
from fedpeft.wire import decode, encode
from fedpeft_client.connection.proxy import proxy_of
from fedpeft_client.home import DeviceHome

__all__ = ["Link", "Unreachable", "pinned_authority"]

T = TypeVar("T")
CALL_S = 20.0
"""A unary call takes milliseconds; this long only when the network is the problem."""


class Unreachable(DeadlineMissed):
    """The coordinator did not answer, or was too busy; trying again may help."""


class Link:
    """A connection to the service; also a context manager.

    Args:
        target: ``host:port``.
        authority: the pinned authority's certificate, PEM.
        key, certificate: the device's, PEM; None while it enrols.
        proxy: on the way there; None: none.
        name: as ``rpc.secure_channel`` has it.
    """

    def __init__(
        self,
        target: str,
        *,
        authority: bytes,
        key: bytes | None = None,
        certificate: bytes | None = None,
        proxy: Proxy | None = None,
        name: str = "",
    ) -> None:
        self.target, self._authority, self._proxy = target, authority, proxy
        self._channel = rpc.secure_channel(
            target, authority=authority, key=key, certificate=certificate, proxy=proxy, name=name
        )

    @classmethod
    def of_home(cls, home: DeviceHome) -> Self:
        """The connection of an enrolled device.

        Raises:
            NotEnrolled: it is not, or its keys are gone.
            ConfigInvalid: its proxy is none that can be used.
        """
        enrolment = home.enrolment()
        try:
            authority, key = home.ca_certificate.read_bytes(), home.device_key.read_bytes()
            certificate = home.device_certificate.read_bytes()
        except OSError as error:
            raise NotEnrolled(
                f"Expected the keys of {enrolment.device} in {home.keys}, found {error.strerror}; join again "
                "with a new token."
            ) from error
        proxy = proxy_of(home, enrolment.host)
        return cls(enrolment.service_target, authority=authority, key=key, certificate=certificate, proxy=proxy)

    def close(self) -> None:
        """Ends open calls too."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def greet(self) -> Greeting:
        """Who is there, and what time it is there."""
        return decode(self._call(rpc.GREET, encode(GreetRequest(version=__version__))), Greeting)

    def enrol(self, request: EnrolRequest) -> Accepted | Waiting | Refused:
        """Asks to be let in."""
        answer = decode(self._call(rpc.ENROL, encode(request)), (Accepted, Waiting, Refused))
        return cast("Accepted | Waiting | Refused", answer)

    def renew(self, csr: bytes) -> Renewed | Refused:
        """Asks for a new certificate."""
        answer = decode(self._call(rpc.RENEW, encode(RenewRequest(csr=csr))), (Renewed, Refused))
        return cast("Renewed | Refused", answer)

    def leave(self, reason: str) -> None:
        """Says goodbye for good."""
        decode(self._call(rpc.LEAVE, encode(LeaveRequest(reason=reason))), Refused)

    def manifest(self, digest: str) -> bytes:
        """The bytes of a base's manifest, unchecked."""
        return self._call(rpc.MANIFEST, encode(BaseRequest(digest=digest)))

    def chunks(self, digest: str, file: str, offset: int) -> Iterator[bytes]:
        """The bytes of a file of a base from ``offset`` on, unchecked, as they come."""
        request = encode(ChunksRequest(digest=digest, file=file, offset=offset))
        yield from self._stream(rpc.CHUNKS, request)

    def adapters(self) -> tuple[AdapterEntry, ...]:
        """The adapters that this device may have, unchecked, newest run first."""
        return decode(self._call(rpc.ADAPTERS, encode(AdapterListRequest())), AdapterList).entries

    def adapter_file(self, run_id: str, file: AdapterFile, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a listed file from ``offset`` on, unchecked, as they come."""
        request = AdapterFileRequest(run_id=run_id, file=file.name, sha256=file.sha256, offset=offset)
        yield from self._stream(rpc.ADAPTER_FILE, encode(request))

    def wakes(self) -> Iterator[Wake]:
        """One at once, and one whenever a message may wait; until ``close``."""
        for payload in self._stream(rpc.WAKE, encode(WakeRequest())):
            yield decode(payload, Wake)

    def _call(self, method: str, payload: bytes) -> bytes:
        with self._explained():
            answer: bytes = self._channel.unary_unary(rpc.method_path(method))(payload, timeout=CALL_S)
        return answer

    def _stream(self, method: str, payload: bytes) -> Iterator[bytes]:
        with self._explained():
            call = self._channel.unary_stream(rpc.method_path(method))(payload)
            try:
                yield from call
            finally:
                call.cancel()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise _meaning(error, self.target, self._authority, self._proxy) from error
        except ValueError as error:  # the channel was closed under the call
            raise Unreachable(
                f"Expected an open connection to {self.target}, found it closed; connect anew."
            ) from error


def pinned_authority(token: JoinToken, *, proxy: Proxy | None = None, timeout_s: float = 10.0) -> Pinned:
    """The authority's certificate that the token's pin names; see ``fedpeft.deployment.pin``.

    Raises:
        IntegrityFailed: whoever answered does not have that authority.
        Unreachable: nobody answered, or not with TLS.
    """
    try:
        where, pin = (token.host, token.enrol_port), token.ca_fingerprint
        return authority_of_pin(*where, pin, proxy=proxy, timeout_s=timeout_s, protocols=("h2",))
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"Expected a coordinator at {token.host}:{token.enrol_port}, found {error}; check that it runs and that no "
            "firewall is between."
        ) from error


def _meaning(error: grpc.RpcError, target: str, authority: bytes, proxy: Proxy | None) -> FedpeftError:
    code, detail = error.code(), error.details() or ""
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    match code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return NotEnrolled(f"Expected {target} to accept this device, found {detail}.")
        case grpc.StatusCode.NOT_FOUND:
            return ResourceMissing(f"Expected {target} to have it, found that {detail}; ask its operator.")
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
            return ConfigInvalid(f"Expected {target} to understand fedpeft {__version__}, found {detail}; update both.")
    if "CERTIFICATE_VERIFY_FAILED" in detail:
        cause = why_tls_fails(host, int(port), authority, proxy=proxy)
        if "not yet valid" in cause or "expired" in cause:
            return ResourceMissing(
                f"Expected this machine's clock to be within the life of the certificate of {target}, found that the "
                f"{cause}; set the clock by NTP (`timedatectl set-ntp true`). If it is right, tell the operator."
            )
        return IntegrityFailed(
            f"Expected {target} to show a certificate of the pinned authority, found another; nothing was sent."
        )
    if trouble := proxy_trouble(host, int(port), proxy):  # gRPC says of it what varies, and may say the password
        return Unreachable(f"Expected a way to {target} through a proxy, found that {trouble}.")
    detail = detail if proxy is None else f"no answer behind {proxy}"
    return Unreachable(f"Expected an answer from {target}, found {code.name.lower()}: {detail[:200]}.")
