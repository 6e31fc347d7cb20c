"""The coordinator's second process: loads the base, makes a run's first state, exports adapters.

All that needs torch happens here, so that the process that faces the network stays small and its memory does not
depend on the model. One a run; it ends with the run.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.child import Child, ChildDied, answer_parent
from fedpeft.config import RunConfig, resolved
from fedpeft.config.load import parse
from fedpeft.entropy import derive_seed
from fedpeft.errors import FedpeftError, RunFailed
from fedpeft_server.run.run_directory import AdapterSlot, RunDirectory

if TYPE_CHECKING:
    from fedpeft.base import BaseArtifact
    from fedpeft.methods import UnionAdapter

__all__ = ["ModelProcess", "Publisher", "RunStart"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What a run begins with.

    Args:
        base: digest of the base artifact.
        initial: the first global state, with its specification.
        start: digest of it, hex, if it is not what the plan makes on the base (``fedpeft.round.start``); else empty.
    """

    base: str
    initial: AdapterState
    start: str = ""


class ModelProcess:
    """The child, from the coordinator's side. Close it.

    Args:
        bases: the store of base artifacts.
        module: of the second process; another one only to test what is around it.
    """

    def __init__(self, bases: Path, module: str = "fedpeft_server.jobs.model_process") -> None:
        self._child = Child(module, [str(bases)], environment={"OMP_NUM_THREADS": "1"})

    def draft(self, config: RunConfig) -> RunStart:
        """Build the base if it is not in the store, attach the adapter, fill in what it takes from earlier ones.

        Args:
            config: the run's; a relative folder in ``base.adapters`` lies where its runs are.

        Raises:
            FedpeftError: the base or the adapter cannot be had as configured.
            RunFailed: the process died.
        """
        # The child is told neither where runs are nor what directory this process is in.
        folders = {task: str((config.directory / folder).resolve()) for task, folder in config.base.adapters.items()}
        config = config.model_copy(update={"base": config.base.model_copy(update={"adapters": folders})})
        head, _, state = self._ask("draft", resolved(config).encode()).partition(b"\n")
        content = json.loads(head)
        spec = AdapterSpec.from_json(content["spec"])
        return RunStart(
            base=content["base"], initial=AdapterState.from_safetensors(spec, state), start=content["start"]
        )

    def export(self, state: AdapterState, folder: Path) -> None:
        """Write the drafted adapter with this state as files for others.

        Raises:
            RunFailed: the process died.
        """
        self._ask("export", str(folder).encode() + b"\n" + state.to_safetensors())

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _ask(self, name: str, payload: bytes) -> bytes:
        try:
            return self._child.ask(name, payload)
        except ChildDied as death:
            raise RunFailed(f"The model process could not {name}: {death}; see the log, then resume.") from death
        except RuntimeError as error:  # e.g. safetensors' own error on a full disk
            raise RunFailed(f"The model process could not {name}: {error}; see the log, then resume.") from error


class Publisher:
    """Exports committed states from a thread, so that no round waits for it: of each slot the newest one.

    Args:
        model_process: has drafted this run.
        run: where adapters go.
    """

    def __init__(self, model_process: ModelProcess, run: RunDirectory) -> None:
        self._model_process, self._run = model_process, run
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._newest: dict[AdapterSlot, AdapterState] = {}
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def __call__(self, slot: AdapterSlot, state: AdapterState) -> None:
        """What the federation calls; ``final`` is there when it returns."""
        if slot == "final":
            self.close()
            self._export(slot, state)
            return
        with self._lock:
            self._newest[slot] = state
        self._bell.put(True)

    def close(self) -> None:
        """Export what waits, then end."""
        if self._thread.is_alive():
            self._bell.put(False)
            self._thread.join()

    def _work(self) -> None:
        while self._bell.get():
            with self._lock:
                waiting, self._newest = self._newest, {}
            for slot, state in waiting.items():
                try:
                    self._export(slot, state)
                except (FedpeftError, OSError) as error:  # a commit stands whether or not its export does
                    _log.warning("adapters/%s was not written: %s", slot, error)

    def _export(self, slot: AdapterSlot, state: AdapterState) -> None:
        self._run.publish_adapter(slot, lambda folder: self._model_process.export(state, folder))


class _ModelWorker:
    """The child's side: one base with one adapter on it."""

    def __init__(self, bases: Path) -> None:
        self._bases = bases
        self._union: UnionAdapter | None = None
        self._config: RunConfig | None = None
        self._artifact: BaseArtifact | None = None

    def draft(self, payload: bytes) -> bytes:
        from fedpeft.base import build, load_model
        from fedpeft.export.earlier_runs import with_sources
        from fedpeft.methods import attach
        from fedpeft.round.start import named_start

        config = parse(payload.decode(), source="run.toml", simulation=True)
        artifact = build(config.base.model, quantize=config.base.quantize, store=self._bases)
        head_seed = derive_seed(config.run.seed, "head")
        record = config.task.record
        model = load_model(
            artifact,
            task=record.form,
            labels=config.task.outputs,
            head_seed=head_seed,
            problem_type=record.problem_type,
        )
        union = attach(model, config.adapter, seed=config.run.seed)
        self._union, self._config, self._artifact = union, config, artifact
        initial = with_sources(union.initial_state(), config.adapter, config.base.adapters)
        start = named_start(union.initial_state(), initial)
        head = json.dumps({"base": artifact.digest, "spec": initial.spec.to_json(), "start": start})
        return head.encode() + b"\n" + initial.to_safetensors()

    def export(self, payload: bytes) -> bytes:
        from fedpeft.export import export_peft

        folder, _, content = payload.partition(b"\n")
        if self._union is None or self._config is None or self._artifact is None:
            raise RunFailed("Expected a draft before an export, found none.")
        self._union.load(AdapterState.from_safetensors(self._union.spec, content))
        export_peft(
            self._union,
            Path(folder.decode()),
            base=self._config.base.model,
            artifact=self._artifact,
            task=self._config.task,
        )
        return b""


def _handlers(arguments: Sequence[str]) -> Mapping[str, Callable[[bytes], bytes]]:
    workshop = _ModelWorker(Path(arguments[0]))
    return {"draft": workshop.draft, "export": workshop.export}


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    answer_parent(_handlers)
