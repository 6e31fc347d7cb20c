"""A base whose bytes changed after it arrived trains nobody: on the device, on the coordinator, and in the check-up.

Found in a first deployment by strangers: 2,000 zeros in a device's cached weights went into the federation unnoticed.
"""

import os
import shutil
from pathlib import Path

import pytest

from fedpeft.clock import SystemClock
from fedpeft.errors import IntegrityFailed
from fedpeft.testing.models import save_tiny, tiny_bert

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fedpeft.base import build

    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_bert(), folder / "model")
    build(str(folder / "model"), quantize="none", store=folder / "store")
    return folder / "store"


@pytest.fixture
def store(built: Path, tmp_path: Path):
    from fedpeft.base import ArtifactStore

    shutil.copytree(built, tmp_path / "store")
    return ArtifactStore(tmp_path / "store")


def weights(store) -> Path:
    (artifact,) = store.ls()
    return artifact.path / "model.safetensors"


def tamper(path: Path) -> None:
    """Other bytes, the same size and the same time of modification."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(bytes(2000))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def link(path: Path) -> None:
    """The same bytes, but somebody else's file."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def write_by_another_name(path: Path) -> None:
    """Other bytes through a hard link: the name that is looked at was not touched."""
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.hardlink_to(path)
    tamper(elsewhere)
    elsewhere.unlink()


def plan(store):
    from fedpeft.config.model import Adapter, Aggregate, BitFit, SecureAggregation, Task, Train
    from fedpeft.round.plan import LearningPlan, PlannedRounds

    (artifact,) = store.ls()
    return LearningPlan(
        run_id="run",
        seed=0,
        base=artifact.digest,
        adapter_spec="",
        task=Task(kind="classify", labels=("bird", "cat"), max_length=16),
        adapter=Adapter(bitfit=BitFit()),
        train=Train(local_steps=1, batch_size=4),
        aggregate=Aggregate(),
        rounds=PlannedRounds(count=1, eval_examples=0),
        secagg=SecureAggregation(),
    )


@pytest.mark.parametrize("change", [tamper, link, write_by_another_name])
def test_a_device_trains_on_no_base_that_changed_before_it_started(store, change) -> None:
    from fedpeft_client.training.model_pool import ModelPool

    change(weights(store))
    with pytest.raises(IntegrityFailed, match=r"model\.safetensors"):
        ModelPool(store).spec(plan(store))


@pytest.mark.parametrize("change", [tamper, write_by_another_name])
def test_a_device_trains_on_no_base_that_changed_while_it_is_at_work(store, change) -> None:
    from fedpeft_client.training.model_pool import ModelPool

    pool = ModelPool(store)
    with pool.lend(plan(store)):
        pass
    change(weights(store))
    with pytest.raises(IntegrityFailed), pool.lend(plan(store)):
        pass
    with pytest.raises(IntegrityFailed):
        pool.spec(plan(store))


def test_every_byte_is_hashed_once_a_process(store, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.base import BaseArtifact
    from fedpeft_client.training.model_pool import ModelPool

    hashed = []
    real = BaseArtifact.problems
    monkeypatch.setattr(BaseArtifact, "problems", lambda artifact: hashed.append(artifact.digest) or real(artifact))
    for _ in range(3):
        ModelPool(store).spec(plan(store))
    assert len(hashed) == 1


def test_a_coordinator_hands_out_no_base_that_changed(store) -> None:
    from fedpeft_server.service.base_files import BaseFiles

    (artifact,) = store.ls()
    shelf = BaseFiles(store.path)
    stream = shelf.open(artifact.digest, "model.safetensors", 0)
    assert stream is not None
    stream.close()
    tamper(weights(store))
    assert shelf.manifest(artifact.digest) is None
    assert shelf.open(artifact.digest, "model.safetensors", 0) is None


def test_a_coordinator_begins_no_run_on_a_base_that_changed(store) -> None:
    from fedpeft.base import load_model, load_tokenizer

    (artifact,) = store.ls()
    tamper(weights(store))
    with pytest.raises(IntegrityFailed):
        load_model(artifact, task="classify", labels=("bird", "cat"), head_seed=0)
    with pytest.raises(IntegrityFailed):
        load_tokenizer(artifact)


def test_doctor_finds_a_base_that_changed_on_both_sides(store, tmp_path: Path) -> None:
    from fedpeft.entropy import os_entropy
    from fedpeft_client import doctor as device_checkup
    from fedpeft_client.home import DeviceHome
    from fedpeft_server.doctor import check_coordinator
    from fedpeft_server.enrolment.certificate_authority import initialise
    from fedpeft_server.home import CoordinatorHome, Settings

    home = CoordinatorHome(tmp_path / "coordinator")
    initialise(home, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    home.bases.rmdir() if home.bases.is_dir() else None
    shutil.copytree(store.path, home.bases)
    device = DeviceHome(tmp_path / "device")
    shutil.copytree(store.path, device.bases())
    assert "verified" in device_checkup._bases(device)

    def bases() -> bool:
        (found,) = [one for one in check_coordinator(home, SystemClock()) if one.check == "bases"]
        return found.sound

    assert bases()
    for path in (home.bases, device.bases()):
        from fedpeft.base import ArtifactStore

        tamper(weights(ArtifactStore(path)))
    assert not bases()
    with pytest.raises(IntegrityFailed, match="difference"):
        device_checkup._bases(device)
