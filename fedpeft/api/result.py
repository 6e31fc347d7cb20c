"""A run directory as an object: rows, a data frame, the adapter, the model, the report."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.api.run_path import run_directory
from fedpeft.errors import ResourceMissing
from fedpeft.terminal import counted
from fedpeft_server.run.records import RoundMetrics, Summary
from fedpeft_server.run.run_view import RunView, read_run

if TYPE_CHECKING:
    from fedpeft.api.adapters import Adapter

__all__ = ["Result", "open_run"]

SHOWN = ("round", "loss", "accuracy", "train_loss", "devices_survived", "bytes_up", "bytes_down", "seconds", "burnt")
"""Fields of a row of metrics.jsonl that are numbers of the whole round."""


@dataclass(frozen=True, slots=True)
class Result:
    """A run as it lies on the disk.

    Args:
        view: everything that the run directory records.
    """

    view: RunView

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.view.path

    @property
    def state(self) -> str:
        """``finished``, ``failed``, ``interrupted`` or ``running``."""
        return self.view.state

    @property
    def summary(self) -> Summary | None:
        """Totals and comparison; None while the run has not ended."""
        return self.view.summary

    @property
    def rounds(self) -> tuple[RoundMetrics, ...]:
        """Every committed round, with all that metrics.jsonl says."""
        return self.view.rounds

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary a round: ``round``, ``loss``, ``accuracy``, ``train_loss``, bytes, seconds.

        The loss and accuracy of a row are those of the state that its round began with.
        """
        return [{name: getattr(row, name) for name in SHOWN} for row in self.view.rounds]

    def frame(self) -> Any:
        """``metrics`` as a pandas DataFrame, by round.

        Raises:
            ResourceMissing: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ResourceMissing(
                "Expected the package pandas for a frame, found none; pip install pandas, or use Result.metrics."
            ) from error
        return pd.DataFrame(self.metrics, columns=list(SHOWN)).set_index("round")

    @property
    def adapter(self) -> Path:
        """The folder of the adapter that the run kept: peft loads it."""
        return self.path / "adapters" / "final"

    def model(self, *, store: str | Path | None = None) -> "Adapter":
        """The base with the adapter, ready to answer."""
        from fedpeft.api.adapters import load_adapter

        return load_adapter(self.path, store=store)

    def report(self) -> Path:
        """The run's page, written anew from its records."""
        from fedpeft_server.report.page import write_report

        write_report(self.path)
        return self.path / "report.html"

    def __fspath__(self) -> str:
        """So that whatever takes a run directory takes a result."""
        return str(self.path)

    def __repr__(self) -> str:
        last = self.view.rounds[-1] if self.view.rounds else None
        score = "" if last is None or last.loss is None else f", loss {last.loss:.4f}"
        return f"<fedpeft run {self.path.name}: {self.state}, {counted(len(self.view.rounds), 'round')}{score}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        names = ("round", "loss", "accuracy", "bytes_up", "seconds")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(row[name])}</td>" for name in names) + "</tr>" for row in self.metrics
        )
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def as_dict(self) -> dict[str, Any]:
        """State, adapter, metrics and summary as plain values."""
        summary = None if self.summary is None else asdict(self.summary)
        return {
            "run": str(self.path),
            "state": self.state,
            "adapter": str(self.adapter),
            "metrics": self.metrics,
            "summary": summary,
        }


def open_run(path: str | os.PathLike[str]) -> Result:
    """A run that was made before.

    Raises:
        DataInvalid: this is no run directory.
        IntegrityFailed: its records are not of this version.
    """
    return Result(read_run(run_directory(path)))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
