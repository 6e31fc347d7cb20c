"""Devices in networks of other kinds take part in one round: behind proxies, on IPv6; real processes and connections.

The coordinator's name is one that only the proxy can resolve: whoever reaches it came through the proxy.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedpeft_client.connection.grpc_client import Link, Unreachable
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site, SiteData, SiteNetwork

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from federation import TOY, ToyFederation, enrol_device

pytestmark = pytest.mark.e2e
NAME = "fed.example"
SECRET = "p@ss:w/rd %41"  # noqa: S105  every character that a URL has another use for


@dataclass
class ProxyProcess:
    """`connect_proxy.py`."""

    federation: ToyFederation
    port: int = 0

    def start(self) -> None:
        """Returns once it takes connections; lets its users through to the coordinator's three ports."""
        settings = self.federation.settings
        ports = ",".join(map(str, (settings.fleet_port, settings.service_port, settings.enrol_port)))
        self.log.unlink(missing_ok=True)
        command = [TOY / "connect_proxy.py", self.log, f"ward:{SECRET}", NAME, ports, str(self.port)]
        self._process = subprocess.Popen([sys.executable, *command])
        self.federation.until(lambda: self.log.exists() and self.log.read_text().endswith("\n"), "the proxy")
        self.port = int(self.log.read_text().split()[0])

    def kill(self) -> None:
        """Ends every tunnel with it."""
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> Path:
        """What it writes, since its last start."""
        return self.federation.path / "proxy.txt"

    def lines(self) -> list[str]:
        """What it answered to whom."""
        return self.log.read_text().splitlines()[1:]


@pytest.fixture(scope="module", params=["three-ports", "one-port"])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """A coordinator on all addresses of both families; on one port as in a network that lets nothing but 443 out."""
    made = ToyFederation(
        tmp_path_factory.mktemp("federation"),
        hosts=(NAME, "localhost", "::1"),
        bind="::",
        one_port=request.param == "one-port",
        forked=True,
    )
    made.up()
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxy(federation: ToyFederation) -> Iterator[ProxyProcess]:
    """One of the devices' network."""
    made = ProxyProcess(federation)
    made.start()
    yield made
    made.kill()


def with_network(home: DeviceHome, **network: str) -> DeviceHome:
    home.path.mkdir(exist_ok=True)
    site = Site(data=SiteData(source="none.jsonl"), network=SiteNetwork(**network))
    home.site.write_text(site.to_toml())
    return home


@pytest.fixture(scope="module")
def devices(federation: ToyFederation, proxy: ProxyProcess) -> tuple[str, ...]:
    """Four: on IPv4, behind the proxy by its site's settings, behind it by the environment's, on IPv6; all online."""
    at = f"http://127.0.0.1:{proxy.port}"
    (federation.path / "credentials").write_text(f"ward:{SECRET}\n")
    reached = {"ward-a": "localhost", "ward-b": NAME, "ward-c": NAME, "ward-d": "::1"}
    for name, host in reached.items():
        home = DeviceHome(federation.path / name)
        site = {"proxy": at, "proxy_auth_file": str(federation.path / "credentials")} if name == "ward-b" else {}
        with_network(home, **site)
        with pytest.MonkeyPatch.context() as environment:
            for variable in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
                environment.delenv(variable, raising=False)
            if name == "ward-c":
                quoted = "p%40ss%3Aw%2Frd%20%2541"
                environment.setenv("HTTPS_PROXY", f"http://ward:{quoted}@127.0.0.1:{proxy.port}")
                environment.setenv("no_proxy", "localhost,::1,.example.org")
            enrol_device(federation.home, home.path, name, host=host)
            federation.device(name)
    federation.until(lambda: federation.online() >= set(reached), "the devices")
    return tuple(reached)


def test_devices_behind_a_proxy_and_on_ipv6_take_part_in_one_round(
    federation: ToyFederation, proxy: ProxyProcess, devices: tuple[str, ...]
) -> None:
    asked = {line.split(":")[-1] for line in proxy.lines()}
    settings = federation.settings
    assert asked == {str(port) for port in (settings.fleet_port, settings.service_port, settings.enrol_port)}
    job = federation.finished(federation.submit(rounds=1, least=4))
    assert (job.state.value, job.reason) == ("finished", "")
    np.testing.assert_allclose(federation.trained(job), np.full(4, 1 / 4), atol=1e-5)
    assert {line.split()[0] for line in proxy.lines()} == {"200"}
    for name in devices:
        said = federation.log(name) + "".join(path.read_text() for path in (federation.path / name).glob("*.jsonl"))
        for secret in (SECRET, "p%40ss", "d2FyZDpw"):  # plain, in a URL, in a header
            assert secret not in said


def test_a_proxy_that_is_killed_in_a_round_and_comes_back_costs_the_round_nothing(
    federation: ToyFederation, proxy: ProxyProcess, devices: tuple[str, ...]
) -> None:
    behind = [federation.path / "ward-b", federation.path / "ward-c"]
    for home in behind:
        (home / "hold").touch()
    job = federation.submit(rounds=2, least=4)
    federation.until(lambda: all((home / "fitting").exists() for home in behind), "training")
    proxy.kill()
    for home in behind:
        (home / "hold").unlink()
    federation.until(lambda: not any((home / "fitting").exists() for home in behind), "the end of training")
    for home in behind:
        name = home.name
        federation.until(lambda name=name: "no proxy answers" in federation.log(name), "its log to name the proxy", 30)  # type: ignore[misc]
        assert SECRET not in federation.log(name)
    proxy.start()
    ended = federation.finished(job)
    assert (ended.state.value, ended.reason) == ("finished", "")
    np.testing.assert_allclose(federation.trained(job), np.full(4, 2 / 4), atol=1e-5)
    assert [row["devices_survived"] for row in federation.rows(job)] == [4, 4, 4]


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"proxy": "http://ward:wrong-secret@127.0.0.1:{port}"}, ("127.0.0.1:{port}", "407", "user and a password")),
        ({"proxy": "http://127.0.0.1:1"}, ("no proxy answers at http://127.0.0.1:1", "refused")),
        ({"proxy": "127.0.0.1:{metrics}"}, ("127.0.0.1:{metrics}", "proxy")),
    ],
)
def test_a_proxy_that_makes_no_way_is_named_with_its_reason_and_without_a_password(
    network: dict[str, str], says: tuple[str, ...], federation: ToyFederation, proxy: ProxyProcess, tmp_path: Path
) -> None:
    ports = {"port": proxy.port, "metrics": federation.settings.metrics_port}
    home = with_network(DeviceHome(tmp_path), **{key: text.format(**ports) for key, text in network.items()})
    with pytest.raises(Unreachable) as refused:
        enrol_device(federation.home, home.path, "ward-x", host=NAME)
    for part in says:
        assert part.format(**ports) in str(refused.value)
    assert "wrong-secret" not in str(refused.value)


def test_a_device_whose_proxy_is_changed_later_says_so_in_its_log_and_by_command(
    federation: ToyFederation, proxy: ProxyProcess, tmp_path: Path
) -> None:
    home = DeviceHome(tmp_path / "ward-b")
    home.path.mkdir()
    (tmp_path / "credentials").write_text(f"ward:{SECRET}")
    right = {"proxy": f"http://127.0.0.1:{proxy.port}", "proxy_auth_file": str(tmp_path / "credentials")}
    with_network(home, **right)
    enrol_device(federation.home, home.path, "ward-e", host=NAME)
    (tmp_path / "credentials").write_text("ward:wrong-secret")
    with Link.of_home(home) as link, pytest.raises(Unreachable, match="407") as refused:
        link.greet()
    assert "wrong-secret" not in str(refused.value)
    process = federation.start("ward-e", "toy_device.py", home.path)
    federation.until(lambda: "answered 407" in federation.log("ward-e"), "a line in its log")
    process.kill()
    assert "wrong-secret" not in federation.log("ward-e")
