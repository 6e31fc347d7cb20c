"""[track] in run.toml: experiment trackers that are told of every round."""

from pydantic import Field, field_validator

from fedpeft.catalogue.section import Section
from fedpeft.plugins import plugins

__all__ = ["OWN_TRACKERS", "Track"]

OWN_TRACKERS = ("tensorboard", "mlflow", "wandb")


class Track(Section):
    """Experiment trackers that are told of every round."""

    to: tuple[str, ...] = Field(
        default=(),
        description="`tensorboard`, `mlflow`, `wandb` (offline unless WANDB_MODE says otherwise), each with the extra "
        "of its name, or a plug-in's name. They get the numbers of metrics.jsonl; their files lie in the run's track/.",
    )

    @field_validator("to")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in OWN_TRACKERS and name not in plugins("tracker"):
                known = ", ".join((*OWN_TRACKERS, *plugins("tracker")))
                raise ValueError(f"expected trackers out of {known}, found {name!r}")
        return tuple(dict.fromkeys(names))
