"""Late work in a deployment: a device that trains through several rounds is in a later sum with what it trained."""

import sys
from pathlib import Path

TOY = Path(__file__).parent / "toy"
sys.path.insert(0, str(TOY))
from federation import RUN, running  # noqa: E402  the toy processes import each other by these names

WARDS = [f"ward-{letter}" for letter in "abcd"]
LATE = "fraction = 0.75\nover_select = 1.0\nmax_staleness = 60"


def test_a_device_that_trains_through_several_rounds_is_in_a_later_sum(tmp_path: Path) -> None:
    with running(tmp_path, WARDS) as federation:
        hold = tmp_path / "ward-d" / "hold"
        hold.touch()
        text = RUN.format(base="0" * 64, rounds=40, least=3, more=LATE)
        job = federation.queue.submit(text.replace('"uniform"', '"examples"'), source="run.toml")
        federation.until(lambda: len(federation.rows(job)) >= 3, "three rounds without it")
        hold.write_text("0")
        hold.unlink()
        assert federation.finished(job).state.value == "finished"
        rows = federation.rows(job)
        heard = [
            row["round"]
            for row in rows[:40]
            for one in row["clients"]
            if one["client"] == "ward-d" and one["state"] == "summed"
        ]
        assert heard, "never heard"
        assert heard[0] > 3
        first = rows[heard[0] - 1]
        assert first["devices_survived"] == 3
        assert rows[1]["evaluators"] == 3
        assert first["evaluators"] == 0, "its own is of an older state, and two are too few to be opened"
        assert [row["burnt"] for row in rows] == [""] * 41
