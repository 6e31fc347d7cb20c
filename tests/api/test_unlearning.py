"""``fedpeft.unlearn``: the run without a device is the run that never had it, to the byte; its certificate says so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import fedpeft
from fedpeft.cli import main
from fedpeft.config import RunConfig
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft_server.run.run_view import read_run
from fedpeft_server.run.unlearning import adapter_digests, read_certificate, rounds_with
from tests.api.conftest import Rows, birds, small

pytestmark = [pytest.mark.torch, pytest.mark.e2e]
NAMES = ("east", "mid", "north", "south", "west")


def of_five(without: str = "") -> Rows:
    """South alone knows the class c."""
    rows: Rows = []
    for place, name in enumerate(NAMES):
        own = birds(12 + 2 * place)
        for row in own:
            row["client"], row["text"] = name, f"{name} {row['text']}"
        if name == "south":
            own[0]["label"] = own[1]["label"] = own[2]["label"] = own[3]["label"] = "c"
        rows += own if name != without else []
    return rows


def five(toys: Path, **rounds: object) -> dict[str, object]:
    config = small(toys, **rounds)
    config["data"] = {"partition": {"by": "column", "column": "client"}}
    config["train"] = {"local_steps": 2, "batch_size": 4}
    return config


@pytest.fixture(scope="module")
def with_south(toys: Path) -> fedpeft.Result:
    return fedpeft.simulate(five(toys), of_five(), out=toys / "five", store=toys / "store")


def test_the_run_without_a_device_is_the_run_that_never_had_it(
    with_south: fedpeft.Result, toys: Path, tmp_path: Path
) -> None:
    done = fedpeft.unlearn(with_south, "south", of_five(), out=tmp_path, store=toys / "store")
    labels = {"kind": "classify", "max_length": 16, "labels": ["a", "b", "c"]}
    never = fedpeft.simulate(
        {**five(toys), "task": labels}, of_five(without="south"), out=tmp_path, store=toys / "store"
    )
    assert [row.checkpoint["global.safetensors"] for row in done.result.rounds] == [
        row.checkpoint["global.safetensors"] for row in never.rounds
    ]
    assert adapter_digests(done.result.path) == adapter_digests(never.path) != adapter_digests(with_south.path)
    assert done.result.view.manifest.data_digest == never.view.manifest.data_digest
    kept = read_certificate(done.result.path)
    assert kept == done.certificate
    assert (kept.device, kept.examples, kept.contributed, kept.equality) == ("south", 18, (1, 2, 3), "bytes")
    assert kept.before.adapter == adapter_digests(with_south.path)
    assert kept.after.adapter == adapter_digests(never.path)
    assert any("c." in sentence for sentence in kept.remains if sentence.startswith("Names of outputs"))
    text = (done.result.path / "unlearning.txt").read_text()
    assert "rounds: 1 to 3" in text
    assert kept.after.adapter["adapter_model.safetensors"] in text
    assert main(["runs", "verify", str(done.result.path)]) == 0
    (done.result.path / "unlearning.json").write_text(
        replace(kept, after=replace(kept.after, adapter=kept.before.adapter)).to_json()
    )
    assert main(["runs", "verify", str(done.result.path)]) == IntegrityFailed.exit_code


def test_a_sampled_run_is_drawn_anew_as_without_the_device(toys: Path, tmp_path: Path) -> None:
    sampled = five(toys, fraction=0.6, count=3)
    rows = [row for row in of_five() if row["label"] != "c"]
    run = fedpeft.simulate(sampled, rows, out=tmp_path, store=toys / "store")
    (device, *_) = [name for name in NAMES if 0 < len(rounds_with(run.view, name)) < 4]
    done = fedpeft.unlearn(run, device, rows, out=tmp_path, store=toys / "store")
    without = [row for row in rows if row["client"] != device]
    never = fedpeft.simulate(sampled, without, out=tmp_path, store=toys / "store")
    assert adapter_digests(done.result.path) == adapter_digests(never.path)
    assert done.certificate.contributed == rounds_with(run.view, device)


SLOW = [{"clients": ["east"], "methods": ["lora"], "fit_seconds": 9.0}, {"clients": ["*"], "methods": ["lora"]}]


@pytest.mark.parametrize(
    ("devices", "forgotten", "equality"),
    [([], "south", "time"), (SLOW, "south", "bytes"), (SLOW, "east", "time")],
    ids=["machine's clock", "simulated clock", "the only one with a time"],
)
def test_a_run_that_the_machine_s_clock_decides_is_not_certified_to_the_byte(
    toys: Path, tmp_path: Path, devices: list[dict[str, object]], forgotten: str, equality: str
) -> None:
    eager = five(toys, fraction=0.8, over_select=0.3, count=3) | ({"device": devices} if devices else {})
    rows = [row for row in of_five() if row["label"] != "c"]
    run = fedpeft.simulate(eager, rows, out=tmp_path, store=toys / "store")
    if not rounds_with(run.view, forgotten):
        pytest.fail(f"{forgotten} was in no sum")
    done = fedpeft.unlearn(run, forgotten, rows, out=tmp_path, store=toys / "store")
    assert done.certificate.equality == equality
    assert ("by the clock of this machine" in done.certificate.to_text()) == (equality == "time")
    assert read_certificate(done.result.path) == done.certificate


def test_a_number_that_the_device_alone_has_and_the_configuration_keeps_is_told(toys: Path, tmp_path: Path) -> None:
    """The range was taken from the data of all."""
    rows: Rows = [{**row, "label": float(i % 4)} for i, row in enumerate(of_five())]
    next(row for row in rows if row["client"] == "south")["label"] = 17.5
    config = five(toys) | {"task": {"kind": "regression", "max_length": 16}}
    run = fedpeft.simulate(config, rows, out=tmp_path, store=toys / "store")
    told = {
        device: [
            one
            for one in fedpeft.unlearn(run, device, rows, out=tmp_path, store=toys / "store").certificate.remains
            if "range" in one
        ]
        for device in ("south", "west")
    }
    assert told == {"south": ["Ends of task.range that south alone reaches, in the configuration: 17.5."], "west": []}


def test_the_command_makes_it_of_a_file_and_resumes_what_was_killed(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in of_five()))
    common = {"out": tmp_path / "runs", "store": toys / "store"}
    run = fedpeft.simulate(five(toys), str(data), **common)
    asked = ["unlearn", str(run.path), "--device", "west", "--store", str(toys / "store"), "-q"]
    config = run.view.config()
    partition = config.data.partition.model_copy(update={"without": ("west",)})
    begun = _interrupted(
        config.model_copy(update={"data": config.data.model_copy(update={"partition": partition})}), toys
    )
    assert main([*asked, "--resume", str(run.path)]) == ConfigInvalid.exit_code
    assert "other settings" in capsys.readouterr().err
    assert main([*asked, "--resume", str(begun), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    whole = fedpeft.unlearn(run.path, "west", **common)
    assert answer["run"] == str(begun)
    assert answer["after"]["adapter"] == whole.certificate.after.adapter
    assert read_run(begun).state == "finished"


def _interrupted(config: RunConfig, toys: Path) -> Path:
    """The run without west, killed after its first round."""
    from fedpeft.api.simulation import trained
    from fedpeft.config.resolved import resolved

    class Killed:
        def on_round(self, result: fedpeft.RoundResult) -> None:
            raise KeyboardInterrupt

    before = set(config.directory.iterdir())
    with pytest.raises(KeyboardInterrupt):
        trained(config, resolved(config), None, begun=None, callbacks=[Killed()], store=toys / "store", loading="")
    (begun,) = set(config.directory.iterdir()) - before
    assert len(read_run(begun).rounds) == 1
    return begun


def test_what_cannot_be_forgotten_is_refused_with_the_reason(
    with_south: fedpeft.Result, toys: Path, tmp_path: Path
) -> None:
    def refused(device: str, data: object = None, kind: type[Exception] = ConfigInvalid) -> str:
        with pytest.raises(kind) as error:
            fedpeft.unlearn(with_south, device, data, out=tmp_path, store=toys / "store")
        return str(error.value)

    assert "give them as `data`" in refused("south")
    assert "did you mean south?" in refused("soth", of_five())
    assert "restore the data" in refused("south", of_five()[1:], IntegrityFailed)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_would_have_too_few_clients_is_refused(finished: fedpeft.Result, toys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="3 clients or more, found 2"):
        fedpeft.unlearn(finished, "client-1", birds(), out=tmp_path, store=toys / "store")
