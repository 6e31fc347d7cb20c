"""A run from its first round to its last: select, run a round, aggregate, commit, publish; again.

The same loop drives the simulation and the deployed coordinator; a transport and a run directory are all
that differs. Invariants: nothing is published before it is committed; a committed round never changes; an
aborted attempt changes nothing and is made again; once the survivors of a round were put to the devices it ends
in their sum or burnt, whatever crashes (docs/adr/0011-one-sum-per-round.md); every random choice follows from the
run's seed and the round, so a resumed run goes on as if it had never stopped.
"""

from collections.abc import Callable, Sequence

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.clock import Clock
from fedpeft.config import RunConfig
from fedpeft.entropy import Entropy, os_entropy
from fedpeft.errors import IntegrityFailed, QuorumMissed
from fedpeft.ids import RoundId
from fedpeft.privacy import NoiseTerms
from fedpeft.round.coordinator import OpenSum, SecureSum, resume_round, run_round
from fedpeft.round.events import Event, EventKind, Observer
from fedpeft.round.messages import FailureReason
from fedpeft.round.metrics import TRAIN_LOSS
from fedpeft.round.pending import load_note, load_round
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import Member, RoundOutcome, RoundTask
from fedpeft.round.transport import Transport
from fedpeft.round.work import work_digest
from fedpeft.wire import encode
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.run.aggregation import Aggregation, Individuals
from fedpeft_server.run.committing import AfterRound, Committing, Progress, Publish, go_on
from fedpeft_server.run.pending import Kept
from fedpeft_server.run.pending_store import ChargingPendingStore
from fedpeft_server.run.privacy_statements import hear_statements
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.selection import Selection
from fedpeft_server.run.verdict import is_done, kept_round, learning_rate_scale

__all__ = ["FOR_HOURS_S", "Federation", "Publish"]

FOR_HOURS_S = 86_400.0
"""A round that lacks nobody but devices whose sites take part at other hours is tried for a day before it counts."""


class Federation:
    """One run of one plan over one transport.

    Args:
        config: the run; labels resolved.
        plan: what devices are asked to learn.
        run: where it is recorded.
        transport: how devices are reached.
        identity: the coordinator's signing key.
        clock: for deadlines and durations.
        observe: told of every transition.
        publish: called with each committed state.
        entropy: for keys.
        open_sum: the secure sum (see ``run_round``).
        individuals: single devices' deltas, for rules that need them (simulation without secure sum).
        privacy: noise and ledger; exactly when the run's ``privacy.unit`` is "client".
        before_attempt: called before devices are selected: waits for them, or raises to end the run.
        after_round: may end the run; what is kept then follows from the rows, as after ``rounds.patience``.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: LearningPlan,
        run: RunDirectory,
        transport: Transport,
        *,
        identity: secagg.IdentityKey,
        clock: Clock,
        observe: Observer,
        publish: Publish,
        entropy: Entropy = os_entropy,
        open_sum: OpenSum = SecureSum,
        individuals: Individuals | None = None,
        privacy: ClientPrivacy | None = None,
        before_attempt: Callable[[RoundId], None] = lambda round_id: None,
        after_round: AfterRound = go_on,
    ) -> None:
        if (config.privacy.unit == "client") != (privacy is not None):
            raise TypeError('a ClientPrivacy exactly when privacy.unit = "client"')
        if privacy is not None:  # devices hold the run to its noise
            promised = config.privacy.model_copy(update={"noise_multiplier": privacy.plan.noise_multiplier})
            plan = plan.model_copy(update={"client_privacy": promised})
        self._config, self._plan, self._run, self._transport = config, plan, run, transport
        self._identity, self._clock, self._entropy, self._open_sum = identity, clock, entropy, open_sum
        self._publish = publish
        self._aggregation = Aggregation(config, plan, individuals, record=run.record)
        self._committing = Committing(config, run, self._aggregation, privacy, publish, self._tell)
        self._watch, self._privacy, self._before_attempt = observe, privacy, before_attempt
        self._after_round = after_round
        self._selection = Selection(plan, config.rounds, transport, run.record)

    def train(self, initial: AdapterState) -> AdapterState:
        """Run every round that is not committed yet, then the last evaluation; returns the state that is kept.

        That is the best one by ``rounds.metric``, and the last where nothing is evaluated (``verdict``).

        Raises:
            QuorumMissed: ``rounds.max_failures`` attempts in a row were aborted, or so many rounds burnt.
            RunFailed: a sum could not be applied.
            BudgetExhausted: another round would go past the privacy budget.
        """
        progress = self._committing.resume(initial, self._plan, self._identity.public)
        # One round more evaluates the final state, where anything may be measured.
        last = self._config.rounds.count + (self._config.privacy.unit == "none")
        while progress.done < last and not is_done(self._run.rounds, self._config.rounds):
            progress = self._round(RoundId(progress.done + 1), progress)
            if progress.burnt >= self._config.rounds.max_failures:
                raise QuorumMissed(
                    f"Expected a sum in one of the last {progress.burnt} rounds, found them all burnt: devices "
                    f"vanished after they had sent their inputs. Everything up to round {progress.done} is committed; "
                    f"fix the devices, then resume {self._run.path}."
                )
            if why := self._after_round(self._run.rounds[-1]):
                self._run.record("run.stopped", round_id=RoundId(progress.done), detail={"reason": why})
                break
        state = self._kept(initial, progress)
        self._publish("final", state)
        return state

    def _kept(self, initial: AdapterState, progress: Progress) -> AdapterState:
        round_id = kept_round(self._run.rounds, self._config.rounds)
        if round_id is None:
            return progress.state
        if round_id == 0:
            return initial
        return AdapterState.from_safetensors(initial.spec, self._run.state_after(round_id))

    def _round(self, round_id: RoundId, progress: Progress) -> Progress:
        """One round, attempted until its survivors are put to the devices, once; then it ends in a sum or is burnt."""
        kept = self._run.pending.read()
        if kept is not None:
            return self._go_on(kept, progress)
        rounds, excluded, why = self._config.rounds, set(self._unreliable()), list[str]()
        needed = max(rounds.min_devices, secagg.MIN_COHORT_FLOOR)
        until_s = self._clock.monotonic_s() + FOR_HOURS_S
        while len(why) < rounds.max_failures:
            self._before_attempt(round_id)
            started = self._clock.monotonic_s()
            members, target_cohort = self._selection.select(round_id, excluded)
            if excluded and len(members) < needed:  # the network failed rather than the devices: ask them all again
                excluded.clear()
                members, target_cohort = self._selection.select(round_id, excluded)
            if len(members) < needed:
                why.append(f"{len(members)} devices available, {rounds.min_devices} needed")
                self._tell(EventKind.ABORTED, round_id, why[-1])
                continue
            attempt = self._run.begin_attempt(round_id)
            self._tell(EventKind.ROUND_STARTED, round_id, f"attempt {attempt}: asking {len(members)} devices")
            task = self._task(round_id, attempt, progress, members, target_cohort)
            outcome = self._attempt(task, progress.state, members)
            hear_statements(self._run, round_id, outcome, needed=needed)
            problem = self._problem(outcome)
            if not problem or outcome.is_final or _masked_before(task, outcome):
                return self._ended(task, progress, outcome, members, started)
            if not (_waits_for_hours(outcome) and self._clock.monotonic_s() < until_s):
                why.append(problem)
            if isinstance(outcome.result, secagg.Aborted):
                blamed = {outcome.participants[place] for place in outcome.result.blamed}
                excluded |= {name for name in blamed if not outcome.traffic[name].not_needed}
            self._tell(EventKind.ABORTED, round_id, problem)
        reasons = "; ".join(why)
        raise QuorumMissed(
            f"Round {round_id} was aborted {len(why)} times ({reasons}). Everything up to round {progress.done} is "
            f"committed; fix the devices, then resume {self._run.path}."
        )

    def _go_on(self, kept: Kept, progress: Progress) -> Progress:
        """Finish the round that was being opened when the coordinator died: with its survivors, or not at all."""
        round_id, pending = kept.round_id, load_round(kept.state, where=str(self._run.path / "pending"))
        if round_id != progress.done + 1 or round_id != pending.round_id:
            raise IntegrityFailed(
                f"Expected round {progress.done + 1} in {self._run.path / 'pending'}, found {round_id}; restore the "
                "run directory from one copy."
            )
        self._before_attempt(round_id)
        started = self._clock.monotonic_s()
        members = self._selection.found_again(pending.members)
        kept_sum = SecureSum.resumed(pending.summing)
        task = self._task(round_id, pending.attempt, progress, members, len(members), noise=kept_sum.spec.noise)
        self._expect_same(kept_sum, task, progress)
        self._tell(EventKind.ROUND_STARTED, round_id, f"attempt {pending.attempt} goes on: its survivors were fixed")
        store = self._pending_store(task, members)
        store.charge()  # unless it was
        outcome = resume_round(
            pending,
            [load_note(note) for note in kept.notes],
            task,
            members,
            self._transport,
            rounds=self._config.rounds,
            observe=self._observe,
            store=store,
        )
        hear_statements(self._run, round_id, outcome, needed=0)  # what was stated before the coordinator died
        return self._ended(task, progress, outcome, members, started)

    def _expect_same(self, kept: SecureSum, task: RoundTask, progress: Progress) -> None:
        """Refuses to open a sum of other work than this run would ask for now: its next state would be wrong.

        Raises:
            IntegrityFailed: names what differs.
        """
        now = {"work": work_digest(encode(task.work(progress.state)))}
        if kept.signed_by(self._identity.public):  # a simulation is another coordinator at each start
            now["history"] = task.past.head
        differs = [name for name, value in now.items() if getattr(kept.spec, name) != value]
        if differs:
            raise IntegrityFailed(
                f"Expected the terms that were kept for round {task.round_id} to be those of this run, found another "
                f"{' and '.join(differs)}; resume with the version and the files that began it."
            )

    def _problem(self, outcome: RoundOutcome) -> str:
        """Why the run cannot go on with what came of an attempt; empty when it can."""
        match outcome.result:
            case secagg.Summed() as summed if TRAIN_LOSS in summed.skipped:
                return f"nothing could be summed: {summed.skipped[TRAIN_LOSS]}"
            case secagg.Summed() as summed:
                few = len(summed.survivors) < self._config.rounds.min_devices
                return f"{len(summed.survivors)} devices finished, {self._config.rounds.min_devices} needed" * few
            case secagg.Aborted() as aborted:
                return f"{aborted.reason.value}: {aborted.detail}"

    def _ended(
        self, task: RoundTask, progress: Progress, outcome: RoundOutcome, members: Sequence[Member], started: float
    ) -> Progress:
        """Commit the sum, or the round without one."""
        seconds, problem = self._clock.monotonic_s() - started, self._problem(outcome)
        if isinstance(outcome.result, secagg.Summed) and not problem:
            population = self._selection.population
            return self._committing.commit(
                task, progress, outcome, outcome.result, members, seconds=seconds, population=population
            )
        return self._committing.burn(
            task, progress, outcome, problem, members, seconds=seconds, population=self._selection.population
        )

    def _unreliable(self) -> tuple[str, ...]:
        """Who fell out of the last round, if that was burnt: it is better made without them."""
        last = self._run.rounds[-1] if self._run.rounds else None
        return tuple(last.rejected) if last is not None and last.burnt else ()

    def _task(
        self,
        round_id: RoundId,
        attempt: int,
        progress: Progress,
        members: Sequence[Member],
        target_cohort: int,
        *,
        noise: NoiseTerms | None = None,
    ) -> RoundTask:
        """What this attempt asks of these members, the first ``target_cohort`` of whom make the round.

        Args:
            noise: of an attempt that goes on: it is paid for, and its terms are signed.
        """
        private, training = self._privacy, round_id <= self._config.rounds.count
        task = RoundTask(
            round_id=round_id,
            attempt=attempt,
            plan=self._plan,
            past=progress.past,
            published=progress.published,
            noise=noise or (private.terms(len(members)) if private else None),
            scale=learning_rate_scale(self._run.rounds),
            target_cohort=target_cohort if training and target_cohort < len(members) else None,
        )
        return self._aggregation.asked(task, progress.state, progress.server)

    def _attempt(self, task: RoundTask, state: AdapterState, members: Sequence[Member]) -> RoundOutcome:
        rounds = self._config.rounds
        if task.round_id > rounds.count:  # the last evaluation is of everything that is held out
            rounds = rounds.model_copy(update={"fit_deadline_s": rounds.evaluation_deadline_s})
        return run_round(
            task,
            state,
            members,
            self._transport,
            rounds=rounds,
            identity=self._identity,
            entropy=self._entropy,
            observe=self._observe,
            open_sum=self._open_sum,
            store=self._pending_store(task, members),
        )

    def _pending_store(self, task: RoundTask, members: Sequence[Member]) -> ChargingPendingStore:
        label = f"{self._plan.run_id} round {task.round_id}"  # whatever the attempt: one sum per round is opened
        return ChargingPendingStore(self._run, task.round_id, self._privacy, label=label, devices=len(members))

    def _observe(self, event: Event) -> None:
        """Record, then show."""
        detail: dict[str, str | int | float | bool] = {"detail": event.detail} if event.detail else {}
        if event.stage is not None:
            detail["stage"] = event.stage.value
        if event.kind is EventKind.ANSWERED:
            detail |= {"seconds": round(event.seconds, 3), "bytes_up": event.bytes_up, "bytes_down": event.bytes_down}
        self._run.record(f"round.{event.kind.value}", round_id=event.round_id, client=event.device, detail=detail)
        self._watch(event)

    def _tell(self, kind: EventKind, round_id: RoundId, detail: str) -> None:
        self._observe(Event(kind=kind, round_id=round_id, detail=detail))


def _masked_before(task: RoundTask, outcome: RoundOutcome) -> bool:
    """Whether devices sit this round out because they have masked for it under noise, before a restart of ours."""
    refused = FailureReason.PROTOCOL.value in {one.failure for one in outcome.traffic.values()}
    return task.noise is not None and task.attempt > 1 and refused


def _waits_for_hours(outcome: RoundOutcome) -> bool:
    """Whether whoever failed only said that its site takes part at other hours."""
    return {one.failure for one in outcome.traffic.values() if one.failure} == {FailureReason.LATER.value}
