"""Every method under an attached Trainer: it trains what fedpeft's own loop does, or the run is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from fedpeft.catalogue import BY_NAME
from fedpeft.config.model import Adapter
from fedpeft.errors import PolicyRefused, RunFailed
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert
from fedpeft.tuning import train
from tests.client.test_transformers_script import run_plan, script_of, steps_of

pytestmark = pytest.mark.torch

STEPPED = {
    name for name, method in BY_NAME.items() if "dropout" in type(method.example).model_fields or method.measures
}


def adapter_of(name: str, *, dropout: float = 0.0) -> Adapter:
    settings = BY_NAME[name].example
    return Adapter.model_validate(
        {name: settings.model_copy(update={"dropout": dropout}) if dropout else settings, "head": False}
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script_of(tmp_path_factory.mktemp("out"))


def test_a_part_that_acts_in_steps_is_refused_before_and_at_the_steps(script: Any) -> None:
    """``expect`` knows settings; ``take_steps`` the parts themselves, those of methods to come among them."""
    for name in sorted(STEPPED):
        adapter = adapter_of(name, dropout=0.0 if BY_NAME[name].measures else 0.5)
        with pytest.raises(PolicyRefused, match=name):
            script.expect(run_plan(adapter=adapter))
        union = attach(tiny_bert(layers=1, classes=2), adapter, seed=1)
        with pytest.raises(RunFailed, match="no part in the steps"):
            script.take_steps(union, steps_of(union), seed=5)


def test_a_part_acts_by_overriding_a_hook_and_by_nothing_else() -> None:
    class Still(SteppedPart):
        pass

    class Finishing(SteppedPart):
        @classmethod
        def finish(cls, parts: object) -> None:
            pass

    assert (Still().acts, Finishing().acts) == (False, True)


@pytest.mark.parametrize("name", sorted(name for name, method in BY_NAME.items() if not method.measures))
def test_every_other_method_is_trained_as_fedpefts_own_loop_does(script: Any, name: str) -> None:
    torch.set_num_threads(1)
    adapter = adapter_of(name)
    script.expect(run_plan(adapter=adapter))
    ours, theirs = (attach(tiny_bert(layers=1, classes=2), adapter, seed=1) for _ in range(2))
    plan = steps_of(ours, "sgd", steps=2)
    train(ours, script.tokens(run_plan())[0], plan, seed=5)
    script.take_steps(theirs, plan, seed=5)
    for block in ours.spec.blocks:
        np.testing.assert_allclose(theirs.state()[block.block_id], ours.state()[block.block_id], atol=1e-5)
