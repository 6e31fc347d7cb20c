"""Of its last runs a device forgets nothing, in whatever order their rounds come, and wherever its process ends."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpeft.round.device.last_runs import ASIDE, LastRuns
from fedpeft.round.device.records import RunPin

NOTHING = RunPin(run_id="", plan=b"", first=b"")
RUNS = LastRuns(at_hand="pin", aside="pin-of", index="pins-aside", nothing=NOTHING)


class Killed(Exception):
    """The process ends at a write."""


class MortalStore:
    """``DeviceStore`` whose process ends at its ``lives``-th write from now; None: at none."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lives: int | None = None

    def read(self, key: str) -> bytes | None:
        return self.values.get(key)

    def write(self, key: str, value: bytes) -> None:
        if self.lives is not None:
            if not self.lives:
                raise Killed
            self.lives -= 1
        self.values[key] = value


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 4)), max_size=40))
@example([(run, None) for run in "bacdab"])  # the run that comes back took the place of another
@settings(max_examples=60)
def test_a_run_is_remembered_until_more_others_than_a_few_came_in_between(rounds: list[tuple[str, int | None]]) -> None:
    store, last, order = MortalStore(), dict[str, int](), list[str]()
    for number, (run, lives) in enumerate(rounds, 1):
        record = RunPin(run_id=run, plan=b"", first=b"", round_id=number)
        store.lives = lives
        try:
            RUNS.keep(store, record)
        except Killed:  # what was kept is as it was, of all that would have been left
            for other in order[-ASIDE - 1 :]:
                found = RUNS.of(store, other)
                gone = run not in order[-ASIDE - 1 :] and other == order[-ASIDE - 1 :][0]
                assert gone or (found is not None and found.round_id == last[other])
        store.lives = None
        RUNS.keep(store, record)  # the round is asked again
        last[run] = number
        order = [*(other for other in order if other != run), run]
        for other in order[-ASIDE - 1 :]:
            found = RUNS.of(store, other)
            assert found is not None
            assert found.round_id == last[other]
        for other in order[: -ASIDE - 1]:
            assert RUNS.of(store, other) is None, "the memory is bounded"
    assert RUNS.of(store, "") is None
