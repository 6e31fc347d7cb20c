"""One committed round's files in a run directory: written whole, read back against its row.

    checkpoints/r0004/{global.safetensors,server.json,...}

A checkpoint alone is no commit: its row in metrics.jsonl is (``fedpeft_server.run.run_directory``).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from fedpeft.errors import IntegrityFailed
from fedpeft.ids import RoundId
from fedpeft_server.run import journal
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_view import GLOBAL_STATE, checkpoint_folder, checkpoint_problems, file_digest

__all__ = ["Commit", "read_commit", "write_checkpoint"]

SERVER_STATE = "server.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A committed round, read back.

    Args:
        round_id: which.
        state: the global state's bytes, as committed.
        server_state: whatever else the coordinator needs to go on.
        metrics: its row.
        extra: further files of the checkpoint, by name.
    """

    round_id: RoundId
    state: bytes
    server_state: Mapping[str, JsonValue]
    metrics: RoundMetrics
    extra: Mapping[str, bytes]


def write_checkpoint(
    run: Path, round_id: RoundId, state: bytes, server_state: Mapping[str, JsonValue], extra: Mapping[str, bytes]
) -> dict[str, str]:
    """All of a round's files, durably, or none; returns each one's digest.

    Args:
        run: the run directory.
        round_id: not committed yet.
        state: the global state after the round.
        server_state: JSON values that the coordinator needs to go on.
        extra: further files, by name.

    Raises:
        OSError: the disk is full or gone; nothing was written.
    """
    files = {
        **extra,
        GLOBAL_STATE: state,
        SERVER_STATE: json.dumps(server_state, sort_keys=True, allow_nan=False).encode(),
    }
    folder = checkpoint_folder(run, round_id)
    journal.remove_folder(folder)  # left by a commit that failed before its row
    journal.write_folder(folder, files)
    return {name: file_digest(payload) for name, payload in files.items()}


def read_commit(run: Path, row: RoundMetrics) -> Commit:
    """A committed round.

    Raises:
        IntegrityFailed: its checkpoint is not what was committed.
    """
    problems = checkpoint_problems(run, row)
    if problems:
        raise IntegrityFailed("The last checkpoint is not what was committed.", problems=problems)
    folder = checkpoint_folder(run, row.round)
    return Commit(
        round_id=RoundId(row.round),
        state=(folder / GLOBAL_STATE).read_bytes(),
        server_state=json.loads((folder / SERVER_STATE).read_bytes()),
        metrics=row,
        extra={name: (folder / name).read_bytes() for name in row.checkpoint.keys() - {GLOBAL_STATE, SERVER_STATE}},
    )
