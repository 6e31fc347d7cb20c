"""Sites get their model: over the device's certificate, whole and checked, and only whoever may."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.config.schema import template
from fedpeft.deployment.messages import AdapterEntry, AdapterFile
from fedpeft.errors import ConfigInvalid, IntegrityFailed, NotEnrolled, ResourceMissing
from fedpeft.ids import RoundId
from fedpeft_client.connection.fetch_adapter import fetch_adapter, listed_adapters
from fedpeft_client.connection.grpc_client import Link
from fedpeft_client.home import DeviceHome
from fedpeft_server.home import Settings
from fedpeft_server.run.records import ClientRound, RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.service.adapter_files import AdapterFiles

Coordinator = Any  # see conftest.py
WEIGHTS = b"weights" * 300_000  # more than one message


def a_run(folder: Path, devices: dict[str, str], *, slots: tuple[str, ...] = ("final",), name: str = "first") -> str:
    """A run of one round in which these devices ended in these states, with an adapter in each slot."""
    config = parse(template(), source="x", simulation=True)
    config = config.model_copy(update={"directory": folder, "run": config.run.model_copy(update={"name": name})})
    row = RoundMetrics(
        round=1,
        loss=0.5,
        accuracy=0.5,
        evaluators=3,
        devices_invited=3,
        devices_ready=3,
        devices_survived=3,
        bytes_up=1,
        bytes_down=1,
        seconds=1.0,
        clients=tuple(
            ClientRound(client=name, methods="lora", state=state, bytes_up=1, bytes_down=1, seconds=1.0)  # type: ignore[arg-type]
            for name, state in devices.items()
        ),
    )
    spec = AdapterSpec(blocks=())
    with RunDirectory.create(config, source="x", adapter=spec, base_digest="sha256:b", command=()) as run:
        run.commit(RoundId(1), b"state", {}, row)
        for slot in slots:
            run.publish_adapter(slot, partial(_write, slot=slot))  # type: ignore[arg-type]
        return run.path.name


def _write(place: Path, slot: str) -> None:
    (place / "adapter_model.safetensors").write_bytes(WEIGHTS + slot.encode())
    (place / "inspect.json").write_text("{}")


@pytest.fixture(scope="module")
def device(coordinator: Coordinator, tmp_path_factory: pytest.TempPathFactory, enrol: Callable) -> DeviceHome:
    home, _ = enrol(coordinator.token(), "ward-a", home=DeviceHome(tmp_path_factory.mktemp("ward-a")))
    return home


@pytest.fixture
def link(device: DeviceHome) -> Iterator[Link]:
    with Link.of_home(device) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(coordinator: Coordinator) -> str:
    return a_run(coordinator.home.runs, {"ward-a": "summed", "ward-b": "dropped"}, slots=("latest", "best", "final"))


def test_a_participant_fetches_the_final_adapter_once(
    run: str, link: Link, device: DeviceHome, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "adapter", "ls", "--home", str(device.path)]) == 0
    assert f"{run}  final after 1 round " in capsys.readouterr().out
    assert main(["client", "adapter", "pull", "latest", "--home", str(device.path)]) == 0
    folder = device.path / "adapters" / run
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS + b"final"
    (entry,) = [one for one in listed_adapters(link) if one.run_id == run]
    assert fetch_adapter(link, entry, folder) == 0, "it is there"
    (folder / "inspect.json").write_text("[]")
    assert fetch_adapter(link, entry, folder) > len(WEIGHTS), "what was changed here is fetched again"
    capsys.readouterr()
    assert main(["client", "adapter", "ls", "--home", str(device.path), "--json"]) == 0
    assert run in [one["run"] for one in json.loads(capsys.readouterr().out)]


def test_whoever_was_in_no_sum_of_the_run_does_not_hear_of_it(
    coordinator: Coordinator, run: str, tmp_path: Path, enrol: Callable, link: Link
) -> None:
    other, _ = enrol(coordinator.token(), "ward-b", home=DeviceHome(tmp_path / "ward-b"))
    (entry,) = [one for one in listed_adapters(link) if one.run_id == run]
    with Link.of_home(other) as theirs:
        assert listed_adapters(theirs) == ()
        with pytest.raises(ResourceMissing):
            list(theirs.adapter_file(run, entry.files[0]))


def test_a_revoked_device_gets_nothing(coordinator: Coordinator, tmp_path: Path, enrol: Callable) -> None:
    home, _ = enrol(coordinator.token(), "ward-c", home=DeviceHome(tmp_path / "ward-c"))
    a_run(coordinator.home.runs, {"ward-c": "summed"}, name="of-c")
    with Link.of_home(home) as link:
        (entry,) = listed_adapters(link)
        coordinator.admission.revoke("ward-c", "gone")
        with pytest.raises(NotEnrolled):
            list(link.adapter_file(entry.run_id, entry.files[0]))
        with pytest.raises(NotEnrolled):
            listed_adapters(link)


@pytest.mark.parametrize(("access", "of_a", "of_b"), [("participants", 1, 0), ("enrolled", 1, 1), ("nobody", 0, 0)])
def test_the_coordinator_says_who_may(access: str, of_a: int, of_b: int, tmp_path: Path) -> None:
    a_run(tmp_path, {"a": "summed", "b": "dropped"})
    shelf = AdapterFiles(tmp_path, access)  # type: ignore[arg-type]
    assert (len(shelf.listing("a")), len(shelf.listing("b"))) == (of_a, of_b)


def test_a_run_under_way_gives_its_best_and_then_its_latest(tmp_path: Path) -> None:
    a_run(tmp_path / "1", {"a": "summed"}, slots=("latest", "best"))
    a_run(tmp_path / "2", {"a": "summed"}, slots=("latest",))
    a_run(tmp_path / "3", {"a": "summed"}, slots=())
    slots = [[entry.slot for entry in AdapterFiles(tmp_path / name, "participants").listing("a")] for name in "123"]
    assert slots == [["best"], ["latest"], []]


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    whole = a_run(tmp_path, {"a": "summed"}, name="whole")
    broken = a_run(tmp_path, {"a": "summed"}, name="broken")
    (tmp_path / broken / "manifest.json").write_text("{")
    assert [entry.run_id for entry in AdapterFiles(tmp_path, "participants").listing("a")] == [whole]


def test_links_and_other_names_lead_nowhere(tmp_path: Path) -> None:
    run = a_run(tmp_path, {"a": "summed"})
    shelf = AdapterFiles(tmp_path, "participants")
    (entry,) = shelf.listing("a")
    file = entry.files[0]
    assert shelf.open("a", run, file.name, file.sha256, 0) is not None
    assert shelf.open("a", run, "../../run.toml", file.sha256, 0) is None
    assert shelf.open("a", run, file.name, "0" * 64, 0) is None
    assert shelf.open("a", run, file.name, file.sha256, file.size_bytes + 1) is None
    path = tmp_path / run / "adapters" / "final" / file.name
    content = path.read_bytes()
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    path.symlink_to(tmp_path / "elsewhere")
    assert shelf.open("a", run, file.name, file.sha256, 0) is None


class Lying(Link):
    """A coordinator's answers, changed on their way."""

    def __init__(self, entry: AdapterEntry, content: bytes) -> None:
        self._entry, self._content = entry, content

    def adapters(self) -> tuple[AdapterEntry, ...]:
        return (self._entry,)

    def adapter_file(self, run_id: str, file: AdapterFile, offset: int = 0) -> Iterator[bytes]:
        while True:  # without end
            yield self._content


ENTRY = AdapterEntry(
    run_id="r", slot="final", rounds=1, base="b", files=(AdapterFile(name="x", size_bytes=8, sha256="0" * 64),)
)


@pytest.mark.parametrize(
    "entry",
    [
        replace(ENTRY, run_id="../up"),
        replace(ENTRY, slot=".."),
        replace(ENTRY, files=(AdapterFile(name="../../keys", size_bytes=1, sha256="0" * 64),)),
        replace(ENTRY, files=(AdapterFile(name="x", size_bytes=1, sha256="short"),)),
        replace(ENTRY, files=(AdapterFile(name="x", size_bytes=1 << 60, sha256="0" * 64),)),
        replace(ENTRY, files=ENTRY.files * 2),
        replace(ENTRY, files=tuple(AdapterFile(name=f"x{i}", size_bytes=1, sha256="0" * 64) for i in range(65))),
    ],
)
def test_a_list_that_leads_elsewhere_is_refused(entry: AdapterEntry) -> None:
    with pytest.raises(IntegrityFailed):
        listed_adapters(Lying(entry, b""))


def test_other_bytes_than_listed_are_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(IntegrityFailed, match="other content"):
        fetch_adapter(Lying(ENTRY, b"12345678"), ENTRY, tmp_path / "adapters" / "r")
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_home_of_before_shares_with_participants_and_another_word_is_refused() -> None:
    text = json.dumps({k: v for k, v in json.loads(Settings(hosts=("a",)).to_json()).items() if k != "adapters"})
    assert Settings.from_json(text).adapters == "participants"
    with pytest.raises(ConfigInvalid, match="everybody"):
        Settings.from_json(Settings(hosts=("a",)).to_json().replace("participants", "everybody"))
