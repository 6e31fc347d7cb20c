"""A device whose steps a script takes: what its site does not permit, and what cannot be had, trains nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpeft.api import attached
from fedpeft.base import ArtifactStore, build
from fedpeft.errors import DataInvalid, PolicyRefused
from fedpeft.ids import RoundId
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work
from fedpeft.secagg import FileLedger
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.models import save_tiny, tiny_bert
from fedpeft_client.enrolment.keys import ensure_keys
from fedpeft_client.home import DeviceHome
from fedpeft_client.process.coordinator_services import CoordinatorServices
from fedpeft_client.site import Site
from fedpeft_client.training.site_trainer import SiteTrainer
from tests.client.test_home import ENROLMENT
from tests.client.test_transformers_script import run_plan, script_of

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, str]:
    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_bert(layers=2), folder / "model")
    built = build(str(folder / "model"), quantize="none", store=folder / "store")
    return ArtifactStore(folder / "store"), built.digest


def trainer_of(tmp_path: Path, store: ArtifactStore, script: Any, policy: str = "") -> SiteTrainer:
    site = tmp_path / "site.toml"
    site.write_text(f'[data]\nsource = "{tmp_path}/none.jsonl"\n[limits]\nmethods = ["lora"]\nrank = 4\n{policy}')
    return SiteTrainer(device="ward-a", site=Site.load(site), bases=store, clock=FakeClock(), script=script)


def said_of(trainer: SiteTrainer, plan: LearningPlan) -> tuple[object, ...]:
    """What a coordinator hears of the data before a round."""
    trainer.spec(plan)
    return trainer.size_class(plan), trainer.evaluates(plan)


def fit(trainer: SiteTrainer, plan: LearningPlan) -> Any:
    blocks = tuple(block.block_id for block in trainer.spec(plan).blocks)
    work = Work(
        round_id=RoundId(1),
        first_step=0,
        train=True,
        eval_examples=4,
        blocks=blocks,
        learning_rate_factor=1.0,
        learning_rate_scale=1.0,
        bucket=0,
        controls={},
    )
    return trainer.fit(plan, trainer.first_state(plan), work)


def test_fewer_examples_than_the_site_wants_train_nothing_and_nobody_is_told(tmp_path: Path, base: Any) -> None:
    store, digest = base
    plan = run_plan(base=digest)
    plenty = trainer_of(tmp_path, store, script_of(tmp_path))
    few = trainer_of(tmp_path, store, script_of(tmp_path), "[policy]\nmin_examples = 1000\n")
    assert said_of(few, plan) == said_of(plenty, plan)
    assert fit(plenty, plan).trained == 36
    with pytest.raises(DataInvalid, match="that may be trained on"):
        fit(few, plan)


def test_examples_that_cannot_be_had_train_nothing_until_they_can(tmp_path: Path, base: Any) -> None:
    store, digest = base
    plan, script = run_plan(base=digest), script_of(tmp_path)
    healthy = said_of(trainer_of(tmp_path, store, script), plan)
    tokens, trainer = script.tokens, trainer_of(tmp_path, store, script)

    def lost(plan: LearningPlan) -> Any:
        raise OSError("the share is away")

    script.tokens = lost
    assert said_of(trainer, plan) == healthy
    with pytest.raises(DataInvalid, match="that may be trained on"):
        fit(trainer, plan)
    script.tokens = tokens
    result = fit(trainer, plan)
    assert (result.trained, result.troubles) == (36, ())
    assert max(float(np.abs(delta).max()) for delta in result.deltas.values()) > 0


def test_a_script_of_another_tokenizer_is_refused_before_the_round(tmp_path: Path, base: Any) -> None:
    store, digest = base
    script = script_of(tmp_path)
    script._vocabulary = {"other": 0}
    with pytest.raises(PolicyRefused, match="tokenizer"):
        trainer_of(tmp_path, store, script).spec(run_plan(base=digest))


def test_an_attached_device_that_was_interrupted_runs_again_in_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = DeviceHome(tmp_path)
    ensure_keys(home, lambda count: bytes(range(count)))
    home.write_enrolment(ENROLMENT)
    home.site.write_text('[data]\nsource = "none.jsonl"\n')
    home.ca_certificate.write_bytes(b"")
    FileLedger.create(home.ledger, home.identity())
    device = attached.AttachedDevice(tmp_path, script_of(tmp_path / "out"))

    def interrupted(self: CoordinatorServices, ring: Mapping[str, object]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CoordinatorServices, "start", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            device.run()
