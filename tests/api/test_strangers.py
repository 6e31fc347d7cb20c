"""What somebody tries in a notebook who has read one page: the right result, or an error that says what to write."""

import asyncio
import copy
import functools
import pickle  # noqa: TID251  a user's own
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpeft
from fedpeft.api.callbacks import expect_callbacks
from fedpeft.api.configuration import configured, inline
from fedpeft.data.memory import rows_of
from fedpeft_server.run.run_view import read_run
from tests.api.conftest import birds, small

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

CONFIG: dict[str, Any] = {"base": {"model": "x"}, "task": {"kind": "classify"}}


class OnRound:
    """A callback, if one makes an object of it."""

    def on_round(self, result: fedpeft.RoundResult) -> None:
        """Nothing."""


class OnRoundLater:
    """A callback that nothing awaits."""

    async def on_round(self, result: fedpeft.RoundResult) -> None:
        """Nothing."""


class CalledLater:
    """A function that nothing awaits."""

    async def __call__(self, result: fedpeft.RoundResult) -> None:
        """Nothing."""


async def later(result: fedpeft.RoundResult) -> None:
    """Nothing."""


def frame(**columns: list[object]) -> object:
    return pytest.importorskip("pandas").DataFrame(columns)


def twice_the_same_column() -> object:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame([["a", "b", "c"]], columns=["text", "text", "label"])


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a number as config": (lambda: fedpeft.simulate(3, birds()), "Expected a run.toml, a dictionary"),  # type: ignore[arg-type]
    "no config": (lambda: fedpeft.simulate(data=birds()), "Expected a config, or a run to resume"),
    "a config that is not there": (lambda: fedpeft.simulate("nowhere.toml"), "nowhere.toml"),
    "a section that is a number": (lambda: fedpeft.simulate({**CONFIG, "rounds": 3}, birds()), "rounds"),
    "a key that there is not": (lambda: fedpeft.simulate({**CONFIG, "round": {"count": 3}}, birds()), "round"),
    "None as a value": (lambda: fedpeft.simulate({**CONFIG, "rounds": {"count": None}}, birds()), "Leave the key out"),
    "nan as a number": (
        lambda: fedpeft.simulate({**CONFIG, "rounds": {"count": float("nan")}}, birds()),
        "rounds.count",
    ),
    "an object as a value": (lambda: fedpeft.simulate({**CONFIG, "run": {"name": object()}}, birds()), "run.name"),
    "an array of models": (lambda: fedpeft.simulate({**CONFIG, "base": {"model": np.zeros(2)}}, birds()), "base.model"),
    "a number as overrides": (lambda: fedpeft.simulate(CONFIG, birds(), overrides=3), "Expected overrides as"),  # type: ignore[arg-type]
    "an override of nothing": (lambda: fedpeft.simulate(CONFIG, birds(), overrides={"rounds.cuont": 1}), "cuont"),
    "a pair as an override": (lambda: fedpeft.simulate(CONFIG, birds(), overrides=[("a", 1)]), "overrides as"),  # type: ignore[list-item]
    "a file that is not there": (lambda: fedpeft.simulate(CONFIG, "none.csv"), "none.csv"),
    "texts alone": (lambda: fedpeft.simulate(CONFIG, ["a", "b"]), "expected a dictionary"),
    "a dictionary of columns": (lambda: fedpeft.simulate(CONFIG, {"text": ["a"], "label": ["b"]}), "a dictionary"),
    "a path for each client": (lambda: fedpeft.simulate(CONFIG, {"north": "north.csv"}), "found str"),
    "clients of one name": (
        lambda: fedpeft.simulate(CONFIG, {"St. A": birds(20), "st a": birds(20), "b": birds(20)}),
        "differ in letters or digits",
    ),
    "no rows": (lambda: fedpeft.simulate(CONFIG, iter(())), "at least one example"),
    "a frame of other columns": (lambda: fedpeft.simulate(CONFIG, frame(note=["a"], dx=["b"])), "text"),
    "a frame with a column twice": (lambda: fedpeft.simulate(CONFIG, twice_the_same_column()), "text more than once"),
    "a function as callbacks": (lambda: fedpeft.simulate(CONFIG, birds(), callbacks=print), r"a list, \[f\]"),  # type: ignore[arg-type]
    "a class as a callback": (lambda: fedpeft.simulate(CONFIG, birds(), callbacks=[OnRound]), r"make one: OnRound\(\)"),
    "a number as a callback": (lambda: fedpeft.simulate(CONFIG, birds(), callbacks=[3]), "with on_round"),  # type: ignore[list-item]
    "an async function as a callback": (lambda: fedpeft.simulate(CONFIG, birds(), callbacks=[later]), "nothing awaits"),
    "a partial of an async function": (
        lambda: fedpeft.simulate(CONFIG, birds(), callbacks=[functools.partial(later)]),
        "nothing awaits",
    ),
    "an async method as a callback": (
        lambda: fedpeft.simulate(CONFIG, birds(), callbacks=[OnRoundLater()]),
        "nothing awaits",
    ),
    "an async object as a callback": (
        lambda: fedpeft.simulate(CONFIG, birds(), callbacks=[CalledLater()]),
        "nothing awaits",
    ),
    "a word as progress": (lambda: fedpeft.simulate(CONFIG, birds(), progress="bar"), "as progress"),  # type: ignore[arg-type]
    "None as a run": (lambda: fedpeft.load_adapter(None), "Expected a run directory, found None"),  # type: ignore[arg-type]
    "latest as a run": (lambda: fedpeft.open_run("latest"), "found none at latest"),
    "a folder that is no run": (lambda: fedpeft.open_run(Path(__file__).parent), "manifest.json"),
    "a number as data": (lambda: fedpeft.data_check(3), "found int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_what_to_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    attempt, said = REFUSED[name]
    with pytest.raises(fedpeft.FedpeftError, match=said) as refused:
        attempt()
    assert refused.value.exit_code in (3, 6)
    assert list(tmp_path.glob("runs/*")) == [], "nothing was begun"


def test_numbers_arrays_paths_and_sets_are_what_they_hold() -> None:
    given = {"clients": np.int64(3), "alpha": np.float32(0.5), "names": np.array(["a", "b"]), "all": np.bool_(True)}
    assert inline(given, "x") == '{clients = 3, alpha = 0.5, names = ["a", "b"], all = true}'
    assert inline({"b", "a", "c"}, "x") == '["a", "b", "c"]', "a set has another order in each process"
    given = {**CONFIG, "data": {"source": "n.csv", "partition": {"by": "iid", "clients": np.int64(5)}}}
    config, _ = configured({**given, "rounds": {"count": np.int64(7)}}, {"rounds": {"min_devices": 4}})
    assert (config.rounds.count, config.rounds.min_devices) == (7, 4), "a section changes by what it names"
    assert CONFIG == {"base": {"model": "x"}, "task": {"kind": "classify"}}


def test_callbacks_are_functions_methods_and_objects() -> None:
    heard: list[object] = []
    expect_callbacks([heard.append, lambda _: None, OnRound(), OnRound().on_round])
    expect_callbacks(())


def test_rows_of_a_frame_keep_their_meaning_whatever_its_index() -> None:
    pandas = pytest.importorskip("pandas")
    made = pandas.DataFrame({"text": ["a", "b", None], "label": pandas.Categorical(["x", "y", "x"])}, index=[7, 7, 9])
    from fedpeft.data.records import ProblemLog

    rows = [dict(row) for _, row in rows_of(made).numbered(ProblemLog())]
    assert rows == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": None, "label": "x"}]


def test_a_result_is_copied_pickled_and_taken_wherever_a_run_directory_is(finished: fedpeft.Result, toys: Path) -> None:
    again = pickle.loads(pickle.dumps(finished))  # noqa: S301  of this process
    assert (copy.deepcopy(finished), again) == (finished, finished)
    assert fedpeft.open_run(finished) == finished
    model = fedpeft.load_adapter(finished, store=toys / "store")
    assert model.predict([]) == []
    assert (
        model.predict("the red bird") == model.predict(("the red bird",)) == model.predict(np.array(["the red bird"]))
    )
    with pytest.raises(fedpeft.FedpeftError, match="Expected texts, found None at 1"):
        model.predict(["a", None])  # type: ignore[list-item]
    for given in ({"text": "the red bird"}, {"text": ["the red bird"]}, 3, None, frame(text=["the red bird"])):
        with pytest.raises(fedpeft.FedpeftError, match=r"Expected a list of texts, found \w+; .*rows\[\"text\"\]"):
            model.predict(given)  # type: ignore[arg-type]
    with pytest.raises(fedpeft.FedpeftError, match="label"):
        model.evaluate([{"text": "the red bird"}])


def test_from_a_running_event_loop_and_a_thread_at_once_the_run_is_the_same(
    finished: fedpeft.Result, toys: Path, tmp_path: Path
) -> None:
    made: list[fedpeft.Result] = []

    def simulated() -> None:
        made.append(fedpeft.simulate(small(toys), birds(), out=tmp_path, store=toys / "store"))

    async def cell() -> None:
        simulated()

    thread = threading.Thread(target=simulated)
    thread.start()
    asyncio.run(cell())
    thread.join()
    assert [one.state for one in made] == ["finished"] * 2
    checkpoint = read_run(finished.path).rounds[-1].checkpoint
    assert [one.rounds[-1].checkpoint for one in made] == [checkpoint] * 2
    assert made[0].path != made[1].path


def test_a_cell_that_is_interrupted_leaves_a_run_that_goes_on_with_a_run_inside_a_run(
    finished: fedpeft.Result, toys: Path, tmp_path: Path
) -> None:
    inner: list[fedpeft.Result] = []

    def interrupts(result: fedpeft.RoundResult) -> None:
        if result.round == 1:
            raise KeyboardInterrupt

    def nests(result: fedpeft.RoundResult) -> None:
        if result.final:
            inner.append(fedpeft.open_run(result.run))

    with pytest.raises(KeyboardInterrupt):
        fedpeft.simulate(small(toys), birds(), callbacks=[interrupts], out=tmp_path, store=toys / "store")
    (path,) = tmp_path.iterdir()
    assert fedpeft.open_run(path).state == "interrupted"
    resumed = fedpeft.simulate(resume=path, data=birds(), callbacks=[nests], store=toys / "store")
    assert resumed.rounds[-1].checkpoint == finished.rounds[-1].checkpoint
    assert [one.path for one in inner] == [path]
