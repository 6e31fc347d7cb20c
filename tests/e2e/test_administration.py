"""A federation run from a browser: from an empty home to a finished run with three devices, in a real Chromium."""

import shutil
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.cli import main
from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.planner import REFERENCE
from fedpeft_client.enrolment.join import JoinOptions, join
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site, SiteData
from fedpeft_server.enrolment.audit_log import AuditLog

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from federation import ToyFederation

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
NAMES = ("ward-a", "ward-b", "ward-c")


@pytest.fixture
def federation(tmp_path: Path):
    """A coordinator that is up with an administration port, and no device."""
    made = ToyFederation(tmp_path, forked=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        made.settings = replace(made.settings, admin_port=probe.getsockname()[1])
    made.home.write_settings(made.settings)
    made.up()
    yield made
    made.close()


def applied(federation: ToyFederation, name: str, token: str) -> str:
    """A device that asks to join; the code that it shows."""
    home, shown = DeviceHome(federation.path / name), []
    wishes = JoinOptions(token=token, device=name, organisation=name, bases="", profile=REFERENCE.to_json())
    join(
        home, wishes, clock=SystemClock(), entropy=os_entropy, wait_s=0.0,
        pause=threading.Event().wait, on_waiting=shown.append,
    )  # fmt: skip
    return shown[0]


def admitted(federation: ToyFederation, name: str, token: str) -> None:
    """The same device, after its approval: it gets its certificate, and runs."""
    home = DeviceHome(federation.path / name)
    wishes = JoinOptions(token=token, device=name, organisation=name, bases="", profile=REFERENCE.to_json())
    join(
        home, wishes, clock=SystemClock(), entropy=os_entropy, wait_s=20.0,
        pause=threading.Event().wait, on_waiting=lambda code: None,
    )  # fmt: skip
    home.site.write_text(Site(data=SiteData(source="none.jsonl")).to_toml())
    federation.device(name)


def test_a_federation_is_run_from_a_browser(federation: ToyFederation, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(federation.home.path)
    assert main(["coordinator", "admin-token", "create", "me", "--role", "admin", "--home", home]) == 0
    token = capsys.readouterr().out.split()[-1]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(ignore_https_errors=True, accept_downloads=True).new_page()
        page.set_default_timeout(60_000)
        page.goto(f"https://localhost:{federation.settings.admin_port}/")
        page.get_by_label("Access token").fill(token)
        page.get_by_role("button", name="Sign in").click()

        page.get_by_role("spinbutton", name="Devices").fill("3")
        page.get_by_role("button", name="Make").click()
        word = next(part for part in page.locator("#made-token code").inner_text().split() if part.startswith("fp1."))
        for name in NAMES:
            code = applied(federation, name, word)
            page.get_by_label(f"Code that the owner of {name} reads out").fill(code)
            page.get_by_role("button", name="Approve").click()
            page.locator("#message", has_text=f"{name} is admitted").wait_for()
            admitted(federation, name, word)
        page.locator("#figures", has_text="Devices online3").wait_for()

        job = federation.submit(rounds=3)  # a toy's base is in no store, so the form would refuse it
        page.get_by_role("button", name=f"Show run {job.number}").click()
        page.get_by_role("img", name="Seconds a round").wait_for()
        job = federation.finished(job)
        page.get_by_role("heading", name="(finished)").wait_for()
        page.locator("#run-detail dl", has_text="Rounds4").wait_for()
        with page.expect_download() as saved:
            page.get_by_role("link", name="state.safetensors").click()
        kept = federation.home.runs / job.run / "adapters" / "final" / "state.safetensors"
        assert Path(saved.value.path()).read_bytes() == kept.read_bytes()
        page.get_by_role("button", name="Newest").click()
        page.locator("#audit-rows", has_text="result-fetched").wait_for()
        browser.close()
    np.testing.assert_allclose(federation.trained(job)[:3], np.full(3, 3 / 3), atol=1e-5)
    records = AuditLog(federation.home.audit, SystemClock()).records()
    by = {one.event.value for one in records if one.actor.startswith("me (token ")}
    assert by == {"signed-in", "token-created", "approved", "result-fetched"}
