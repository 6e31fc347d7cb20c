"""What a handler of the gRPC service needs of one call: who it is, and how to end it with a reason."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NoReturn, Protocol

import grpc
from grpc import aio

from fedpeft.deployment.messages import RefusalReason, Refused
from fedpeft.wire import WireError

__all__ = ["Call", "abort", "address", "client_certificate", "port", "refuse", "strict"]

_log = logging.getLogger(__name__)


class Call(Protocol):
    """The part of ``grpc.aio.ServicerContext`` that is used here."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows about the peer."""
        ...

    def peer(self) -> str:
        """Its address."""
        ...

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call."""
        ...


def client_certificate(call: Call) -> bytes | None:
    """The certificate (PEM) that the peer proved in the handshake; None on the port for those without one."""
    return next((bytes(pem) for pem in call.auth_context().get("x509_pem_cert", ())), None)


def address(call: Call) -> str:
    """The peer without its port: ``ipv4:10.0.0.7:5123`` -> ``10.0.0.7``."""
    return call.peer().partition(":")[2].rpartition(":")[0] or call.peer()


def port(call: Call) -> int:
    """The port of the peer; 0 if it has none."""
    last = call.peer().rpartition(":")[2]
    return int(last) if last.isdecimal() else 0


async def abort(call: Call, code: grpc.StatusCode, detail: str) -> NoReturn:
    """Ends the call with a status and its reason."""
    await call.abort(code, detail)


async def refuse(call: Call, refused: Refused) -> NoReturn:
    """Ends the call of a device that may not; the reason travels in the status's detail: ``<reason>: <detail>``."""
    code = (
        grpc.StatusCode.UNAUTHENTICATED
        if refused.reason in (RefusalReason.EXPIRED, RefusalReason.KEY_RETIRED)
        else grpc.StatusCode.PERMISSION_DENIED
    )
    await abort(call, code, f"{refused.reason.value}: {refused.detail}")


def strict(method: Callable[[bytes, Call], Awaitable[bytes]]) -> Callable[[bytes, Call], Awaitable[bytes]]:
    """A unary handler that says of a malformed request what is wrong with it, and of a bug nothing."""

    async def handle(payload: bytes, call: Call) -> bytes:
        try:
            return await method(payload, call)
        except WireError as error:
            await abort(call, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except aio.AbortError:
            raise
        except Exception:
            _log.exception("a call failed")
            await abort(call, grpc.StatusCode.INTERNAL, "the coordinator failed; its log has the details")

    return handle
