"""How a round ends in the run directory: with its sum, aggregated; or burnt, with the state as it was.

The order is the same for both: make durable, then publish, then tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import ServerState, between_rounds
from fedpeft.aggregate.head_start import measures_head, with_unseen_rows
from fedpeft.config import RunConfig
from fedpeft.errors import IntegrityFailed
from fedpeft.ids import RoundId
from fedpeft.round.events import EventKind
from fedpeft.round.history import Past
from fedpeft.round.linking import burnt_link, link_of, summed_blocks
from fedpeft.round.messages import BlockDigest, BlockPayload, Link
from fedpeft.round.metrics import in_task_units
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import Member, PublishedSums, RoundOutcome, RoundTask
from fedpeft.round.transition import is_exact
from fedpeft.round.work import state_digest
from fedpeft.wire import WireError, decode, encode
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.run.aggregation import Aggregation
from fedpeft_server.run.metrics_row import burnt_row, round_row, sentence
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_directory import AdapterSlot, RunDirectory
from fedpeft_server.run.verdict import new_warnings

__all__ = ["AfterRound", "Committing", "Progress", "Publish", "go_on"]

SUMS_FILE = "sums.bin"
"""The unmasked words of the round, in a checkpoint of a run whose steps devices follow."""

SERVER_FILE = "server.safetensors"
"""Moments and controls, in a checkpoint of a run that has any."""

Publish = Callable[[AdapterSlot, AdapterState], None]
"""What to do with a committed state, e.g. export it as an adapter."""

AfterRound = Callable[[RoundMetrics], str]
"""Told of each committed row; answers why the run is to end with it, or nothing."""

Tell = Callable[[EventKind, RoundId, str], None]
"""What happened, in which round, in words."""


def go_on(_row: RoundMetrics) -> str:
    """Never ends a run."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands between two rounds.

    ``best_loss`` belongs to the best state evaluated so far; ``burnt`` counts the rounds without a sum since the last
    one with one, or since this process began.
    """

    state: AdapterState
    server: ServerState
    past: Past
    published: PublishedSums | None
    done: int
    best_loss: float | None
    burnt: int = 0


class Committing:
    """What makes a run's rounds durable.

    Args:
        config: the run.
        run: where it is recorded.
        aggregation: the run's rule.
        privacy: noise and ledger, under client-level privacy.
        publish: called with each committed state.
        tell: told of each committed round.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        aggregation: Aggregation,
        privacy: ClientPrivacy | None,
        publish: Publish,
        tell: Tell,
    ) -> None:
        self._config, self._run, self._aggregation = config, run, aggregation
        self._privacy, self._publish, self._tell = privacy, publish, tell

    def resume(self, initial: AdapterState, plan: LearningPlan, coordinator: bytes) -> Progress:
        """Where the run stands: at its last commit, or at ``initial``.

        Args:
            plan: what devices are asked to learn.
            coordinator: its public key, which the run's history begins with.

        Raises:
            IntegrityFailed: the run began with another plan or state.
        """
        first = state_digest(initial.digests)
        self._run.expect_terms(plan.to_json(), first.hex())
        past = Past.begun(plan, first, coordinator)
        for row in self._run.rounds:
            past = past.then(_link_in(row))
        commit = self._run.last_commit()
        if commit is None:
            return Progress(state=initial, server=ServerState(), past=past, published=None, done=0, best_loss=None)
        state = AdapterState.from_safetensors(initial.spec, commit.state)
        self._publish("latest", state)  # the crash may have come between the commit and this
        if self._privacy:
            self._privacy.restore(commit.server_state)
        best = commit.server_state.get("best_loss")
        server = ServerState.from_safetensors(commit.extra.get(SERVER_FILE, b""))
        best_loss = best if isinstance(best, float) else None
        sums = commit.extra.get(SUMS_FILE)
        return Progress(
            state=state,
            server=server,
            past=past,
            published=None if sums is None else decode(sums, PublishedSums),
            done=commit.round_id,
            best_loss=best_loss,
        )

    def commit(
        self,
        task: RoundTask,
        progress: Progress,
        outcome: RoundOutcome,
        summed: secagg.Summed,
        members: Sequence[Member],
        *,
        seconds: float,
        population: int,
    ) -> Progress:
        """Aggregate, make durable, then publish: in this order.

        The best state, which the round began with, is published first: after the commit its checkpoint may be gone.
        """
        round_id = task.round_id
        if self._privacy:
            measured = in_task_units(self._privacy.measured(task.noise, summed), self._config.task)
        else:
            measured = self._aggregation.measured(task, summed)
        state, server = progress.state, progress.server
        means = task.train and measures_head(state.spec, self._config.adapter, round_id)
        if task.train:
            state, server = self._aggregation.advance(
                task,
                state,
                server,
                outcome,
                summed,
                population=population,
                # A fixed denominator: how many were asked, which nobody's data decides.
                fixed_weight=len(members) if self._privacy else None,
            )
            if means and round_id > 1 and state is progress.state:
                means = False  # nothing was summed: the head that is there is no sum of means
            else:
                state = between_rounds(state, self._config.adapter, round_id)
                if means and round_id > 1:
                    state = with_unseen_rows(progress.state, state)
        # A noised loss counts nobody, and its least value is more luck than a good state.
        counted = measured.loss if measured.evaluators else None
        is_best = counted is not None and (progress.best_loss is None or counted < progress.best_loss)
        link = link_of(task, outcome.participants, summed, state=state_digest(state.digests), population=population)
        row = replace(round_row(round_id, outcome, summed, measured, members, seconds=seconds), link=encode(link).hex())
        if is_best:
            self._publish("best", progress.state)
        published = _published(task, progress.state, summed)
        extra = {SERVER_FILE: memory} if (memory := server.to_safetensors()) else {}
        extra |= {} if published is None else {SUMS_FILE: encode(published)}
        best_loss = measured.loss if is_best else progress.best_loss
        clip = self._privacy.after(task.noise, summed) if self._privacy else {}
        self._run.commit(round_id, state.to_safetensors(), {"best_loss": best_loss, **clip}, row, extra)
        self._publish("latest", state)
        warnings = new_warnings(self._run.rounds, self._config)
        told = " ".join((sentence(row), *warnings))
        self._tell(EventKind.COMMITTED, round_id, "class means for the head; " * means + told)
        return Progress(
            state=state,
            server=server,
            past=progress.past.then(link),
            published=published,
            done=round_id,
            best_loss=best_loss,
        )

    def burn(
        self,
        task: RoundTask,
        progress: Progress,
        outcome: RoundOutcome,
        problem: str,
        members: Sequence[Member],
        *,
        seconds: float,
        population: int,
    ) -> Progress:
        """The round is used up without a sum: the state stays, and no device is asked for another sum of it."""
        link = burnt_link(task, state=state_digest(progress.state.digests), devices=len(members), population=population)
        row = replace(burnt_row(task.round_id, outcome, problem, members, seconds=seconds), link=encode(link).hex())
        extra = {SERVER_FILE: memory} if (memory := progress.server.to_safetensors()) else {}
        clip = self._privacy.kept(task.noise) if self._privacy else {}
        state = progress.state.to_safetensors()
        self._run.commit(task.round_id, state, {"best_loss": progress.best_loss, **clip}, row, extra)
        self._tell(EventKind.BURNT, task.round_id, sentence(row))
        return replace(
            progress, past=progress.past.then(link), published=None, done=task.round_id, burnt=progress.burnt + 1
        )


def _published(task: RoundTask, before: AdapterState, summed: secagg.Summed) -> PublishedSums | None:
    """The sums from which devices make the next state themselves; None where that cannot be had to the bit."""
    if not is_exact(task.plan, before.spec, task.round_id):
        return None
    return PublishedSums(
        before=tuple(BlockDigest(block_id=name, sha256=sha256) for name, sha256 in before.digests.items()),
        sums=tuple(BlockPayload(block_id=name, values=block.words) for name, block in summed_blocks(summed).items()),
    )


def _link_in(row: RoundMetrics) -> Link:
    """The link that was committed with a round.

    Raises:
        IntegrityFailed: it has none, or another round's.
    """
    try:
        link = decode(bytes.fromhex(row.link), Link)
    except (ValueError, WireError) as error:
        raise IntegrityFailed(
            f"Expected the link of round {row.round} in metrics.jsonl, found none of this version of fedpeft; finish "
            "the run with the version that began it, or start a new one."
        ) from error
    if link.round_id != row.round:
        raise IntegrityFailed(f"Expected the link of round {row.round} in its row, found that of {link.round_id}.")
    return link
