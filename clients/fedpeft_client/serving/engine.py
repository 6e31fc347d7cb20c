"""One thread that computes: it takes what waits for one model, up to a batch, and hands answers back as they come.

Requests of several adapters on a model are rows of one batch. What waits is bounded; what nobody waits for any more is
left out, also in the middle of its answer.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedpeft.clock import Clock, SystemClock
from fedpeft.data import Record
from fedpeft.data.prompts import conversation_tokens, question_tokens
from fedpeft.errors import DataInvalid, FedpeftError, ResourceMissing
from fedpeft.tasks import Convention
from fedpeft_client.inference import Answerer, Choice, Piece, Sampling
from fedpeft_client.inference.outputs import answer_of

if TYPE_CHECKING:
    from fedpeft_client.serving.registry import AdapterRegistry, BatchedModel, Served

__all__ = ["Busy", "Embedded", "Engine", "Job", "Question"]

_LOG = logging.getLogger(__name__)
ROWS_AT_ONCE = 16
GATHER_S = 0.005
"""How long a batch waits for more rows after its first: less than one token takes."""


class Busy(ResourceMissing):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a language model is asked.

    Args:
        row: as in a data file (``Answerer.tokens_of``).
        how: the answer is drawn.
        stop: texts before which it ends.
        plain: whether a text is continued as it stands, even after training on conversations.
    """

    row: Record
    how: Sampling
    stop: tuple[str, ...] = ()
    plain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A text as a vector (``Answerer.vectors``)."""

    values: list[float]
    tokens: int


Outcome = Piece | Choice | Embedded | FedpeftError | None
"""None: the row is complete."""


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One row of work.

    Args:
        served: the adapter.
        work: a question; or what to classify or embed: a text, or the two of a pair.
        kind: which of the three.
        deliver: takes outcomes, from the engine's thread; the last is None or an error.
        deadline_s: on the engine's monotonic clock.
    """

    served: "Served"
    work: Question | tuple[str, ...]
    kind: str
    deliver: Callable[[Outcome], None]
    deadline_s: float
    wanted: bool = True
    done: bool = field(default=False, init=False)


class Engine:
    """See the module. Close it.

    Args:
        registry: what is served.
        waiting: at most so many rows wait.
        clock: for deadlines.
    """

    def __init__(self, registry: "AdapterRegistry", *, waiting: int = 256, clock: Clock | None = None) -> None:
        self.registry = registry
        self.clock = clock or SystemClock()
        self._waiting: deque[Job] = deque()
        self._most = waiting
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._closing = False
        self.batches: list[int] = []
        self._thread = threading.Thread(target=self._work, name="serving", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let these rows wait: all of them or none.

        Raises:
            Busy: too many wait already.
        """
        with self._changed:
            if self._closing or len(self._waiting) + len(jobs) > self._most:
                raise Busy(f"Expected at most {self._most} waiting texts, found more; try again later.")
            self._waiting.extend(jobs)
            self._changed.notify()

    def call(self, work: Callable[[], object]) -> None:
        """Do something on the engine's thread, between two batches."""
        self._calls.put(work)
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Finish the batch that is computed; what waits is refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for job in self._waiting:
            job.deliver(Busy("Expected a server that stays, found one that ends; try again later."))

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return len(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._closing or not self._calls.empty()):
                    self._changed.wait()
                if self._closing:
                    return
            while not self._calls.empty():
                try:
                    self._calls.get()()
                except Exception:  # a reload that fails leaves what is served as it is
                    _LOG.exception("a change of what is served failed")
            if jobs := self._next():
                self.batches = [*self.batches[-99:], len(jobs)]
                self._compute(jobs)

    def _next(self) -> list[Job]:
        """Rows of one model and kind, the oldest first."""
        with self._changed:
            if len(self._waiting) < ROWS_AT_ONCE:
                self._changed.wait(GATHER_S)
            now, first = self.clock.monotonic_s(), None
            taken, left = list[Job](), deque[Job]()
            for job in self._waiting:
                if not job.wanted:
                    continue
                if job.deadline_s < now:
                    _finish(job, Busy("Expected an answer in time, found too many requests before it; try again."))
                    continue
                first = first or job
                alike = (job.served.batched, job.kind) == (first.served.batched, first.kind)
                (taken if alike and len(taken) < ROWS_AT_ONCE else left).append(job)
            self._waiting = left
            return taken

    def _compute(self, jobs: list[Job]) -> None:
        model = jobs[0].served.batched
        try:
            match jobs[0].kind:
                case "ask":
                    self._ask(model, jobs)
                case "class":
                    for job, choice in _classified(model, jobs):
                        job.deliver(choice)
                case _:
                    for job, vector in _embedded(model, jobs):
                        job.deliver(vector)
        except FedpeftError as refused:
            for job in jobs:
                _finish(job, refused)
        except Exception:
            _LOG.exception("a batch failed")
            for job in jobs:
                _finish(job, FedpeftError("The model failed on this batch; see the server's log."))
        for job in jobs:
            _finish(job, None)

    def _ask(self, model: "BatchedModel", jobs: list[Job]) -> None:
        asked, good = [], []
        for job in jobs:
            if not isinstance(job.work, Question):
                raise TypeError(f"Expected a question, found {type(job.work).__name__}.")
            try:
                tokens = _tokens(model.asked, job)
                model.asked.expect_room(tokens)
            except FedpeftError as refused:
                _finish(job, refused)
                continue
            asked.append((tokens, job.work))
            good.append(job)

        def is_wanted(row: int) -> bool:
            return good[row].wanted and good[row].deadline_s >= self.clock.monotonic_s()

        model.begin([job.served.place for job in good])
        questions, how = [tokens for tokens, _ in asked], [work.how for _, work in asked]
        stop = [work.stop for _, work in asked]
        for piece in model.asked.stream(questions, how, stop=stop, is_wanted=is_wanted):
            good[piece.row].deliver(piece)


def _finish(job: Job, outcome: FedpeftError | None) -> None:
    if not job.done:
        job.done = True
        job.deliver(outcome)


def _tokens(asked: Answerer, job: Job) -> Any:
    question = job.work
    if not isinstance(question, Question):
        raise TypeError("no question")
    tokenizer: Any = asked.tokenizer
    convention, row = job.served.convention, question.row
    if question.plain:
        how = Convention.PROMPT_COMPLETION if convention is Convention.MESSAGES else convention
        return question_tokens(str(row["prompt"]), how, tokenizer)
    turns: Any = row["messages"]
    if convention is Convention.MESSAGES:
        return conversation_tokens(turns, tokenizer)
    if len(turns) != 1 or turns[0]["role"] != "user":
        raise DataInvalid(
            f"Expected one turn of the user: this model was trained on {convention.value}, not on conversations; "
            f"found {len(turns)} turns."
        )
    return question_tokens(turns[0]["content"], convention, tokenizer)


def _classified(model: "BatchedModel", jobs: list[Job]) -> Iterator[tuple[Job, Choice]]:
    model.begin([job.served.place for job in jobs])
    for some, logits in model.asked.logits([_texts(job) for job in jobs], [job.served.longest for job in jobs]):
        for i, row in enumerate(some.rows):
            served = jobs[row].served
            line = logits[i][..., : len(served.outputs)]  # the batch is as wide as its widest head
            yield jobs[row], answer_of(line, served.target, served.outputs, some.texts[i][0], some.offsets[i])


def _embedded(model: "BatchedModel", jobs: list[Job]) -> Iterator[tuple[Job, Embedded]]:
    model.begin([job.served.place for job in jobs])
    texts, longest = [_texts(job) for job in jobs], [job.served.longest for job in jobs]
    for row, values, tokens in model.asked.vectors(texts, longest):
        yield jobs[row], Embedded(values=values, tokens=tokens)


def _texts(job: Job) -> tuple[str, ...]:
    if isinstance(job.work, Question):
        raise TypeError("Expected texts, found a question.")
    return job.work
