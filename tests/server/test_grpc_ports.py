"""Whose a call is, where two relays lead to two servers and the system numbers connections for each."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc
import pytest

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.service.counted_relay import ENROL_LIMITS, SERVICE_LIMITS, CountedRelay, _Connection
from fedpeft_server.service.grpc_ports import PublicPorts
from tests.deployment.conftest import free_ports

PORT = 4711


@dataclass
class FromPort:
    """A call by that port of loopback."""

    certificate: bytes | None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {} if self.certificate is None else {"x509_pem_cert": [self.certificate]}

    def peer(self) -> str:
        return f"ipv4:127.0.0.1:{PORT}"

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise AssertionError(details)


@pytest.mark.parametrize("one_port", [False, True])
def test_a_stranger_with_the_port_number_of_a_device_is_not_taken_for_it(tmp_path: Path, one_port: bool) -> None:
    """Of 20,000 connections to one server 694 had the port of one of 500 open ones to another: a stranger's
    enrolment had no end and no limit of bytes then."""

    async def asked() -> None:
        home, taken = CoordinatorHome(tmp_path / "fed"), free_ports(4)
        public = [taken[0]] * 3 if one_port else taken[:3]
        names = ("fleet_port", "service_port", "enrol_port")
        settings = Settings(
            hosts=("localhost",), bind="127.0.0.1", metrics_port=taken[3], **dict(zip(names, public, strict=True))
        )
        initialise(home, settings, clock=SystemClock(), entropy=os_entropy)
        ports = PublicPorts(home, grpc.method_handlers_generic_handler("none", {}), gateway=lambda one: one.close())
        await ports.open(0)
        try:
            enrolment, service = ports._enrolment, ports._service
            assert isinstance(enrolment, CountedRelay)
            assert isinstance(service, CountedRelay)
            task = asyncio.create_task(asyncio.sleep(0))
            stranger, device = (_Connection(task, limits, 0.0) for limits in (ENROL_LIMITS, SERVICE_LIMITS))
            enrolment._peers[PORT], service._peers[PORT] = ("192.0.2.1", stranger), ("192.0.2.2", device)
            ports.met(FromPort(b"certificate"), "ward-a")
            assert (stranger.owner, device.owner) == ("", "ward-a")
            assert ports.origin(FromPort(None)) == "192.0.2.1"
            assert ports.origin(FromPort(b"certificate")) == "192.0.2.2"
            del enrolment._peers[PORT], service._peers[PORT]
            assert ports.origin(FromPort(None)) == "127.0.0.1", "nobody's"
        finally:
            await ports.close()

    asyncio.run(asked())
