"""The device's own record of what went wrong, and what whoever simulates devices sees of it."""

from pathlib import Path

from fedpeft.round.failures import Trouble
from fedpeft.testing.clock import FakeClock
from fedpeft_client.process.troubles import KEPT, LONGEST, TroubleLog


def trouble(number: int, cause: str = "The loss is not finite.") -> Trouble:
    return Trouble(run_id="run#1", round_id=number, cause=cause)


def test_the_newest_troubles_outlive_the_process_for_the_owners_eyes_only(tmp_path: Path) -> None:
    path = tmp_path / "troubles.jsonl"
    assert TroubleLog(path, FakeClock()).entries() == ()
    for number in range(KEPT + 5):
        TroubleLog(path, FakeClock())(trouble(number))
    entries = TroubleLog(path, FakeClock()).entries()
    assert [entry.round_id for entry in entries] == list(range(5, KEPT + 5))
    assert path.stat().st_mode & 0o077 == 0


def test_a_cause_of_several_lines_is_one_entry_and_a_long_one_is_cut(tmp_path: Path) -> None:
    log = TroubleLog(tmp_path / "troubles.jsonl", FakeClock())
    log(trouble(1, "two\nlines"))
    log(trouble(2, "x" * 2 * LONGEST))
    assert [entry.cause for entry in log.entries()] == ["two\nlines", "x" * LONGEST]


def test_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    log = TroubleLog(tmp_path / "troubles.jsonl", FakeClock())
    log(trouble(1))
    with (tmp_path / "troubles.jsonl").open("a") as file:
        file.write('{"at": 1}\n{half')
    log(trouble(2))
    assert [entry.round_id for entry in log.entries()] == [1, 2]


def test_the_operator_of_a_simulation_sees_each_cause_once(tmp_path: Path) -> None:
    from fedpeft_sim.troubles import TroubleWatch, trouble_log

    notes: list[str] = []
    events: list[tuple[str, str, str]] = []

    class Run:
        def record(self, kind: str, *, round_id: int, client: str, detail: dict[str, str]) -> None:
            events.append((kind, client, detail["cause"]))

    trouble_log(tmp_path, "a")(trouble(1, "of an earlier sitting"))
    watch = TroubleWatch(tmp_path, Run(), notes.append)  # type: ignore[arg-type]
    watch.look()
    assert notes == []
    trouble_log(tmp_path, "a")(trouble(2, "no memory"))
    trouble_log(tmp_path, "b")(trouble(2, "unknown label"))
    watch.look()
    watch.look()
    assert notes == ["a in round 2: no memory", "b in round 2: unknown label"]
    assert events == [("device.trouble", "a", "no memory"), ("device.trouble", "b", "unknown label")]


def test_a_simulation_keeps_and_shows_each_traceback_once_and_a_deployed_device_none(tmp_path: Path) -> None:
    from fedpeft_sim.troubles import TroubleWatch, trouble_log

    class Run:
        def record(self, kind: str, **_: object) -> None:
            pass

    spoken: list[str] = []
    failed = Trouble(run_id="run#1", round_id=1, cause="KeyError: 'x'", trace="Traceback\n  x\x1b[2J\nKeyError: 'x'\n")
    TroubleLog(tmp_path / "deployed.jsonl", FakeClock())(failed)
    assert "Traceback" not in (tmp_path / "deployed.jsonl").read_text()
    watch = TroubleWatch(tmp_path / "sim", Run(), spoken.append)  # type: ignore[arg-type]
    for client in ("a", "b"):
        trouble_log(tmp_path / "sim", client)(failed)
    watch.look()
    assert [line.splitlines()[0] for line in spoken] == [
        "a in round 1: KeyError: 'x'",
        "Traceback",
        "b in round 1: KeyError: 'x'",
    ]
    assert "\x1b" not in "".join(spoken)
