"""Flower's client of the Fleet protocol, signing with a device's key and trusting one authority."""

import ssl
from dataclasses import dataclass

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedpeft.deployment.proxy import Proxy, proxy_trouble
from fedpeft.errors import ConfigInvalid

__all__ = ["FleetTarget", "fleet_client"]

REQUEST_S = 10.0
"""Without a byte of the answer: well within the deadline of a stage, so that a lost answer costs no round."""
KEPT_S = 70.0
"""An unused connection; the gateway closes it after 75 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTarget:
    """Where the coordinator is and who we are to it.

    Args:
        address: host:port of the gateway.
        ca: the coordinator's certificate authority, PEM; nothing else is trusted.
        node_key: the device's P-256 private key, PEM.
        proxy: on the way there; None: none, whatever the environment says.
    """

    address: str
    ca: bytes
    node_key: bytes
    proxy: Proxy | None = None

    @property
    def trouble(self) -> str:
        """Why the proxy makes no way there; empty where it does, or where there is none."""
        host, _, port = self.address.rpartition(":")
        return proxy_trouble(host.strip("[]"), int(port), self.proxy)


def fleet_client(target: FleetTarget) -> tuple[FleetHttpClient, bytes]:
    """A client that signs with the target's key, and that key's public half as Flower writes it.

    Raises:
        ConfigInvalid: the key is no elliptic-curve key.
    """
    key = load_pem_private_key(target.node_key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigInvalid(f"Expected an elliptic-curve node key, found {type(key).__name__}; join again.")
    trust = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=target.ca.decode("ascii"))
    client = FleetHttpClient(
        f"https://{target.address}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
        verify=trust,
    )
    client._client.close()
    # Flower's own lets a connection go after 5 s: then every round would begin with a TLS handshake.
    client._client = httpx.Client(
        verify=trust,
        timeout=REQUEST_S,
        limits=httpx.Limits(keepalive_expiry=KEPT_S),
        proxy=None if target.proxy is None else target.proxy.with_credentials(),
        trust_env=False,  # what the environment says is in the target, and no ~/.netrc is read
    )
    return client, public_key_to_bytes(key.public_key())
