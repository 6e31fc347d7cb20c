"""A coordinator on another machine, asked through its administration API.

The access token names the authority that the coordinator has, so nothing is said to anybody else: a handshake shows the
chain, the pin is compared, and the connection that carries the token trusts that authority alone.
"""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlencode, urlsplit

from fedpeft import bounded_json
from fedpeft.deployment.pin import authority_of_pin
from fedpeft.deployment.proxy import Proxy, connected, proxy_for
from fedpeft.errors import ConfigInvalid, DeadlineMissed, FedpeftError, NotEnrolled, PolicyRefused, RunFailed
from fedpeft_server.admin.access import pin_of
from fedpeft_server.admin.routes import Operation, named

__all__ = ["RemoteCoordinator"]

TIMEOUT_S = 30.0
_ANSWER = bounded_json.JsonLimits(max_bytes=64 * 2**20, max_depth=8)
_SAID: Mapping[int, type[FedpeftError]] = {401: NotEnrolled, 403: PolicyRefused, 429: DeadlineMissed}
_KINDS = {kind.exit_code: kind for kind in (RunFailed, ConfigInvalid, NotEnrolled, DeadlineMissed, PolicyRefused)}


class RemoteCoordinator:
    """One coordinator.

    Args:
        url: ``https://HOST:PORT``.
        token: an access token.

    Raises:
        ConfigInvalid: the URL is of another kind, or the token none.
    """

    def __init__(self, url: str, token: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme != "https" or not host or parts.path not in ("", "/") or parts.username or parts.query:
            raise ConfigInvalid(f"Expected https://HOST:PORT of the coordinator's administration, found {url[:200]!r}.")
        self._host, self._port = host, port or 443
        self._token, self._pin = token, pin_of(token)
        self._trust: ssl.SSLContext | None = None
        self._proxy: Proxy | None = proxy_for(host)

    def ask(self, operation: str, **given: str | int | bool) -> Any:
        """See ``fedpeft.cli.coordinator.target.Asking``.

        Raises:
            FedpeftError: what the coordinator refused, as it would on its own machine.
        """
        with self._answer(named(operation), given) as answer:
            return _value(answer.read(_ANSWER.max_bytes + 1))

    @contextmanager
    def file(self, operation: str, **given: str | int | bool) -> Iterator[BinaryIO]:
        """See ``fedpeft.cli.coordinator.target.Asking``."""
        with self._answer(named(operation), given) as answer:
            yield cast("BinaryIO", answer)

    @contextmanager
    def _answer(
        self, operation: Operation, given: Mapping[str, str | int | bool]
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            trust = self._trusted()
            plain = connected(self._host, self._port, proxy=self._proxy, timeout_s=TIMEOUT_S)
            connection.sock = trust.wrap_socket(plain, server_hostname=self._host)
            path, body, headers = _request(operation, given)
            connection.request(operation.method, path, body, {**headers, "authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            if answer.status != operation.status:
                raise _refusal(answer)
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise DeadlineMissed(
                f"Expected the administration of a coordinator at {self._host}:{self._port}, found {error}; check that "
                "it runs, that coordinator.json has an admin_port, and that no firewall is between."
            ) from error
        finally:
            connection.close()

    def _trusted(self) -> ssl.SSLContext:
        if self._trust is None:
            authority = authority_of_pin(self._host, self._port, self._pin, proxy=self._proxy).authority
            self._trust = ssl.create_default_context(cadata=authority.decode("ascii"))
            self._trust.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._trust


def _request(operation: Operation, given: Mapping[str, str | int | bool]) -> tuple[str, bytes | None, dict[str, str]]:
    path = operation.path
    for name in operation.parts:
        path = path.replace(f"{{{name}}}", quote(str(given[name]), safe=""))
    rest = {name: value for name, value in given.items() if name not in operation.parts}
    if operation.method == "GET":
        return f"{path}?{urlencode(rest)}" if rest else path, None, {}
    return path, json.dumps(rest).encode(), {"content-type": "application/json"}


def _value(content: bytes) -> object:
    try:
        return bounded_json.loads(content, _ANSWER)
    except ValueError as error:
        raise DeadlineMissed(f"Expected JSON of the coordinator, found {error}.") from error


def _refusal(answer: http.client.HTTPResponse) -> FedpeftError:
    try:
        said = bounded_json.loads(answer.read(2**16))
    except ValueError:
        said = None
    text, code = f"the coordinator answered {answer.status}", 0
    if isinstance(said, dict):
        text, found = str(said.get("error", text)), said.get("exit_code")
        code = found if isinstance(found, int) else 0
    return (_KINDS.get(code) or _SAID.get(answer.status, ConfigInvalid))(text)
