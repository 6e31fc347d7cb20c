"""``fedpeft.attach``: somebody's transformers ``Trainer`` becomes a device of a federation."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedpeft.clock import SystemClock
from fedpeft.errors import ConfigInvalid, NotEnrolled

if TYPE_CHECKING:
    from transformers import Trainer

    from fedpeft_client.training.transformers_script import TransformersScript

__all__ = ["AttachedDevice", "attach"]

_log = logging.getLogger(__name__)


class AttachedDevice:
    """A device whose steps a script's Trainer takes. Made by ``attach``; ``run`` works until it is interrupted.

    Args:
        home: enrolled by `fedpeft client join`.
        script: takes the steps.
    """

    def __init__(self, home: Path, script: "TransformersScript") -> None:
        self._home, self._script = home, script

    def run(self) -> None:
        """Take part in the federation's runs until Ctrl-C; what is being trained is given up then, and trained again.

        Raises:
            NotEnrolled: the device was revoked; says when and why.
            ResourceMissing: another process is this device already.
        """
        from fedpeft_client.enrolment.membership import mark_ended
        from fedpeft_client.home import DeviceHome
        from fedpeft_client.process.agent import Agent
        from fedpeft_client.process.coordinator_services import CoordinatorServices
        from fedpeft_client.process.in_process import InProcess
        from fedpeft_client.process.troubles import TroubleLog
        from fedpeft_client.process.worker import device_of, handlers, locked, site_trainer

        home = DeviceHome(self._home)
        home.enrolment()
        with locked(home):  # no longer than this call: a notebook interrupts it, and calls it again
            device = device_of(home, partial(site_trainer, script=self._script))
            worker = InProcess(handlers(device, TroubleLog(home.troubles, SystemClock())))
            agent = Agent(home, CoordinatorServices(home, SystemClock()), worker=worker)
            try:
                agent.run(lambda node: _log.info("%s is connected and waits for work", home.enrolment().device))
            except NotEnrolled as ended:
                mark_ended(home, str(ended))
                raise


def attach(
    trainer: "Trainer",
    *,
    home: str | Path | None = None,
    labels: Sequence[str] | None = None,
    recipe: Literal["run", "script"] = "run",
) -> AttachedDevice:
    """A device whose rounds this Trainer trains.

    The script's data, tokens, collator, loss, batch size, precision and callbacks stay; the model becomes the
    federation's base with the run's adapter. The adapter's exchange, the secure sum, clipping, noise on sums and the
    rules in site.toml are fedpeft's, as on any device. Runs with example-level privacy are refused.

    Args:
        trainer: transformers' Trainer or a subclass, ready for ``trainer.train()``; its ``eval_dataset`` is what the
            device evaluates.
        home: the device's, enrolled by `fedpeft client join`; None: the default one.
        labels: the class names by their numbers in the script; None: as the model's ``id2label`` says.
        recipe: ``run``: optimizer, learning rates, weight decay and clipping of gradients are the run's; ``script``:
            the Trainer's own. How many steps a round has, the run says.

    Raises:
        ConfigInvalid: the Trainer cannot be a device.
    """
    from fedpeft_client.home import default_device_home
    from fedpeft_client.training.transformers_script import TransformersScript

    if recipe not in ("run", "script"):
        raise ConfigInvalid(f'Expected recipe = "run" or "script", found {recipe!r}.')
    script = TransformersScript(trainer, labels=labels, recipe=recipe)
    return AttachedDevice(Path(home) if home else default_device_home(), script)
