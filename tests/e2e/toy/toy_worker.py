"""The device's second process with one-hot deltas: in their sum a 2 is a replay and a 0 a loss.

A file ``hold`` in the device's home keeps it in training, once it has trained as often as the file says (nothing: at
once); ``fitting`` is there while it trains. ``nan`` spoils its delta.
"""

import threading

import numpy as np
from toy_spec import DEVICES, SPEC, WIDTH

from fedpeft.adapter import AdapterState
from fedpeft.child import answer_parent
from fedpeft.round.local import Effort, LocalResult, Trainer
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work
from fedpeft.testing.trainers import GivenTrainer, one_hot
from fedpeft_client.home import DeviceHome
from fedpeft_client.process.worker import begun
from fedpeft_client.site import Site


class HeldTrainer(GivenTrainer):
    """See the module's text."""

    def __init__(self, home: DeviceHome, name: str) -> None:
        place = DEVICES.index(name)
        super().__init__(SPEC, {"lora.B.t4": one_hot(WIDTH, place)})
        self._home = home.path

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``."""
        hold = self._home / "hold"
        if hold.exists() and (left := int(hold.read_text() or 0)):
            hold.write_text(str(left - 1))
            return super().fit(plan, state, work, effort)
        (self._home / "fitting").touch()
        while hold.exists():
            threading.Event().wait(0.02)
        (self._home / "fitting").unlink(missing_ok=True)
        result = super().fit(plan, state, work, effort)
        if (self._home / "nan").exists():
            return LocalResult(
                deltas={block: np.full_like(delta, np.nan) for block, delta in result.deltas.items()},
                trained_loss=0.0, trained=1, evaluated_loss=0.0, correct=0, evaluated=1,
            )  # fmt: skip
        return result


def held(home: DeviceHome, name: str, site: Site) -> Trainer:
    """As ``site_trainer``."""
    return HeldTrainer(home, name)


if __name__ == "__main__":
    answer_parent(lambda arguments: begun(arguments, held))
