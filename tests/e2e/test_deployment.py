"""A deployed federation under faults: real processes, the real protocol, kills by the system.

Rows of the fault table: 1 and 2 (the coordinator is killed, or told to end), 3 and 5 (a
device is killed and comes back), 16 (replayed headers), 17 (revoked in a round), 18 (NaN), 30 (two coordinators).
Training is one-hot: after n rounds a device's coordinate has moved by n / devices, or somebody was counted twice or
lost.
"""

import json
import signal
import ssl
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedpeft.cli import main
from fedpeft.clock import SystemClock
from fedpeft_client.enrolment.keys import public_key
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site, SiteData, SiteLimits, SitePolicy

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from federation import ToyFederation, running

pytestmark = pytest.mark.e2e
NAMES = ("ward-a", "ward-b", "ward-c", "ward-d")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """Four devices that stay through all tests of this module, in their order."""
    with running(tmp_path_factory.mktemp("federation"), NAMES) as made:
        yield made


def test_a_submitted_run_ends_in_the_exact_mean_of_its_devices(federation: ToyFederation) -> None:
    job = federation.finished(federation.submit(rounds=2))
    assert (job.state.value, job.reason) == ("finished", "")
    np.testing.assert_allclose(federation.trained(job), np.full(4, 2 / 4), atol=1e-5)
    assert [row["devices_survived"] for row in federation.rows(job)] == [4, 4, 4]
    assert federation.audited()[-1] == "run-ended"


def test_a_second_coordinator_on_the_same_home_is_refused_and_told_who_has_it(federation: ToyFederation) -> None:
    holder = federation.processes["coordinator"].pid
    second = federation.start("second", "toy_up.py", federation.home.path)
    assert second.wait(60) == 8
    assert f"process {holder}" in federation.log("second")


def test_a_replayed_header_is_refused_by_the_running_coordinator(federation: ToyFederation) -> None:
    home = DeviceHome(federation.path / "ward-a")
    key = load_pem_private_key(home.device_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    stamp = SystemClock().utc().isoformat()
    headers = {
        "flwr-public-key": b64encode(public_key(home.device_key.read_bytes())).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-type": "application/x-protobuf",
    }
    url = f"https://localhost:{federation.settings.fleet_port}/v1/fleet/pull-messages"
    trust = ssl.create_default_context(cafile=str(home.ca_certificate))
    with httpx.Client(verify=trust) as client:
        first, replayed = (client.post(url, headers=headers, content=b"") for _ in range(2))
        hidden = client.post(url.replace("fleet/pull-messages", "control/register-node"), content=b"")
    assert first.status_code != 401 or b"Invalid SuperNode" in first.content, "the gateway let it through to Flower"
    assert (replayed.status_code, replayed.content) == (401, b"")
    assert hidden.status_code == 404


def test_a_coordinator_killed_in_a_round_goes_on_and_counts_nobody_twice(federation: ToyFederation) -> None:
    hold = federation.path / "ward-b" / "hold"
    hold.write_text("1")
    job = federation.submit(rounds=3)
    federation.until(lambda: len(federation.rows(job)) >= 1, "the first commit")
    federation.until((federation.path / "ward-b" / "fitting").exists, "training")
    before = len(federation.rows(job))
    federation.kill("coordinator")
    hold.unlink()
    process = federation.up(forked=False)
    # The bar is 15 s from its start. CPU seconds, because the machine that runs the tests may have other work.
    used = psutil.Process(process.pid).cpu_times()
    assert used.user + used.system < 15.0
    assert federation.finished(job).state.value == "finished"
    rows = federation.rows(job)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert before >= 1
    np.testing.assert_allclose(federation.trained(job), np.full(4, 3 / 4), atol=1e-5)


def test_a_device_killed_in_training_comes_back_into_the_same_round(federation: ToyFederation) -> None:
    hold = federation.path / "ward-c" / "hold"
    hold.touch()
    job = federation.submit(rounds=1)
    federation.until((federation.path / "ward-c" / "fitting").exists, "training")
    federation.kill("ward-c")
    hold.unlink()
    federation.device("ward-c")
    assert federation.finished(job).state.value == "finished"
    assert [row["devices_survived"] for row in federation.rows(job)] == [4, 4]
    np.testing.assert_allclose(federation.trained(job), np.full(4, 1 / 4), atol=1e-5)


def test_a_run_goes_on_without_a_device_whose_owner_has_not_answered_and_with_it_after_the_yes(
    federation: ToyFederation, capsys: pytest.CaptureFixture[str]
) -> None:
    home = DeviceHome(federation.path / "ward-d")
    before = home.site.read_text()
    federation.kill("ward-d")
    asks = SitePolicy(approve="ask")
    home.site.write_text(Site(data=SiteData(source="none.jsonl"), policy=asks).to_toml())
    federation.device("ward-d")
    federation.until(lambda: federation.online() >= set(NAMES), "the device")
    hold = federation.path / "ward-b" / "hold"
    hold.write_text("1")  # round 2 waits
    job = federation.submit(rounds=2)
    federation.until(lambda: len(federation.rows(job)) == 1, "the round without it")
    runs = ("client", "runs")
    assert main([*runs, "pending", "--home", str(home.path), "--json"]) == 0
    (waiting,) = json.loads(capsys.readouterr().out)
    assert main([*runs, "approve", waiting["run_id"], "--plan", waiting["plan_sha256"], "--home", str(home.path)]) == 0
    hold.unlink()
    assert federation.finished(job).state.value == "finished"
    first, *_, last = federation.rows(job)
    assert {client["client"]: client["state"] for client in first["clients"]}["ward-d"] == "later"
    assert (first["devices_survived"], last["devices_survived"]) == (3, 4)
    capsys.readouterr()
    assert main([*runs, "ls", "--home", str(home.path), "--json"]) == 0
    mine = json.loads(capsys.readouterr().out)[-1]
    assert (mine["decision"]["answer"], mine["left"]["last_round"]) == ("approved", 3)
    assert mine["left"]["rounds"] == sum(
        client["state"] == "summed" for row in federation.rows(job) for client in row["clients"]
        if client["client"] == "ward-d"
    )  # fmt: skip
    federation.kill("ward-d")
    home.site.write_text(before)
    federation.device("ward-d")
    federation.until(lambda: federation.online() >= set(NAMES), "the device")


@pytest.mark.slow
def test_a_device_at_rest_is_small_and_takes_part_in_the_next_run(federation: ToyFederation) -> None:
    home = DeviceHome(federation.path / "ward-d")
    federation.kill("ward-d")
    home.site.write_text(Site(data=SiteData(source="none.jsonl"), limits=SiteLimits(rest_after_s=1.0)).to_toml())
    agent = psutil.Process(federation.device("ward-d", forked=False).pid)
    assert federation.finished(federation.submit(rounds=1)).state.value == "finished"
    federation.until(lambda: not agent.children(), "the training process to rest")
    assert agent.memory_info().rss <= 120 * 2**20
    again = federation.submit(rounds=1)
    assert federation.finished(again).state.value == "finished"
    assert [row["devices_survived"] for row in federation.rows(again)] == [4, 4]


def test_a_round_that_asks_more_devices_than_it_needs_does_not_wait_for_the_slowest(federation: ToyFederation) -> None:
    home = federation.path / "ward-b"
    (home / "hold").touch()
    job = federation.submit(rounds=1, more="fraction = 0.75\nover_select = 0.4")
    federation.until((home / "fitting").exists, "training")
    federation.until(lambda: len(federation.rows(job)) == 1, "the round without it", 30.0)
    (home / "hold").unlink()
    assert federation.finished(job).state.value == "finished"
    np.testing.assert_allclose(federation.trained(job), [1 / 3, 0.0, 1 / 3, 1 / 3], atol=1e-5)
    first, last = federation.rows(job)
    assert {client["client"]: client["state"] for client in first["clients"]}["ward-b"] == "not_needed"
    assert (first["devices_survived"], last["devices_survived"]) == (3, 4)


def test_a_device_whose_update_is_not_finite_is_left_out_and_the_others_commit(federation: ToyFederation) -> None:
    spoiled = federation.path / "ward-d" / "nan"
    spoiled.touch()
    job = federation.finished(federation.submit(rounds=1))
    spoiled.unlink()
    assert job.state.value == "finished"
    np.testing.assert_allclose(federation.trained(job), [1 / 3, 1 / 3, 1 / 3, 0.0], atol=1e-5)
    (first, _) = federation.rows(job)
    reasons = {client["client"]: client["reason"] for client in first["clients"]}
    assert reasons["ward-d"] == "unable", "the cause is in its own log"
    assert "not finite" in (federation.path / "ward-d" / "troubles.jsonl").read_text()


def test_a_revoked_device_ends_with_the_reason_and_the_run_goes_on_without_it(federation: ToyFederation) -> None:
    hold = federation.path / "ward-d" / "hold"
    hold.touch()
    job = federation.submit(rounds=1)
    federation.until((federation.path / "ward-d" / "fitting").exists, "training")
    federation.revoke("ward-d", "laptop stolen")
    assert federation.finished(job).state.value == "finished"
    np.testing.assert_allclose(federation.trained(job), [1 / 3, 1 / 3, 1 / 3, 0.0], atol=1e-5)
    assert federation.processes["ward-d"].wait(40) == 4
    assert "laptop stolen" in federation.log("ward-d")


def test_sigterm_ends_everybody_in_order(federation: ToyFederation) -> None:
    for name in ("ward-a", "coordinator"):
        federation.processes[name].send_signal(signal.SIGTERM)
        assert federation.processes[name].wait(40) == 0, federation.log(name)
    assert federation.audited()[-1] == "coordinator-stopped"
