"""A run from its first round to its last: select, run a round, aggregate, commit, publish; again.

The same loop drives the simulation and the deployed coordinator; a transport and a run directory are all
that differs. Invariants: nothing is published before it is committed; a committed round never changes; an
aborted round changes nothing and is tried again; every random choice follows from the run's seed and the
round, so a resumed run goes on exactly as if it had never stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import ServerState, between_rounds
from fedpeft.aggregate.head_start import measures_head
from fedpeft.clock import Clock
from fedpeft.config import RunConfig
from fedpeft.config.derived import invited_devices, wanted_devices
from fedpeft.entropy import Entropy, generator, os_entropy
from fedpeft.errors import QuorumMissed
from fedpeft.ids import RoundId
from fedpeft.round.coordinator import OpenSum, SecureSum, run_round
from fedpeft.round.events import Event, EventKind, Observer
from fedpeft.round.messages import Profile, ProfileRequest
from fedpeft.round.metrics import METRICS, totals
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.task import Member, RoundOutcome, RoundTask, each_once
from fedpeft.round.transport import Stage, Transport
from fedpeft.wire import WireError, decode, encode
from fedpeft_server.aggregation import Aggregation, Individuals
from fedpeft_server.privacy import ClientPrivacy
from fedpeft_server.promises import hear_promises
from fedpeft_server.rows import round_row, sentence
from fedpeft_server.run_directory import AdapterSlot, RunDirectory

__all__ = ["Federation", "Publish"]

PROFILE_DEADLINE_S = 300.0
"""A device may have to start a process and load its libraries before it can answer at all."""
IDENTITY_SIZE = 32
SERVER_FILE = "server.safetensors"
"""Moments and controls, in a checkpoint of a run that has any."""

Publish = Callable[[AdapterSlot, AdapterState], None]
"""What to do with a committed state, e.g. export it as an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands between two rounds; ``best_loss`` belongs to the best state evaluated so far."""

    state: AdapterState
    server: ServerState
    done: int
    best_loss: float | None


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
    ) -> None:
        if (config.privacy.unit == "client") != (privacy is not None):
            raise TypeError('a ClientPrivacy exactly when privacy.unit = "client"')
        self._config, self._plan, self._run, self._transport = config, plan, run, transport
        self._identity, self._clock, self._entropy, self._open_sum = identity, clock, entropy, open_sum
        self._publish = publish
        self._aggregation = Aggregation(config, plan, individuals, record=run.record)
        self._watch, self._privacy, self._before_attempt = observe, privacy, before_attempt
        self._members: dict[int, Member] = {}

    def train(self, initial: AdapterState) -> AdapterState:
        """Run every round that is not committed yet, then the last evaluation; returns the final state.

        Raises:
            QuorumMissed: ``rounds.max_failures`` attempts in a row were aborted.
            RunFailed: a sum could not be applied.
            BudgetExhausted: another round would go past the privacy budget.
        """
        progress = self._resume(initial)
        # One round more evaluates the final state, where anything may be measured.
        last = self._config.rounds.count + (self._config.privacy.unit == "none")
        while progress.done < last:
            progress = self._round(RoundId(progress.done + 1), progress)
        self._publish("final", progress.state)
        return progress.state

    def _resume(self, initial: AdapterState) -> Progress:
        commit = self._run.last_commit()
        if commit is None:
            return Progress(state=initial, server=ServerState(), done=0, best_loss=None)
        state = AdapterState.from_safetensors(initial.spec, commit.state)
        self._publish("latest", state)  # the crash may have come between the commit and this
        if self._privacy:
            self._privacy.restore(commit.server_state)
        best = commit.server_state.get("best_loss")
        server = ServerState.from_safetensors(commit.extra.get(SERVER_FILE, b""))
        best_loss = best if isinstance(best, float) else None
        return Progress(state=state, server=server, done=commit.round_id, best_loss=best_loss)

    def _round(self, round_id: RoundId, progress: Progress) -> Progress:
        """One round, attempted until it is committed or given up."""
        rounds, excluded, why = self._config.rounds, set[str](), list[str]()
        needed = max(rounds.min_devices, secagg.MIN_COHORT_FLOOR)
        for attempt in range(1, rounds.max_failures + 1):
            self._before_attempt(round_id)
            started = self._clock.monotonic_s()
            members, wanted = self._select(round_id, excluded)
            if excluded and len(members) < needed:  # the network failed rather than the devices: ask them all again
                excluded.clear()
                members, wanted = self._select(round_id, excluded)
            if len(members) < needed:
                why.append(f"{len(members)} devices available, {rounds.min_devices} needed")
                self._tell(EventKind.ABORTED, round_id, why[-1])
                continue
            self._tell(EventKind.ROUND_STARTED, round_id, f"attempt {attempt}: asking {len(members)} devices")
            task = self._task(round_id, attempt, progress, members, wanted)
            outcome = self._attempt(task, progress.state, members)
            hear_promises(self._run, round_id, outcome, needed=needed)
            match outcome.result:
                case secagg.Summed() as summed if METRICS in summed.skipped:
                    why.append(f"nothing could be summed: {summed.skipped[METRICS]}")
                case secagg.Summed() as summed if len(summed.survivors) >= rounds.min_devices:
                    return self._commit(task, progress, outcome, summed, members, started)
                case secagg.Summed() as summed:
                    why.append(f"{len(summed.survivors)} devices finished, {rounds.min_devices} needed")
                case secagg.Aborted() as aborted:
                    why.append(f"{aborted.reason.value}: {aborted.detail}")
                    blamed = {outcome.participants[place] for place in aborted.blamed}
                    excluded |= {name for name in blamed if not outcome.traffic[name].spared}
            if not (isinstance(outcome.result, secagg.Aborted) and outcome.result.restartable):
                self._run.renew()  # devices have agreed to a survivor set: they never start that sum anew
            self._tell(EventKind.ABORTED, round_id, why[-1])
        reasons = "; ".join(why)
        raise QuorumMissed(
            f"Round {round_id} was aborted {len(why)} times ({reasons}). Everything up to round {progress.done} is "
            f"committed; mend the devices and resume {self._run.path}."
        )

    def _task(
        self, round_id: RoundId, attempt: int, progress: Progress, members: Sequence[Member], wanted: int
    ) -> RoundTask:
        """What this attempt asks of these members, the first ``wanted`` of whom make the round."""
        rounds, train, private = self._config.rounds, self._config.train, self._privacy
        learning = round_id <= rounds.count
        task = RoundTask(
            round_id=round_id,
            attempt=attempt,
            incarnation=self._run.incarnation,
            plan=self._plan,
            train=learning,
            first_step=(round_id - 1) * train.local_steps,
            learning_rate_factor=learning_rate_factor(train, rounds, round_id) if learning else 0.0,
            # Under privacy nothing of the evaluation leaves a device: one example is the least it can do.
            eval_examples=1 if private else rounds.eval_examples if learning else 0,
            noise=private.terms(len(members)) if private else None,
            wanted=wanted if learning and wanted < len(members) else None,
        )
        return self._aggregation.asked(task, progress.state, members, progress.server)

    def _attempt(self, task: RoundTask, state: AdapterState, members: Sequence[Member]) -> RoundOutcome:
        private, run_id = self._privacy, f"{self._plan.run_id}#{self._run.incarnation}"

        def before_opening() -> None:
            if private is not None:
                label = f"{run_id} round {task.round_id} attempt {task.attempt}"
                spent = private.charge(label, len(members))
                self._run.record("privacy.charged", round_id=task.round_id, detail={"epsilon_spent": spent})

        return run_round(
            task,
            state,
            members,
            self._transport,
            rounds=self._config.rounds,
            terms=self._config.secagg,
            identity=self._identity,
            entropy=self._entropy,
            observe=self._observe,
            open_sum=self._open_sum,
            before_opening=before_opening,
        )

    def _select(self, round_id: RoundId, excluded: set[str]) -> tuple[list[Member], int]:
        """A seeded sample of those that are there, in order of their names, and how many of it make the round."""
        eligible = [member for member in each_once(self._present()) if member.profile.device not in excluded]
        rounds, there = self._config.rounds, len(eligible)
        chosen = generator(self._plan.seed, "select", round_id).choice(there, invited_devices(rounds, there), False)
        return [eligible[index] for index in sorted(chosen)], wanted_devices(rounds, there)

    def _present(self) -> list[Member]:
        """Every reachable device whose profile is known, in the order they were heard of; strangers are asked first."""
        nodes = self._transport.nodes()
        strangers = [node for node in nodes if node not in self._members]
        request = encode(ProfileRequest(run_id=self._plan.run_id))
        ask = dict.fromkeys(strangers, request)
        for reply in self._transport.exchange(Stage.PROFILE, ask, deadline_s=PROFILE_DEADLINE_S) if ask else ():
            if reply.payload is None:
                self._run.record("profile.failed", detail={"node": str(reply.node), "error": reply.error})
                continue
            try:
                profile = decode(reply.payload, Profile)
            except WireError as error:
                self._run.record("profile.refused", detail={"node": str(reply.node), "error": str(error)})
                continue
            if len(profile.identity) != IDENTITY_SIZE:
                refused = f"Expected an identity of {IDENTITY_SIZE} bytes, found {len(profile.identity)}."
                self._run.record("profile.refused", detail={"node": str(reply.node), "error": refused})
                continue
            held = {entry.block_id: entry.sha256 for entry in profile.held}
            self._members[reply.node] = Member(node=reply.node, profile=profile, held=held)
        return [member for node, member in self._members.items() if node in nodes]

    def _commit(
        self,
        task: RoundTask,
        progress: Progress,
        outcome: RoundOutcome,
        summed: secagg.Summed,
        members: Sequence[Member],
        started: float,
    ) -> Progress:
        """Aggregate, make durable, then publish: in this order.

        The best state, which the round began with, is published first: after the commit its checkpoint may be gone.
        """
        round_id = task.round_id
        measured = self._privacy.measured(task.noise, summed) if self._privacy else totals(summed.sums[METRICS].values)
        state, server = progress.state, progress.server
        if task.train:
            state, server = self._aggregation.advance(
                task,
                state,
                server,
                outcome,
                summed,
                # A fixed denominator: how many were asked, which nobody's data decides.
                total_weight=len(members) if self._privacy else measured.weight,
                population=len(self._members),
            )
            state = between_rounds(state, self._config.adapter, round_id)
        # A noised loss counts nobody, and its least value is more luck than a good state.
        counted = None if measured.evaluated == 0 else measured.loss
        is_best = counted is not None and (progress.best_loss is None or counted < progress.best_loss)
        row = round_row(round_id, outcome, summed, measured, members, seconds=self._clock.monotonic_s() - started)
        if is_best:
            self._publish("best", progress.state)
        extra = {SERVER_FILE: memory} if (memory := server.to_safetensors()) else {}
        best_loss = measured.loss if is_best else progress.best_loss
        clip = self._privacy.after(task.noise, summed) if self._privacy else {}
        self._run.commit(round_id, state.to_safetensors(), {"best_loss": best_loss, **clip}, row, extra)
        self._publish("latest", state)
        means = task.train and measures_head(state.spec, self._config.adapter, round_id)
        self._tell(EventKind.COMMITTED, round_id, "class means for the head; " * means + sentence(row))
        return Progress(state=state, server=server, done=round_id, best_loss=best_loss)

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
