"""The runs that this device was asked to join: what each asked for, what its owner said, and what left the device.

::

    HOME/runs/NAME/question.json   the plan as first asked for, and what of it would leave; written by the agent
    HOME/runs/NAME/decision.json   the owner's yes or no; written by `fedpeft client runs approve|refuse`
    HOME/runs/NAME/left            rounds, bytes and privacy of what has left; written by the agent, before it leaves
    HOME/runs/open                 the run and the round at work; written by the agent

NAME is a hash of the run's id, which the coordinator chooses. Each file has one writer and is replaced whole, so agent,
worker and the owner's commands need no lock among them. The last two are written in every exchange of a round
(``fedpeft.kept_file``); of a device of before them ``left.json`` is read until ``left`` is there.

Guarantees (tests/client/test_site_runs.py):
    - a yes holds for one plan: test_a_yes_holds_for_one_plan_and_a_changed_one_asks_again;
    - a no holds for the run: test_a_no_holds_for_the_run_whatever_its_plan;
    - no number of questions removes an answer: test_a_flood_of_questions_removes_no_answer.
"""

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter

from fedpeft import bounded_json
from fedpeft.clock import Clock
from fedpeft.errors import ApprovalPending, IntegrityFailed, PolicyRefused, ResourceMissing
from fedpeft.files import PRIVATE, write_file
from fedpeft.kept_file import KeptFile
from fedpeft.round.plan import LearningPlan
from fedpeft_client.run_question import Question, digest_of

__all__ = ["Answer", "Decision", "RunRecord", "SentRecord", "SiteRuns"]

UNANSWERED = 64
"""Questions that wait at once; with more, those asked first are forgotten, and asked again when their run asks."""
LONGEST = bounded_json.JsonLimits(max_bytes=2**24)
"""Of a file here: as large as a plan with all of its labels may be."""

Answer = Literal["approved", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the owner said.

    Args:
        run_id: of which run.
        plan_sha256: of the plan that was shown.
        answer: a yes is for that plan, a no for the run.
        at: when, UTC, ISO 8601.
        by: the account of this machine that said it.
    """

    run_id: str
    plan_sha256: str
    answer: Answer
    at: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRecord:
    """What has left this device for one run.

    Args:
        run_id: which.
        first, last: when, UTC, ISO 8601.
        rounds: in which a masked input left.
        last_round: the newest of them; 0: none.
        bytes_up: payload bytes of all answers, bytes_down of all requests.
        epsilon, delta: what an example of this device has lost, by its own ledger; None outside example-level privacy.
    """

    run_id: str
    first: str = ""
    last: str = ""
    rounds: int = 0
    last_round: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    epsilon: float | None = None
    delta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that is known of one run; each part may be missing."""

    question: Question | None
    decision: Decision | None
    left: SentRecord | None

    @property
    def run_id(self) -> str:
        """The run's id."""
        part = self.question or self.decision or self.left
        return "" if part is None else part.run_id

    @property
    def waits(self) -> bool:
        """Whether the owner has not answered this plan, nor refused its run."""
        asked, said = self.question, self.decision
        if asked is None or not asked.needs_yes:
            return False
        return said is None or (said.answer == "approved" and said.plan_sha256 != asked.plan_sha256)


T = TypeVar("T")
_QUESTION, _DECISION, _LEFT = TypeAdapter(Question), TypeAdapter(Decision), TypeAdapter(SentRecord)
_OPEN = TypeAdapter(tuple[str, int])
_LASTING = ("decision.json", "left", "left.json")


class SiteRuns:
    """The folder.

    Args:
        folder: HOME/runs; made when it is first needed.
        clock: for the time of each entry.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._kept: dict[Path, KeptFile] = {}

    def expect_approved(self, plan: LearningPlan, *, ask: bool) -> None:
        """Returns when the owner has nothing against this plan.

        Args:
            plan: the run's, whose digest the coordinator has signed.
            ask: whether the owner must have said yes.

        Raises:
            PolicyRefused: the owner has refused this run.
            ApprovalPending: there is no answer to this plan yet.
            IntegrityFailed: the answer's file was damaged.
        """
        decision = self._read(plan.run_id, "decision", _DECISION)
        if self.is_refused(plan.run_id):
            raise PolicyRefused(f"Expected a run that this site has not refused, found {plan.run_id}.")
        if ask and (decision is None or decision.plan_sha256 != digest_of(plan)):
            raise ApprovalPending(
                f"Expected the owner's approval of {plan.run_id}, found none for this plan; "
                "see `fedpeft client runs pending`."
            )

    def has_asked(self, plan: LearningPlan, *, needs_yes: bool) -> bool:
        """Whether what this plan asks for is kept already."""
        known = self._read(plan.run_id, "question", _QUESTION)
        return known is not None and (known.plan_sha256, known.needs_yes) == (digest_of(plan), needs_yes)

    def ask(self, question: Question) -> bool:
        """Keep what a run asks for; whether it is new. Of unanswered questions the oldest make room."""
        if (known := self._read(question.run_id, "question", _QUESTION)) is not None:
            if (known.plan_sha256, known.needs_yes) == (question.plan_sha256, question.needs_yes):
                return False
        else:
            self._make_room()
        self._write(question.run_id, "question", question)
        return True

    def decide(self, run: str, answer: Answer, *, plan: str, by: str) -> Decision:
        """Keep the owner's answer.

        Args:
            run: the run's id.
            answer: yes or no.
            plan: the beginning of the digest of the plan that the owner has seen; empty for a no: any.
            by: who answers.

        Raises:
            PolicyRefused: the run was refused before, which is for good.
            ResourceMissing: the run asks for another plan by now.
        """
        record = self.record(run)
        if record.decision is not None and record.decision.answer == "refused":
            raise PolicyRefused(
                f"Expected a run without an answer, found {run} refused on {record.decision.at}; "
                "that is for good: its operator may submit it anew, under another id."
            )
        asked = "" if record.question is None else record.question.plan_sha256
        if answer == "approved" and not (plan and asked.startswith(plan)):
            raise ResourceMissing(
                f"Expected plan {plan[:16] or '(none)'} of {run}, found that it asks for {asked[:16] or 'nothing'}; "
                "see `fedpeft client runs pending`."
            )
        decision = Decision(run_id=run, plan_sha256=asked, answer=answer, at=self._now(), by=by)
        self._write(run, "decision", decision)
        return decision

    def is_refused(self, run_id: str) -> bool:
        """Whether the owner has refused the run."""
        decision = self._read(run_id, "decision", _DECISION)
        return decision is not None and decision.answer == "refused"

    def begin(self, run_id: str, round_id: int) -> None:
        """The round at work is this one: later requests do not name theirs, and this process may end meanwhile."""
        if self.begun() != (run_id, round_id):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file(self._folder / "open").write(json.dumps([run_id, round_id]).encode())

    def begun(self) -> tuple[str, int]:
        """The run and the round at work; an empty name before the first."""
        found = _parsed(self._file(self._folder / "open"), _OPEN)
        return ("", 0) if found is None else found

    def add(self, left: SentRecord) -> None:
        """Add to what has left for a run: rounds and bytes of ``left``, its newest round and loss of privacy."""
        known, now = self._left(left.run_id), self._now()
        if known is None:
            known = SentRecord(run_id=left.run_id, first=now, last=now)
        loss = left if left.epsilon is not None else known
        total = replace(
            known,
            last=now,
            rounds=known.rounds + (left.last_round > known.last_round),
            last_round=max(known.last_round, left.last_round),
            bytes_up=known.bytes_up + left.bytes_up,
            bytes_down=known.bytes_down + left.bytes_down,
            epsilon=loss.epsilon,
            delta=loss.delta,
        )
        self._file(self._made(left.run_id) / "left").write(json.dumps(asdict(total)).encode())

    def record(self, run_id: str) -> RunRecord:
        """What is known of one run."""
        return RunRecord(
            question=self._read(run_id, "question", _QUESTION),
            decision=self._read(run_id, "decision", _DECISION),
            left=self._left(run_id),
        )

    def records(self) -> tuple[RunRecord, ...]:
        """All runs, by when they were first heard of; damaged files count as missing."""
        found = [
            RunRecord(
                question=_parsed(KeptFile(folder / "question.json"), _QUESTION),
                decision=_parsed(KeptFile(folder / "decision.json"), _DECISION),
                left=_parsed(KeptFile(_account(folder)), _LEFT),
            )
            for folder in self._folder.glob("[0-9a-f]*/")
        ]
        return tuple(sorted((one for one in found if one.run_id), key=_since))

    def _make_room(self) -> None:
        """Forget the oldest questions of runs without an answer or an account of what has left, even a damaged one."""
        folders = [self._of(record.run_id) for record in self.records()]
        idle = [one for one in folders if not any((one / part).exists() for part in _LASTING)]
        for folder in idle[: max(0, len(idle) - UNANSWERED + 1)]:
            shutil.rmtree(folder, ignore_errors=True)

    def _left(self, run_id: str) -> SentRecord | None:
        """What has left for a run; None: nothing.

        Raises:
            IntegrityFailed: its file is damaged, or of another run.
        """
        folder = self._of(run_id)
        found = _expected(self._file(_account(folder)), _LEFT)
        if found is not None and found.run_id != run_id:
            raise IntegrityFailed(f"Expected in {folder} what has left for {run_id}, found it for {found.run_id}.")
        return found

    def _of(self, run_id: str) -> Path:
        return self._folder / hashlib.sha256(run_id.encode()).hexdigest()[:32]

    def _file(self, path: Path) -> KeptFile:
        return self._kept.setdefault(path, KeptFile(path))

    def _read(self, run_id: str, part: str, kind: TypeAdapter[T]) -> T | None:
        return _expected(KeptFile(self._of(run_id) / f"{part}.json"), kind)

    def _write(self, run_id: str, part: str, value: Question | Decision) -> None:
        text = json.dumps(asdict(value), indent=2)
        write_file(self._made(run_id) / f"{part}.json", f"{text}\n".encode(), mode=PRIVATE)

    def _made(self, run_id: str) -> Path:
        folder = self._of(run_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _now(self) -> str:
        return self._clock.utc().isoformat(timespec="seconds")


def _account(folder: Path) -> Path:
    """Of what has left."""
    return folder / ("left" if (folder / "left").exists() else "left.json")


def _expected(file: KeptFile, kind: TypeAdapter[T]) -> T | None:
    """A file's content; None if it is missing.

    Raises:
        IntegrityFailed: it is damaged, or cannot be read.
    """
    try:
        content = file.read()
        return None if content is None else kind.validate_python(bounded_json.loads(content, LONGEST))
    except (OSError, ValueError, IntegrityFailed) as error:  # pydantic's and our own refusals are ValueErrors
        told = f"Expected {file.path} as it was written, found another; restore or remove it."
        raise IntegrityFailed(told) from error


def _parsed(file: KeptFile, kind: TypeAdapter[T]) -> T | None:
    """A file's content; None if it is missing or damaged."""
    with contextlib.suppress(IntegrityFailed):
        return _expected(file, kind)
    return None


def _since(record: RunRecord) -> tuple[str, str]:
    times = [record.question.at if record.question else "", record.left.first if record.left else ""]
    return min((time for time in times if time), default=record.decision.at if record.decision else ""), record.run_id
