"""The end of a run as a record: totals of what was committed, and what was promised."""

from typing import Literal

from fedpeft_server.run.privacy_statements import privacy_lines
from fedpeft_server.run.records import Comparison, Summary
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run
from fedpeft_server.run.verdict import rounds_done

__all__ = ["summary_of"]


def summary_of(
    run: RunDirectory,
    outcome: Literal["finished", "failed", "interrupted"],
    reason: str = "",
    *,
    full_bytes: int | None = None,
    comparison: tuple[Comparison, ...] = (),
    confusion: tuple[tuple[int, ...], ...] = (),
) -> Summary:
    """The summary of what is committed so far."""
    rows = run.rounds
    return Summary(
        outcome=outcome,
        reason=reason,
        rounds=rounds_done(rows, run.config.rounds),
        seconds=sum(row.seconds for row in rows),
        bytes_up=sum(row.bytes_up for row in rows),
        bytes_down=sum(row.bytes_down for row in rows),
        bytes_full_parameters=full_bytes,
        metric=run.config.task.record.compared,
        comparison=comparison,
        confusion=confusion,
        privacy=privacy_lines(read_run(run.path)),
    )
