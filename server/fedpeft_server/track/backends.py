"""TensorBoard, MLflow and Weights & Biases: three libraries, one form. Each is imported when it is used."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedpeft_server.track.tracker import MakeTracker

__all__ = ["MAKERS"]


RUN_TAG = "fedpeft.run"


class TensorBoard:
    """Event files, which `tensorboard --logdir RUN/track` reads; written without TensorFlow and torch.

    TensorBoard keeps single precision.
    """

    def __init__(self, folder: Path, run: str, config: Mapping[str, str]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = EventFileWriter(str(folder))

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(Event(step=number, wall_time=time.clock_gettime(time.CLOCK_REALTIME), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """See ``Tracker``."""
        self._writer.close()


class MLflow:
    """A run in the store that MLFLOW_TRACKING_URI names, or in the folder.

    A run that goes on is a new one there, and what an earlier start had left is deleted.
    """

    def __init__(self, folder: Path, run: str, config: Mapping[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report to its makers
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self._client: Any = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedpeft")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name, str(folder / "artifacts"))
        for earlier in self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'"):
            self._client.delete_run(earlier.info.run_id)
        self._run: str = self._client.create_run(experiment, run_name=run, tags={RUN_TAG: run}).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, _allowed(key), value[:500])

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        for name, value in values.items():
            self._client.log_metric(self._run, _allowed(name), value, step=number)

    def close(self) -> None:
        """See ``Tracker``."""
        self._client.set_terminated(self._run)


def _allowed(name: str) -> str:
    """A name as MLflow takes it: a class may be called anything."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:250]


class WeightsAndBiases:
    """A run in the folder, for `wandb sync`; at once on a server where WANDB_MODE is online.

    A run that goes on has the same id there: a server takes no round twice.
    """

    def __init__(self, folder: Path, run: str, config: Mapping[str, str]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing goes to its makers but by WANDB_MODE
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        for earlier in folder.glob("wandb/offline-run-*"):
            shutil.rmtree(earlier)
        project = os.environ.get("WANDB_PROJECT", "fedpeft")
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run: Any = wandb.init(
            dir=str(folder), mode=mode, project=project, name=run, id=run, resume="allow",
            config=dict(config), reinit="create_new",
            settings=settings,
        )  # fmt: skip

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log(dict(values), step=number)

    def close(self) -> None:
        """See ``Tracker``."""
        self._run.finish()


MAKERS: Mapping[str, MakeTracker] = MappingProxyType(
    {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}
)
