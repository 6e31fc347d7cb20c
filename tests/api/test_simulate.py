"""``fedpeft.simulate``: the command line's run, from rows that a program holds."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

import fedpeft
from fedpeft.cli import main
from fedpeft.config import load, parse
from fedpeft_server.run.run_view import read_run
from tests.api.conftest import Rows, birds, small

pytestmark = [pytest.mark.torch, pytest.mark.e2e]


def adapter_digests(run: Path) -> dict[str, str]:
    return read_run(run).rounds[-1].checkpoint


def test_a_run_gives_a_row_a_round_an_adapter_and_a_report(finished: fedpeft.Result) -> None:
    assert [row["round"] for row in finished.metrics] == [1, 2, 3]
    assert finished.state == "finished"
    assert (finished.adapter / "adapter_model.safetensors").is_file()
    assert finished.report().is_file()
    assert finished.frame().loc[2, "loss"] == finished.metrics[1]["loss"]
    assert "finished" in repr(finished)
    assert finished._repr_html_().count("<tr>") == 4


def test_every_round_has_the_metrics_of_its_task(finished: fedpeft.Result) -> None:
    """They come through the secure sum; zeros in it would leave none."""
    for row in finished.view.rounds:
        assert 0.0 < row.metrics["f1_macro"] <= 1.0


def test_the_command_line_makes_the_same_adapter_of_the_same_rows_in_a_file(
    finished: fedpeft.Result, toys: Path, tmp_path: Path
) -> None:
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in birds()))
    line = ["simulate", str(finished.path / "run.toml"), "--data", str(tmp_path / "birds.jsonl"), "--no-baselines"]
    assert main([*line, "--out", str(tmp_path / "runs"), "--store", str(toys / "store"), "-q"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert adapter_digests(run) == adapter_digests(finished.path)
    assert read_run(run).manifest.data_digest == finished.view.manifest.data_digest


def as_frame(rows: Rows) -> object:
    return pytest.importorskip("pandas").DataFrame(rows)


def as_dataset(rows: Rows) -> object:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_list(rows, features=features)


def as_splits(rows: Rows) -> object:
    datasets = pytest.importorskip("datasets")
    return datasets.DatasetDict({"train": as_dataset(rows), "test": as_dataset(rows[:2])})


@pytest.mark.parametrize("form", [as_frame, as_dataset, as_splits, iter, tuple], ids=lambda form: form.__name__)
def test_every_form_of_the_same_rows_is_the_same_data(
    form: Callable[[Rows], object], finished: fedpeft.Result, toys: Path
) -> None:
    from fedpeft.api.simulation import given_data
    from fedpeft_sim.population import populate

    rows, changes = given_data(form(birds()))
    config = parse(read_run(finished.path).source, source="run.toml", overrides=changes, simulation=True)
    assert populate(config, rows).digest() == finished.view.manifest.data_digest


def test_a_dictionary_makes_each_key_one_client(toys: Path, tmp_path: Path) -> None:
    heard: list[fedpeft.RoundResult] = []
    parts = {"north": birds(24), "South": as_frame(birds(24)), "west": iter(birds(24))}
    result = fedpeft.simulate(
        small(toys), parts, callbacks=[heard.append], overrides={"rounds.count": 1}, out=tmp_path, store=toys / "store"
    )
    assert [client.client for client in result.rounds[0].clients] == ["north", "south", "west"]
    assert [(one.round, one.rounds, one.final, one.devices) for one in heard] == [(1, 1, False, 3), (2, 1, True, 3)]
    assert heard[0].loss == result.metrics[0]["loss"]
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"the red bird" in content for content in texts), "data in memory stays there"


def test_a_callback_stops_a_run_which_is_then_finished(toys: Path, tmp_path: Path) -> None:
    class Stops:
        def on_round(self, result: fedpeft.RoundResult) -> None:
            if result.round == 1:
                raise fedpeft.StopRun("enough")

    result = fedpeft.simulate(small(toys, count=5), birds(), callbacks=[Stops()], out=tmp_path, store=toys / "store")
    assert (result.state, len(result.metrics)) == ("finished", 1)
    (event,) = [event for event in result.view.events if event.kind == "run.stopped"]
    assert event.detail == {"reason": "enough"}


def test_a_callback_that_fails_ends_the_run_which_is_resumed_with_its_rows(toys: Path, tmp_path: Path) -> None:
    def fails(result: fedpeft.RoundResult) -> None:
        if result.round == 1:
            raise ZeroDivisionError("half of nothing")

    with pytest.raises(fedpeft.FedpeftError, match="callback failed after round 1: ZeroDivisionError: half") as caught:
        fedpeft.simulate(small(toys), birds(), callbacks=[fails], out=tmp_path, store=toys / "store")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    (path,) = tmp_path.iterdir()
    assert fedpeft.open_run(path).state == "failed"
    with pytest.raises(fedpeft.FedpeftError, match="data came from Python"):
        fedpeft.simulate(resume=path, store=toys / "store")
    with pytest.raises(fedpeft.FedpeftError, match="data"):
        fedpeft.simulate(resume=path, data=birds(20), store=toys / "store")
    resumed = fedpeft.simulate(resume=path, data=birds(), store=toys / "store")
    assert (resumed.path, resumed.state, len(resumed.metrics)) == (path, "finished", 3)


def test_nothing_is_printed_unless_asked(toys: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    fedpeft.simulate(small(toys, count=1), birds(), out=tmp_path, store=toys / "store")
    assert capfd.readouterr() == ("", "")
    fedpeft.simulate(small(toys, count=1), birds(), out=tmp_path, store=toys / "store", progress=True)
    assert "3 clients" in capfd.readouterr().err


def test_a_mistake_reads_as_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text('[base]\nmodel = "x"\n[task]\nkind = "clasify"\n[data]\nsource = "n.csv"\n')
    with pytest.raises(fedpeft.FedpeftError) as caught:
        fedpeft.simulate(tmp_path / "run.toml", out=tmp_path)
    assert main(["simulate", str(tmp_path / "run.toml"), "--out", str(tmp_path)]) == caught.value.exit_code == 3
    assert capsys.readouterr().err == f"error: {caught.value}\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text": ["a", "b"], "label": ["x", "y"]}, "expected a dictionary"),
        (["a", "b"], "memory:data:1: expected a dictionary"),
        (3, "found int"),
        ([], "at least one example"),
    ],
    ids=["columns", "texts", "number", "nothing"],
)
def test_data_that_is_no_rows_is_refused_with_what_would_be_right(data: object, said: str, tmp_path: Path) -> None:
    config = {"base": {"model": "x"}, "task": {"kind": "classify"}}
    with pytest.raises(fedpeft.FedpeftError, match=said):
        fedpeft.simulate(config, data, out=tmp_path)


def test_data_in_memory_is_not_for_processes_that_read_files(tmp_path: Path) -> None:
    config = {"base": {"model": "x"}, "task": {"kind": "classify"}, "performance": {"engine": "ray"}}
    with pytest.raises(fedpeft.FedpeftError, match=r"performance\.engine"):
        fedpeft.simulate(config, birds(), out=tmp_path)


def test_overrides_are_those_of_the_command_line() -> None:
    from fedpeft.api.configuration import configured

    config, text = configured("airlines", {"rounds.count": 3, "data.map": {"text": "note"}})
    assert (config.rounds.count, config.data.map) == (3, {"text": "note"})
    assert "count = 24" in text
    again, _ = configured("airlines", ["rounds.count=3"])
    assert again.rounds == config.rounds
    with pytest.raises(fedpeft.FedpeftError, match=r"rounds\.count: expected text, a number"):
        configured("airlines", {"rounds.count": None})


TABLES: dict[str, object] = {
    "base": {"model": "m"},
    "task": {"kind": "classify"},
    "data": {"source": "x.jsonl", "partition": {"by": "dirichlet", "clients": 7, "alpha": 0.3}},
    "rounds": {"count": 9, "fraction": 0.5},
    "adapter": {"lora": {"rank": 8, "scale": 4.0, "dropout": 0.1}},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [("rounds.count", 3), ("data.partition.clients", 9), ("adapter.lora.rank", 4), ("adapter.lora.targets", ["q"])],
)
@pytest.mark.parametrize("dots", list(product((True, False), repeat=2)))
def test_an_override_changes_its_key_alone_however_its_path_is_written(
    path: str, value: object, dots: tuple[bool, ...]
) -> None:
    """Else a table's other keys were back at their defaults, and nobody was told."""
    from fedpeft.api.configuration import configured

    nested = value
    *outer, last = path.split(".")
    for table, dotted in zip(reversed(outer), dots, strict=False):
        nested, last = (nested, f"{table}.{last}") if dotted else ({last: nested}, table)
    expected, _ = configured(TABLES, [f"{path}={json.dumps(value)}"])
    assert configured(TABLES, {last: nested})[0] == expected != configured(TABLES)[0]


@pytest.mark.parametrize(
    "overrides",
    [{"adapter": {}}, {"adapter": {"lora": {}}}, {"data.map": {}}, {"base": {"adapters": {"a b": "runs/x"}}}],
    ids=str,
)
def test_a_table_of_overrides_that_names_no_key_is_refused_with_how_to_replace_it(overrides: dict[str, object]) -> None:
    from fedpeft.api.configuration import configured

    with pytest.raises(fedpeft.FedpeftError, match="give it as text: overrides="):
        configured(TABLES, overrides)


def test_a_dictionary_reads_as_the_file_of_the_same_content(tmp_path: Path) -> None:
    from fedpeft.api.configuration import configured, inline

    document = {
        "run": {"name": "x", "seed": 3},
        "base": {"model": 'a "quoted" \\ path\n', "adapters": {"a b": "é\x7f"}},
        "task": {"kind": "classify", "labels": ("a", "b")},
        "data": {"source": Path("n.csv"), "partition": {"by": "column", "column": "site"}},
        "device": [{"clients": ["*"], "methods": ["lora"], "rank": 8}],
    }
    config, text = configured(document)
    (tmp_path / "run.toml").write_text(text)
    assert load(tmp_path / "run.toml", simulation=True) == config
    assert config.base.model == document["base"]["model"]  # type: ignore[index]
    assert inline(True, "x") == "true"
