"""A device behind a bad network: rows 4, 5, 6, 8, 10 and 24 of the fault table.

While it trains its connection to the coordinator goes bad, and gets better again before the deadline. Whatever was
lost, late, repeated or garbled, it is in the round, and once: its coordinate has moved by exactly as much as others'.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from federation import ToyFederation
from proxy import FaultProxy

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NAMES = ("ward-a", "ward-b", "ward-c", "ward-d")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ToyFederation, FaultProxy]]:
    """Four devices, the first behind the proxy."""
    made = ToyFederation(tmp_path_factory.mktemp("network"), forked=True)
    proxy = FaultProxy(made.settings.fleet_port)
    try:
        made.up()
        home = made.enrol(NAMES[0])
        home.write_enrolment(replace(home.enrolment(), fleet_port=proxy.port))
        made.device(NAMES[0])
        made.admit(NAMES[1:])
        made.until(lambda: made.online() == set(NAMES), "the device behind the proxy")
        yield made, proxy
    finally:
        made.close()


@pytest.mark.parametrize("trouble", ["cut", "delay", "deaf", "truncate", "duplicate", "corrupt"])
def test_a_device_whose_network_heals_in_time_is_in_the_round_once(
    network: tuple[ToyFederation, FaultProxy], trouble: str
) -> None:
    federation, proxy = network
    home = federation.path / NAMES[0]
    (home / "hold").touch()
    job = federation.submit(rounds=2)
    federation.until((home / "fitting").exists, "training")
    proxy.troubled, proxy.trouble = 0, trouble
    (home / "hold").unlink()
    federation.until(lambda: proxy.troubled >= 2, "the trouble to be noticed")
    federation.until(lambda: not (home / "fitting").exists(), "the end of training")
    if trouble != "delay":  # late is not lost: the run may go on as it is
        proxy.trouble = "none"
    ended = federation.finished(job, within_s=120.0)
    proxy.trouble = "none"
    assert (ended.state.value, ended.reason) == ("finished", "")
    np.testing.assert_allclose(federation.trained(job), np.full(4, 2 / 4), atol=1e-5)
    assert [row["devices_survived"] for row in federation.rows(job)] == [4, 4, 4]


def test_a_device_that_is_cut_off_past_the_deadline_is_missed_and_comes_back(
    network: tuple[ToyFederation, FaultProxy],
) -> None:
    federation, proxy = network
    home = federation.path / NAMES[0]
    (home / "hold").touch()
    job = federation.submit(rounds=2)
    federation.until((home / "fitting").exists, "training")
    proxy.trouble = "cut"
    (home / "hold").unlink()
    federation.until(lambda: len(federation.rows(job)) == 1, "the round without it")
    proxy.trouble = "none"
    assert federation.finished(job, within_s=120.0).state.value == "finished"
    first, *_ = federation.rows(job)
    lost = {client["client"]: client["state"] for client in first["clients"] if client["state"] != "summed"}
    assert lost == {NAMES[0]: "dropped"}
    moved = federation.trained(job)
    np.testing.assert_allclose(moved[1:], moved[1], atol=1e-5)
    assert moved[0] == pytest.approx(1 / 4, abs=1e-5) or moved[0] == pytest.approx(0, abs=1e-5)
