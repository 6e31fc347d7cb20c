"""The authority behind a pin: taken from a TLS handshake, in which nothing is said before the pin was compared."""

import ssl
from dataclasses import dataclass

from cryptography import x509

from fedpeft.deployment.ceremony import fingerprint
from fedpeft.deployment.proxy import Proxy, connected
from fedpeft.errors import IntegrityFailed

__all__ = ["Pinned", "authority_of_pin"]


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a coordinator showed.

    Args:
        authority: the pinned authority's certificate, PEM.
        names: in the coordinator's own certificate. Nobody has verified that one yet.
    """

    authority: bytes
    names: frozenset[str]


def authority_of_pin(
    host: str,
    port: int,
    pin: bytes,
    *,
    proxy: Proxy | None = None,
    timeout_s: float = 10.0,
    protocols: tuple[str, ...] = (),
) -> Pinned:
    """The authority's certificate that a pin names, from the coordinator's TLS handshake.

    Nothing but the handshake is sent before the pin has been checked, and nothing else on this connection at all.

    Args:
        host, port: where the coordinator is.
        pin: SHA-256 of its authority's certificate (DER).
        proxy: on the way.
        timeout_s: for each step.
        protocols: offered by ALPN.

    Raises:
        IntegrityFailed: whoever answered does not have that authority.
        OSError, ValueError: nobody answered, or not with TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the pin is checked instead, right below
    if protocols:
        context.set_alpn_protocols(list(protocols))
    with (
        connected(host, port, proxy=proxy, timeout_s=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        chain = _chain(secured)
    for der in chain:
        if fingerprint(der) == pin:
            return Pinned(ssl.DER_cert_to_PEM_cert(der).encode("ascii"), _names(chain[0]))
    found = fingerprint(chain[-1]).hex()[:16] if chain else "none"
    raise IntegrityFailed(
        f"Expected the authority {pin.hex()[:16]}... at {host}:{port}, found {found}...; nothing was sent. "
        "Somebody may be in between, or the token is of another coordinator: ask its operator."
    )


def _names(der: bytes) -> frozenset[str]:
    try:
        shown = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound, x509.InvalidVersion, x509.DuplicateExtension):
        return frozenset()
    return frozenset(shown.value.get_values_for_type(x509.DNSName))


def _chain(secured: ssl.SSLSocket) -> list[bytes]:
    """The certificates that the peer showed, DER, its own first. Python 3.13 has this in public."""
    inner = getattr(secured, "_sslobj", None)
    shown = inner.get_unverified_chain() if inner is not None else None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in shown or ()]
