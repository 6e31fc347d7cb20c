"""The device's second process: the model, the examples, the secure sum's secrets; it never speaks to the network.

The agent (``fedpeft_client.process.agent``) hands it one request of the protocol at a time and passes on what it
answers. It stays: the base is loaded once and kept over rounds and runs. If the system kills it for its memory, the
resident process tells the coordinator within the second and starts another; what the protocol must not forget is on
the disk before any answer leaves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft import secagg
from fedpeft.child import answer_parent
from fedpeft.clock import SystemClock
from fedpeft.directory_lock import DirectoryLock
from fedpeft.entropy import Entropy, os_entropy
from fedpeft.privacy import Budget, PrivacyLedger
from fedpeft.round.device.device import Device
from fedpeft.round.failures import Tell, Trouble, cause_of, log_trouble
from fedpeft.round.local import Identity, Trainer
from fedpeft_client.enrolment.directory import SiteDirectory
from fedpeft_client.home import DeviceHome
from fedpeft_client.process.frames import HANDLE, unframed
from fedpeft_client.process.troubles import TroubleLog
from fedpeft_client.site import Site
from fedpeft_client.site_runs import SiteRuns
from fedpeft_client.training.device_stores import FileStore, device_ledger

if TYPE_CHECKING:
    from fedpeft_client.training.script import Script

__all__ = ["begun", "device_of", "handlers", "locked", "policy_of", "site_trainer"]

_held: list[DirectoryLock] = []

ANY_NOISE = 1e-9
"""A site with a budget takes no part in a sum without noise, whose epsilon has no bound."""


def policy_of(site: Site, coordinator_key: bytes) -> secagg.DevicePolicy:
    """The site's rules for the secure sum."""
    policy = site.policy
    return secagg.DevicePolicy(
        coordinator_key=coordinator_key,
        allow_fast=policy.allow_fast,
        min_cohort=policy.min_cohort,
        min_corrupt_fraction=policy.min_corrupt_fraction,
        min_colluders=policy.min_colluders,
        min_noise_multiplier=max(policy.min_noise_multiplier, 0.0 if policy.max_epsilon is None else ANY_NOISE),
    )


def site_trainer(home: DeviceHome, name: str, site: Site, *, script: "Script | None" = None) -> Trainer:
    """The trainer of a real device; with ``script`` one whose steps are made by a training script of its own."""
    import torch

    from fedpeft.base import ArtifactStore
    from fedpeft_client.training.site_trainer import SiteTrainer

    torch.set_num_threads(site.limits.threads)
    return SiteTrainer(
        device=name,
        site=site,
        bases=ArtifactStore(home.bases()),
        clock=SystemClock(),
        memory=FileStore(home.state),  # this process ends between rounds
        runs=SiteRuns(home.runs, SystemClock()),
        script=script,
    )


Rounding = Callable[[str, int], Entropy]
"""From a run's id and a round, the randomness of the rounding in it."""


def device_of(
    home: DeviceHome,
    trainer: Callable[[DeviceHome, str, Site], Trainer] = site_trainer,
    rounding: Rounding = lambda run_id, round_id: os_entropy,
) -> Device:
    """The device of this home; reads its site's rules.

    Args:
        home: enrolled.
        trainer: makes what trains; another one only to test what is around it.
        rounding: another than the system's only where a run must repeat to the bit.

    Raises:
        NotEnrolled: it is not enrolled.
        ConfigInvalid: site.toml is missing or wrong.
        IntegrityFailed: its ledger is lost or damaged.
    """
    enrolment, key, site = home.enrolment(), home.identity(), Site.load(home.site)
    policy = policy_of(site, bytes.fromhex(enrolment.coordinator_key))
    made = trainer(home, enrolment.device, site)
    session = secagg.DeviceSession(
        ledger=secagg.FileLedger(home.ledger, key),
        identity=key,
        enrolled=secagg.Enrolled(device=enrolment.device, organisation=enrolment.organisation),
        policy=policy,
        directory=None if site.policy.directory == "off" else SiteDirectory(home, site.policy.directory),
    )
    budget = None
    if site.policy.max_epsilon is not None:  # last: it is held, and whoever fails before is asked again
        budget = PrivacyLedger(
            home.state / "privacy.jsonl",
            witness=home.path / "privacy.witness",
            budget=Budget(epsilon=site.policy.max_epsilon, delta=site.policy.delta),
        )
    by_people = site.policy.max_person_epsilon is not None
    limit = site.policy.max_person_epsilon or site.policy.max_example_epsilon or math.inf
    return Device(
        identity=Identity(device=enrolment.device, organisation=enrolment.organisation, public_key=key.public),
        trainer=made,
        session=session,
        store=FileStore(home.state),
        entropy=os_entropy,
        rounding=rounding,
        budget=budget,
        ledger=device_ledger(
            home.state / "examples.jsonl",
            witness=home.path / "examples.witness",
            budget=Budget(epsilon=limit, delta=site.policy.delta),
            unit="person" if by_people else "example" if limit < math.inf else None,
        ),
        tell=TroubleLog(home.troubles, SystemClock()),
        speaks=site.policy.speak_of_failures,
    )


def handlers(device: Device, tell: Tell = log_trouble) -> Mapping[str, Callable[[bytes], bytes]]:
    """What the agent may ask.

    Args:
        device: answers.
        tell: keeps what nobody foresaw, such as a full disk.
    """

    def handle(payload: bytes) -> bytes:
        try:
            return device.handle(*unframed(payload))
        except Exception as error:
            tell(Trouble(run_id="", round_id=0, cause=cause_of(error)))
            raise

    return {HANDLE: handle}


def locked(home: DeviceHome) -> DirectoryLock:
    """The state is this process's alone until the lock is released.

    Raises:
        ResourceMissing: another process has it, or this one has.
    """
    home.state.mkdir(mode=0o700, exist_ok=True)
    return DirectoryLock(home.state)


def begun(
    arguments: Sequence[str],
    trainer: Callable[[DeviceHome, str, Site], Trainer] = site_trainer,
    rounding: Rounding = lambda run_id, round_id: os_entropy,
) -> Mapping[str, Callable[[bytes], bytes]]:
    """What this process answers, from its command line: the device's home. See ``device_of``.

    From then on the state is this process's alone until its end: two could answer one request under two sets of keys.
    Whoever fails here is asked again, with what its owner has mended meanwhile, so nothing stays held.
    """
    home = DeviceHome(Path(arguments[0]))
    lock = locked(home)
    try:
        known = handlers(device_of(home, trainer, rounding), TroubleLog(home.troubles, SystemClock()))
    except BaseException:
        lock.release()
        raise
    _held.append(lock)
    return known


if __name__ == "__main__":
    answer_parent(begun)
