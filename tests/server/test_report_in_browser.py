"""The report in a real headless Chromium, wide and narrow, by day and by night: legible, whole, a chart on top."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.config import parse
from fedpeft.ids import RoundId
from fedpeft_server.report.page import write_report
from fedpeft_server.run.client_scores import ClientScores, scores_folder
from fedpeft_server.run.records import ClientRound, ClientScore, Comparison, RoundMetrics, Summary
from fedpeft_server.run.run_directory import RunDirectory

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
FIRST_CHART = "document.querySelector('.charts svg').getBoundingClientRect().top"
SOURCE = """
[run]
name = "many"
[base]
model = "pypi:some-model"
[task]
kind = "classify"
labels = ["a class with a long name", "b", "c"]
[data]
source = "x.jsonl"
partition = {by = "column", column = "site"}
[adapter]
lora = {rank = 4}
[rounds]
count = ROUNDS
"""


def recorded(parent: Path, *, clients: int, rounds: int) -> Path:
    """A finished run of so many clients, a tenth of which is lost in each round, with all that a report can show."""
    source = SOURCE.replace("ROUNDS", str(rounds))
    config = parse(source, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    command = ("fedpeft", "simulate", "run.toml", "--out", "a folder whose path is longer than a phone is wide/runs")
    names = [f"site-{i}" for i in range(clients)]
    with RunDirectory.create(
        config, source=source, adapter=AdapterSpec(blocks=()), base_digest="sha256:b", command=command
    ) as run:
        scores = [ClientScores(scores_folder(run.path), name) for name in names]
        for number in range(1, rounds + 2):
            lost = [i % 10 == number % 10 for i in range(clients)]
            parts = tuple(
                ClientRound(
                    client=name, methods="lora r4 + bitfit", state="dropped" if gone else "summed",
                    reason="no answer within 120 s" if gone else "", bytes_up=47_000, bytes_down=141_000, seconds=1.0,
                )
                for name, gone in zip(names, lost, strict=True)
            )  # fmt: skip
            for i, kept in enumerate(scores):
                share = (i + number) / (clients + rounds + 1)
                kept.add(ClientScore(round=number, loss=2 - share, accuracy=share, examples=9))
            row = RoundMetrics(
                round=number, loss=1 / number, accuracy=1 - 1 / (number + 1), evaluators=clients,
                metrics={"f1_macro": 0.5}, devices_invited=clients, devices_ready=clients,
                devices_survived=clients - sum(lost), bytes_up=10**6, bytes_down=10**7, seconds=3.0, clients=parts,
            )  # fmt: skip
            run.commit(RoundId(number), b"", {}, row)
        compared = tuple(
            Comparison(
                client=name, examples=9, alone=0.4, everywhere=0.3, federated=i / clients, centralised=0.9
            )
            for i, name in enumerate([*names, "all"])
        )  # fmt: skip
        run.write_summary(
            Summary(
                outcome="finished", rounds=rounds, seconds=3.0, bytes_up=1, bytes_down=1, comparison=compared,
                bytes_full_parameters=10**9, confusion=((900, 20, 3), (7, 800, 1), (0, 5, 0)),
            )
        )  # fmt: skip
        return write_report(run.path)


def looked_at(browser: Any, report: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True)
    page.goto(report.as_uri())
    found = Axe().run(page, options={"runOnly": RULES})
    assert found.violations_count == 0, (report, width, scheme, found.generate_report())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FIRST_CHART) < 844 - 120, "most of the first chart is on the first screen"
    page.close()


def test_the_report_is_legible_and_whole_for_everybody_and_begins_with_a_chart(tmp_path: Path) -> None:
    few = recorded(tmp_path / "few", clients=6, rounds=3)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "dark"), (390, "light")):
            looked_at(browser, few, width, scheme)
        looked_at(browser, recorded(tmp_path / "many", clients=120, rounds=3), 390, "light")
        browser.close()


@pytest.mark.slow
def test_five_hundred_clients_and_a_hundred_rounds_are_one_megabyte_at_most(tmp_path: Path) -> None:
    report = recorded(tmp_path, clients=500, rounds=100)
    assert report.stat().st_size <= 1_000_000
    assert "The first 500 of 5 050 losses; metrics.jsonl has all of them." in report.read_text().replace("\u202f", " ")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width in (1280, 390):
            looked_at(browser, report, width, "light")
        browser.close()
