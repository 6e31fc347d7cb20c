"""Several runs at once: real processes, one fleet; a coordinator that is killed goes on with all of them."""

import sys
from pathlib import Path

TOY = Path(__file__).parent / "toy"
sys.path.insert(0, str(TOY))
from federation import RUN, ToyFederation, running  # noqa: E402  the toy processes import each other by these names

from fedpeft_server.jobs.job_queue import Job  # noqa: E402

WARDS = [f"ward-{letter}" for letter in "abcd"]


def submit(federation: ToyFederation, *, rounds: int, priority: int = 0) -> Job:
    text = RUN.format(base="0" * 64, rounds=rounds, least=3, more="")
    return federation.queue.submit(text, source="run.toml", priority=priority)


def test_two_runs_share_their_devices_the_urgent_one_first_and_both_outlive_a_killed_coordinator(
    tmp_path: Path,
) -> None:
    with running(tmp_path, WARDS) as federation:
        patient = submit(federation, rounds=8)
        federation.until(lambda: len(federation.rows(patient)) >= 2, "two rounds of the first run")
        urgent = submit(federation, rounds=4, priority=5)
        federation.until(lambda: len(federation.rows(urgent)) >= 1, "a round of the second run")
        assert {federation.queue.job(str(job.number)).state.value for job in (patient, urgent)} == {"running"}
        federation.kill("coordinator")
        federation.up()
        assert federation.finished(urgent).state.value == "finished"
        assert federation.queue.job(str(patient.number)).state.value == "running"
        assert federation.finished(patient).state.value == "finished"
        for job, rounds in ((patient, 8), (urgent, 4)):  # each round once, with all devices
            rows = federation.rows(job)
            assert [row["round"] for row in rows] == list(range(1, rounds + 2))
            assert [row["burnt"] for row in rows] == [""] * (rounds + 1)
            assert all(row["devices_survived"] == len(WARDS) for row in rows)
