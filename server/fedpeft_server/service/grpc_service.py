"""The coordinator's gRPC service: enrolment on one port, everything for enrolled devices on another (mTLS).

One asyncio loop on a thread of its own: hundreds of open wake streams cost coroutines, not threads. Both ports reach
the same handlers; what needs a device asks ``Admission`` who the client certificate speaks for, on every call, and
streams ask again whenever the registry changed. So a revocation ends streams within ``_REGISTRY_POLL_S``.

Use: ``FleetService(...).start()``, then ``Wakeups.notify`` from the round engine, ``stop()`` at the end.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO

import grpc

from fedpeft import __version__
from fedpeft.clock import Clock
from fedpeft.deployment import rpc
from fedpeft.deployment.messages import (
    AdapterFileRequest,
    AdapterList,
    AdapterListRequest,
    BaseRequest,
    ChunksRequest,
    EnrolRequest,
    Greeting,
    GreetRequest,
    LeaveRequest,
    RenewRequest,
    Wake,
    WakeRequest,
)
from fedpeft.errors import FedpeftError, ResourceMissing
from fedpeft.wire import WireError, decode, encode
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, Status
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.origins import site_of
from fedpeft_server.service.adapter_files import AdapterFiles
from fedpeft_server.service.base_files import BaseFiles
from fedpeft_server.service.callers import Callers
from fedpeft_server.service.grpc_calls import Call, abort, client_certificate, strict
from fedpeft_server.service.grpc_ports import PublicPorts
from fedpeft_server.service.wakeups import Wakeups

__all__ = ["FleetService"]


_REGISTRY_POLL_S = 0.5
_START_S = 10.0
_log = logging.getLogger(__name__)


class FleetService:
    """The service of one coordinator's home.

    Args:
        home: initialised.
        registry, admission, board: shared with the rest of the coordinator.
        clock: what devices compare theirs with.
        gateway: takes the connections of the gateway where there is one port for all.
    """

    def __init__(
        self,
        home: CoordinatorHome,
        registry: Registry,
        admission: Admission,
        board: Wakeups,
        clock: Clock,
        *,
        gateway: Callable[[socket.socket], None],
    ) -> None:
        self._home, self._registry, self._admission = home, registry, admission
        self._board, self._clock = board, clock
        self._shelf = BaseFiles(home.bases)
        self._adapters = AdapterFiles(home.runs, home.settings().adapters)
        self._ports = PublicPorts(home, self._handlers(), gateway=gateway)
        self._callers = Callers(admission, clock, met=self._ports.met)
        self._listeners: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self.base_bytes_sent = 0

    def start(self) -> None:
        """Binds both ports and serves until ``stop``.

        Raises:
            ResourceMissing: a port is taken, or TLS could not be set up.
        """
        started: list[BaseException | None] = []
        ready = threading.Event()

        def report(error: BaseException | None) -> None:
            started.append(error)
            ready.set()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(report)), name="fleet-service", daemon=True
        )
        self._thread.start()
        if not ready.wait(_START_S):
            raise ResourceMissing(f"Expected the gRPC service to start within {_START_S:.0f} s, found it silent.")
        if started[0] is not None:
            raise started[0]

    def stop(self, *, grace_s: float = 2.0) -> None:
        """Ends open calls after a grace period and returns when the ports are free."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(grace_s + 5.0)
            self._record_strangers(now=True)

    async def _serve(self, report: Callable[[BaseException | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._ports.open(len(self._registry.devices(Status.ACTIVE)))
        except BaseException as error:
            await self._ports.close()
            report(error)
            return
        report(None)
        watcher = asyncio.create_task(self._watch_registry())
        await self._stop.wait()
        watcher.cancel()
        for event in self._listeners:
            event.set()
        await self._ports.close()

    def _handlers(self) -> grpc.GenericRpcHandler:
        unary = {
            rpc.GREET: self._greet,
            rpc.ENROL: self._enrol,
            rpc.RENEW: self._renew,
            rpc.LEAVE: self._leave,
            rpc.MANIFEST: self._manifest,
            rpc.ADAPTERS: self._list_adapters,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(strict(method)) for name, method in unary.items()}
        handlers[rpc.ADAPTER_FILE] = grpc.unary_stream_rpc_method_handler(self._adapter_file)
        handlers[rpc.CHUNKS] = grpc.unary_stream_rpc_method_handler(self._chunks)
        handlers[rpc.WAKE] = grpc.unary_stream_rpc_method_handler(self._wake)
        return grpc.method_handlers_generic_handler(rpc.SERVICE, handlers)

    async def _greet(self, payload: bytes, call: Call) -> bytes:
        decode(payload, GreetRequest)
        if client_certificate(call) is not None:
            await self._callers.device(call)  # a greeting with a certificate also says whether it still counts
        return encode(Greeting(utc_s=self._clock.utc().timestamp(), version=__version__))

    async def _enrol(self, payload: bytes, call: Call) -> bytes:
        peer, request = self._ports.origin(call), decode(payload, EnrolRequest)
        token = self._admission.prover(request)
        if token is None:
            await self._callers.limit(self._callers.strangers, site_of(peer), call)
        else:  # whoever has a token is not held up by strangers behind the same address
            await self._callers.limit(self._callers.enrolling, token, call)
        # Off the loop: it signs, and waits for the disk.
        return encode(await asyncio.to_thread(self._admission.answer, request, peer=peer))

    async def _renew(self, payload: bytes, call: Call) -> bytes:
        device = await self._callers.device(call)
        await self._callers.limit(self._callers.renewing, device.name, call)
        request = decode(payload, RenewRequest)
        return encode(await asyncio.to_thread(self._admission.renew, device, request.csr))

    async def _leave(self, payload: bytes, call: Call) -> bytes:
        device = await self._callers.device(call)
        request = decode(payload, LeaveRequest)
        return encode(await asyncio.to_thread(self._admission.leave, device, request.reason[:200]))

    async def _manifest(self, payload: bytes, call: Call) -> bytes:
        await self._callers.device(call)
        content = await asyncio.to_thread(self._shelf.manifest, decode(payload, BaseRequest).digest)
        if content is None:
            await abort(call, grpc.StatusCode.NOT_FOUND, "the coordinator has no such base")
        return content

    async def _chunks(self, payload: bytes, call: Call) -> AsyncIterator[bytes]:
        device = await self._callers.device(call)
        try:
            request = decode(payload, ChunksRequest)
        except WireError as error:
            await abort(call, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        opened = await asyncio.to_thread(self._shelf.open, request.digest, request.file, request.offset)
        async for piece in self._pieces(opened, device, call):
            yield piece
            self.base_bytes_sent += len(piece)

    async def _list_adapters(self, payload: bytes, call: Call) -> bytes:
        device = await self._callers.device(call)
        decode(payload, AdapterListRequest)
        return encode(AdapterList(entries=await asyncio.to_thread(self._adapters.listing, device.name)))

    async def _adapter_file(self, payload: bytes, call: Call) -> AsyncIterator[bytes]:
        device = await self._callers.device(call)
        try:
            request = decode(payload, AdapterFileRequest)
        except WireError as error:
            await abort(call, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        opened = await asyncio.to_thread(
            self._adapters.open, device.name, request.run_id, request.file, request.sha256, request.offset
        )
        async for piece in self._pieces(opened, device, call):
            yield piece

    async def _pieces(self, opened: BinaryIO | None, device: EnrolledDevice, call: Call) -> AsyncIterator[bytes]:
        """A file's bytes, for as long as the device is enrolled."""
        if opened is None:
            await abort(call, grpc.StatusCode.NOT_FOUND, "the coordinator has no such file or offset")
        with opened:
            await self._callers.enter(device.name, call)
            try:
                revision = self._registry.revision()
                while piece := await asyncio.to_thread(opened.read, rpc.PIECE_BYTES):
                    yield piece
                    if (now := self._registry.revision()) != revision:
                        await self._callers.device(call, counted=False)
                        revision = now
            finally:
                self._callers.leave(device.name)

    async def _wake(self, payload: bytes, call: Call) -> AsyncIterator[bytes]:
        device = await self._callers.device(call)
        try:
            decode(payload, WakeRequest)
        except WireError as error:
            await abort(call, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        loop, stirred = asyncio.get_running_loop(), asyncio.Event()
        rings, told, revision = 0, 0, self._registry.revision()

        def hear() -> None:
            nonlocal rings
            rings += 1
            stirred.set()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; the device will poll
                loop.call_soon_threadsafe(hear)

        await self._callers.enter(device.name, call)
        silence = self._board.subscribe(device.name, ring)
        self._listeners.add(stirred)
        try:
            yield encode(Wake(count=0))
            while not self._stop.is_set():
                await stirred.wait()
                stirred.clear()
                if (now := self._registry.revision()) != revision:
                    await self._callers.device(call, counted=False)
                    revision = now
                if rings > told:
                    told = rings
                    yield encode(Wake(count=told))
        finally:
            silence()
            self._listeners.discard(stirred)
            self._callers.leave(device.name)

    async def _watch_registry(self) -> None:
        """Tells every wake stream when any process changed the registry, and the audit log about strangers."""
        revision = self._registry.revision()
        while True:
            await asyncio.sleep(_REGISTRY_POLL_S)
            if (now := self._registry.revision()) != revision:
                revision = now
                for event in self._listeners:
                    event.set()
            await asyncio.to_thread(self._record_strangers)

    def _record_strangers(self, *, now: bool = False) -> None:
        try:
            self._admission.strangers.record(now=now)
        except (OSError, FedpeftError) as error:
            _log.error("the audit log was not written: %s", error)
