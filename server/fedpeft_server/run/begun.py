"""What a run has begun with its devices: the plan and first state that they know it by, and the last attempt."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from fedpeft.adapter import AdapterSpec
from fedpeft.bounded_json import JsonLimits, loads
from fedpeft.catalogue.opacus import Engine
from fedpeft.errors import IntegrityFailed, Problem
from fedpeft.files import write_file
from fedpeft.ids import RoundId
from fedpeft.plugins import expect_installed
from fedpeft_server.run.records import RoundMetrics, RunManifest

__all__ = ["expect_attempts", "expect_same", "keep_terms", "read_attempts", "recorded_engine", "write_attempts"]

ATTEMPTS = "attempts.json"
TERMS = "terms.json"
LIMITS = JsonLimits(max_bytes=64 * 2**20)
"""Of a plan with the names of very many classes."""


def expect_same(
    run: Path, manifest: RunManifest, *, adapter: AdapterSpec, base_digest: str, data_digest: str = ""
) -> None:
    """See ``RunDirectory.expect``."""
    expect_installed(manifest.plugins, kinds=("method", "rule", "format"))
    pairs = {
        "base": (manifest.base_digest, base_digest),
        "adapter": (manifest.adapter_digest, adapter.digest),
        "data": (manifest.data_digest, data_digest or manifest.data_digest),
    }
    problems = [
        Problem(where=what, expected=expected, found=found)
        for what, (expected, found) in pairs.items()
        if expected and expected != found
    ]
    if problems:
        raise IntegrityFailed(
            f"{run}: expected what the run began with; resume with the versions and files named in "
            "manifest.json, or start a new run.",
            problems=problems,
        )


def keep_terms(run: Path, plan: str, first: str, *, begun: bool) -> None:
    """See ``RunDirectory.expect_terms``.

    Args:
        run: the run directory.
        plan, first: the learning plan's JSON; the digest of the first state, hex.
        begun: whether a round is committed.
    """
    path = run / TERMS
    if not begun and not path.exists():
        write_file(path, json.dumps({"plan": json.loads(plan), "first": first}).encode())
        return
    try:
        kept = _read(path)
        sections, state = dict(kept["plan"]), str(kept["first"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFailed(
            f"Expected {path} as this run wrote it, found another; finish the run with the version that began it, "
            "or start a new one."
        ) from error
    now = json.loads(plan)
    problems = [
        Problem(where=f"plan.{name}", expected=json.dumps(sections.get(name)), found=json.dumps(now.get(name)))
        for name in sorted(sections.keys() | now.keys())
        if sections.get(name) != now.get(name)
    ]
    if state != first:
        problems.append(Problem(where="first state", expected=state, found=first))
    if problems:
        raise IntegrityFailed(
            f"{run}: expected the terms that the run began with, to which its devices hold it; resume with "
            "the versions and files named in manifest.json, or start a new run.",
            problems=problems,
        )


def recorded_engine(run: Path) -> Engine | None:
    """``privacy.engine`` of the plan that the run began with; None: it has not begun, or its plan says none.

    Raises:
        IntegrityFailed: the plan is none that this version knows.
    """
    if not (run / TERMS).exists():
        return None
    try:
        found = (_read(run / TERMS)["plan"]["privacy"] or {}).get("engine")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityFailed(
            f"Expected {run / TERMS} as this run wrote it, found another; restore it from a copy."
        ) from error
    if found not in (None, *get_args(Engine)):
        raise IntegrityFailed(f"Expected an engine that this version knows in {run / TERMS}, found {found!r}.")
    return cast("Engine | None", found)


def expect_attempts(run: Path, manifest: RunManifest, rounds: Sequence[RoundMetrics]) -> None:
    """Refuses a run of which nobody can tell which sums it has opened.

    Args:
        run: the run directory.
        manifest: where it came from: an earlier version kept no attempts.
        rounds: every committed one, ascending; a round is begun when the one before is committed.

    Raises:
        IntegrityFailed: it kept no attempts, or they are ahead of its rounds.
    """
    if not (run / ATTEMPTS).exists():
        version = manifest.versions.get("fedpeft", "that began it")
        raise IntegrityFailed(
            f"Expected {run / ATTEMPTS}, found none: this run was begun by an earlier version, which did not "
            f"keep its promises across a restart. Finish it with fedpeft {version}, or start a new run."
        )
    begun, _ = read_attempts(run)
    last = rounds[-1].round if rounds else 0
    if begun > last + 1:
        raise IntegrityFailed(
            f"Expected {run / 'metrics.jsonl'} with the round before {begun}, which this run has begun, found rounds "
            f"to {last}: rows are lost; restore it from a copy, or start a new run."
        )


def read_attempts(run: Path) -> tuple[RoundId, int]:
    """The last round that was begun, and the last attempt at it."""
    try:
        found = _read(run / ATTEMPTS)
        return RoundId(int(found["round"])), int(found["attempt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFailed(
            f"Expected {run / ATTEMPTS} as this run wrote it, found another; restore it from a copy that is "
            "not older than the last round, or start a new run."
        ) from error


def write_attempts(run: Path, round_id: RoundId, attempt: int) -> None:
    """Keeps, durably, which attempt was begun last."""
    write_file(run / ATTEMPTS, json.dumps({"round": round_id, "attempt": attempt}).encode())


def _read(path: Path) -> Any:
    """The JSON that lies there; whatever else, an ``OSError`` or a ``ValueError``."""
    return loads(path.read_bytes(), LIMITS)
