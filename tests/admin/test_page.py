"""The page in a real headless Chromium: signing in, deciding, watching; by keyboard, narrow, dark, and under attack."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from administration import Port, close, open_port, row, run_of

from fedpeft_server.enrolment.registry import Status

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCREENSHOTS = os.environ.get("FEDPEFT_SCREENSHOTS", "")
"""A folder to leave pictures in, for a person to look at."""
EVIL = '<img src=x onerror="window.hacked=1">'
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FOCUSED = """(() => {
  const one = document.activeElement;
  return one.innerText || one.getAttribute("aria-label") || one.id;
})()"""
ATTACK = """
<form id=f method=post enctype="text/plain" action="URL/v1/devices/ward-a/revoke">
<input name='{"reason":"' value='"}'></form>
<iframe src="URL/"></iframe>
<script>
const refused = () => "refused";
window.done = Promise.all([
  fetch("URL/v1/join-tokens", {method: "POST", credentials: "include", body: "{}"}).then(r => r.status, refused),
  fetch("URL/v1/devices", {credentials: "include"}).then(r => r.text(), refused),
]);
</script>
"""
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """A coordinator with something to see: hostile names where a device or a submitter can bring some in."""
    made = open_port(tmp_path_factory.mktemp("home") / "coordinator")
    made.device("ward-a", Status.ACTIVE)
    made.device("ward-b", Status.ACTIVE, organisation=EVIL)
    made.device("ward-c", reason=f"</td><script>window.hacked=1</script>{EVIL}")
    made.live["devices"] = [
        {"name": "ward-a", "status": "active", "online": True},
        {"name": "ward-b", "status": "active", "online": False},
        {"name": "ward-c", "status": "pending", "online": False},
    ]
    made.live["now"] = f"run 1 round 3: ward-b failed: {EVIL}"
    number = run_of(made, rounds=12)
    folder = made.site.home.runs / "20261130-notes"
    spent = {"bytes_up": 1, "bytes_down": 1, "seconds": 1.0}
    lost = {"client": EVIL, "methods": "x", "state": "dropped", "reason": EVIL, **spent}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(13, clients=[lost], burnt=f"burnt {EVIL}")) + "\n")
    job = made.site.queue.job(number)
    made.site.queue.put(type(job)(number=job.number, name=job.name, state=job.state, run=job.run, reason=EVIL))
    yield made
    close(made)


def opened(browser: Any, port: Port, **context: Any) -> tuple[Page, list[str]]:
    """The page before signing in, and what its console complains of."""
    made = browser.new_context(ignore_https_errors=True, **context)
    page, complaints = made.new_page(), []
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(port.url)
    page.get_by_label("Access token").wait_for()
    return page, complaints


def signed_in(browser: Any, port: Port, role: str = "admin", **context: Any) -> tuple[Page, list[str]]:
    page, complaints = opened(browser, port, **context)
    page.get_by_label("Access token").fill(port.token(role))
    page.get_by_role("button", name="Sign in").click()
    page.locator("#link", has_text="Live.").wait_for()
    page.locator("#device-rows tr").first.wait_for()
    return page, complaints


def picture(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def test_the_page_is_whole_legible_and_for_everybody(browser, shown) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # axe brings a script of its own; what the policy keeps out is the subject of other tests.
    page, complaints = signed_in(browser, shown, bypass_csp=True)
    page.get_by_role("button", name="Show run 1").click()
    page.get_by_role("img", name="Loss: 2.000 in round 1").wait_for()
    page.locator("summary").first.click()
    page.locator("#audit-rows td").first.wait_for()
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "dark"), (390, "light")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        picture(page, f"{width}-{scheme}")
        found = Axe().run(page, options={"runOnly": RULES})
        assert found.violations_count == 0, (width, scheme, found.generate_report())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    page.context.close()


def test_text_from_devices_and_runs_is_text_and_the_policy_lets_no_script_in(browser, shown) -> None:
    page, complaints = signed_in(browser, shown)
    page.get_by_role("button", name="Show run 1").click()
    for title in page.locator("summary").all():
        title.click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, section script, iframe").count() == 0
    assert EVIL in page.locator("#run-detail").inner_text()
    assert EVIL in page.locator("#device-rows").inner_text()
    assert complaints == []
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("html => { document.body.innerHTML = html }", EVIL)
    with pytest.raises(playwright.Error, match="TrustedScript"):
        page.evaluate("document.createElement('script').textContent = 'window.hacked=1'")
    assert page.evaluate("window.hacked") is None
    page.context.close()


def test_the_token_stays_nowhere_and_no_script_sees_the_cookie(browser, shown) -> None:
    page, _ = signed_in(browser, shown)
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
    assert page.get_by_label("Access token").input_value() == ""
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (
        "__Host-fedpeft", True, True, "Strict",
    )  # fmt: skip
    page.reload()
    page.locator("#link", has_text="Live.").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Access token").wait_for()
    assert page.context.cookies() == []
    assert "ward-a" not in page.content()
    page.context.close()


def test_everything_is_done_by_keyboard_alone(browser, fresh) -> None:
    fresh.device("ward-k", Status.ACTIVE)
    page, complaints = opened(browser, fresh)
    page.on("dialog", lambda dialog: dialog.accept())
    page.keyboard.type(fresh.token("admin"))  # the field has the focus
    page.keyboard.press("Enter")
    page.locator("#link", has_text="Live.").wait_for()

    def go_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(FOCUSED)
            if focused == name:
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                return
        pytest.fail(f"no way to {name} by Tab")

    page.get_by_role("button", name="Revoke").wait_for()
    go_to("Revoke")
    page.keyboard.press("Enter")
    page.locator("#message", has_text="ward-k is out").wait_for()
    go_to("organisation")
    page.keyboard.type("clinic")
    page.keyboard.press("Enter")
    page.locator("#made-token", has_text="fedpeft client join fp1.").wait_for()
    assert fresh.site.registry.device("ward-k").status is Status.REVOKED
    assert complaints == []
    page.context.close()


def test_a_round_is_watched_live_and_a_lost_connection_comes_back(browser, tmp_path) -> None:
    port = open_port(tmp_path / "coordinator")
    page, _ = signed_in_without_devices(browser, port)
    port.live["now"] = "run 7 round 1: waiting for ward-z in train.fit"
    page.locator("#doing", has_text="waiting for ward-z").wait_for(timeout=5000)
    number = run_of(port)
    page.get_by_role("button", name=f"Show run {number}").click()
    page.get_by_role("img", name="Loss: 2.000 in round 1, 1.000 in round 2").wait_for()
    with (port.site.home.runs / "20261130-notes" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(3)) + "\n")
    port.live["devices"] = [{"name": "ward-z", "status": "active", "online": True}]
    page.get_by_role("img", name="0.667 in round 3").wait_for(timeout=5000)
    page.context.set_offline(True)
    threading.Event().wait(0.1)
    page.context.set_offline(False)
    port.live["now"] = "all is well"
    page.locator("#doing", has_text="all is well").wait_for(timeout=10000)
    page.context.close()
    close(port)


def signed_in_without_devices(browser: Any, port: Port) -> tuple[Page, list[str]]:
    page, complaints = opened(browser, port)
    page.get_by_label("Access token").fill(port.token("viewer"))
    page.get_by_role("button", name="Sign in").click()
    page.locator("#link", has_text="Live.").wait_for()
    return page, complaints


def test_another_sites_page_can_do_nothing_with_a_signed_in_browser(browser, shown, tmp_path) -> None:
    page, _ = signed_in(browser, shown)
    before = len(shown.audited())
    evil = tmp_path / "evil.html"
    evil.write_text(ATTACK.replace("URL", shown.url))
    other = page.context.new_page()
    other.goto(evil.as_uri())
    assert other.evaluate("window.done") == ["refused", "refused"]
    other.evaluate("document.getElementById('f').submit()")
    other.wait_for_load_state()
    assert "ward-a" in {one.name for one in shown.site.registry.devices(Status.ACTIVE)}
    assert len(shown.audited()) == before
    page.context.close()


def test_a_viewer_is_shown_what_a_viewer_may_do(browser, shown) -> None:
    page, complaints = signed_in(browser, shown, "viewer")
    names = {button.inner_text() for button in page.get_by_role("button").all() if button.is_visible()}
    assert names == {"Sign out", "Show run 1", "Older", "Newest"}
    assert complaints == []
    page.context.close()
