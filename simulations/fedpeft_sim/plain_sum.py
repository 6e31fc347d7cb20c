"""A sum without masks, to measure what the secure one costs: `secagg.mode = "off"`, simulation only.

Encodes, rounds and adds exactly as the secure sum does, so a run with it differs in cost and in nothing
else: same ring, same rounding, same values. It lives here because no deployed code may be able to take
this path.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.aggregate import Individual
from fedpeft.cohorts import effective_cohort
from fedpeft.entropy import Entropy
from fedpeft.ids import SIZELESS, BlockId, ParticipantId, SizeClass
from fedpeft.round.linking import MEASURED
from fedpeft.secagg.masks import rounding_bits
from fedpeft.secagg.offer import encode_spec, one_copy, open_spec, open_terms, roster_digest
from fedpeft.secagg.primitives import Secret, digest
from fedpeft.secagg.spec import block_encoding

__all__ = ["PlainSession", "PlainSum"]

NOTHING = b""
Vector = npt.NDArray[np.float32]


class PlainSession:
    """The device's half: ``SumSession`` without a secret.

    Args:
        coordinator: its public key.
    """

    def __init__(self, coordinator: bytes) -> None:
        self.coordinator = coordinator
        self._spec: secagg.RoundSpec | None = None
        self._roster = b""
        self._owns: frozenset[BlockId] = frozenset()
        self._marks: dict[str, secagg.HighWaterMark] = {}

    def examine(self, offer: secagg.RoundOffer) -> secagg.RoundSpec | secagg.Refusal:
        """The terms, which nobody signs."""
        if not offer.roster and roster_digest(self._roster) != open_terms(offer.spec).roster:
            return secagg.Refusal(reason=secagg.Reason.MISSING_ROSTER, detail="no roster")
        return self._opened(offer)

    def _opened(self, offer: secagg.RoundOffer) -> secagg.RoundSpec:
        self._roster = one_copy(offer.roster or self._roster)
        return open_spec(replace(offer, roster=self._roster))

    def mark(self, run_id: str) -> secagg.HighWaterMark | None:
        """The last attempt; nobody signs survivors here."""
        return self._marks.get(run_id)

    def agreed(self, run_id: str) -> None:
        """Nobody signs survivors here."""

    def begin(
        self,
        offer: secagg.RoundOffer,
        *,
        owns: frozenset[BlockId],
        entropy: Entropy,
        weight_class: SizeClass = SIZELESS,
    ) -> secagg.Reply:
        """Declare the owned blocks; the keys are empty."""
        self._spec, self._owns = self._opened(offer), owns
        self._marks[self._spec.run_id] = secagg.HighWaterMark(
            round_id=self._spec.round_id, attempt=self._spec.attempt, agreed=False, history=self._spec.history
        )
        blocks = tuple(block.block_id for block in self._spec.blocks if block.block_id in owns)
        return secagg.Advertise(
            context=NOTHING,
            participant_id=ParticipantId(0),
            device="",
            organisation="",
            weight_class=weight_class,
            blocks=blocks,
            channel_key=NOTHING,
            mask_key=NOTHING,
            commitments=(),
            signature=NOTHING,
        )

    def answer(
        self,
        run_id: str,
        request: secagg.Request,
        *,
        inputs: Callable[[], Mapping[BlockId, Vector]],
        rounding: Entropy,
        before_masking: Callable[[], None],
    ) -> secagg.Reply:
        """The encoded vectors, in the clear."""
        if self._spec is None:
            return secagg.Refusal(reason=secagg.Reason.OUT_OF_ORDER, detail="no round is open")
        values = inputs()
        vectors = tuple(
            block_encoding(self._spec, block).encode(values[block.block_id], rounding_bits(rounding(32))).tobytes()
            for block in self._spec.blocks
            if block.block_id in self._owns
        )
        return secagg.MaskedInput(context=NOTHING, unopened=(), vectors=vectors, signature=NOTHING, tag=NOTHING)


class PlainSum:
    """The coordinator's half: ``SumRound`` that sees every input.

    Args:
        spec, identity, entropy: see ``OpenSum``.
        seen: filled with every device's contribution to the sum, for rules that need them; emptied first.
        share: a device's weight by its size class.
    """

    def __init__(
        self,
        spec: secagg.RoundSpec,
        identity: secagg.IdentityKey,
        entropy: Entropy,
        *,
        seen: list[Individual] | None = None,
        share: Callable[[int], float] = lambda _: 1.0,
    ) -> None:
        self._seen, self._share = seen, share
        if seen is not None:
            seen.clear()
        self._spec = spec
        self._adverts: dict[ParticipantId, secagg.Advertise] = {}
        self._summed: set[ParticipantId] = set()
        self._words = {block.block_id: block_encoding(spec, block).zeros() for block in spec.blocks}
        self._rejected: dict[ParticipantId, secagg.Rejection] = {}
        self.stage = "fit"
        terms, roster = encode_spec(spec)
        self.requests: Mapping[ParticipantId, secagg.Request] = dict.fromkeys(
            (person.participant_id for person in spec.participants),
            secagg.RoundOffer(spec=terms, roster=roster, coordinator_channel=NOTHING, signature=NOTHING),
        )

    @property
    def answered(self) -> int:
        """See ``SumRound``."""
        return len(self._adverts if self.stage == "fit" else self._summed)

    def pending(self) -> Secret:
        """Nothing: the sum is known when the vectors are."""
        return Secret(NOTHING)

    def receive(self, sender: ParticipantId, reply: secagg.Reply) -> None:
        """Keep an advert; add a vector."""
        match reply:
            case secagg.Advertise():
                self._adverts[sender] = reply
            case secagg.MaskedInput():
                for block_id, words in zip(self._adverts[sender].blocks, reply.vectors, strict=True):
                    total = self._words[block_id]
                    np.add(total, np.frombuffer(words, total.dtype), out=total)
                if self._seen is not None:
                    self._see(sender, reply)
                self._summed.add(sender)
            case _:
                self.fail(sender, "an answer that the plain sum does not know")

    def _see(self, sender: ParticipantId, reply: secagg.MaskedInput) -> None:
        """Keep one device's deltas as they are in the sum: rounded, and without its weight."""
        blocks = {block.block_id: block_encoding(self._spec, block) for block in self._spec.blocks}
        values = {
            block_id: blocks[block_id].decode(np.frombuffer(words, self._words[block_id].dtype), 1)
            for block_id, words in zip(self._adverts[sender].blocks, reply.vectors, strict=True)
        }
        weight = self._share(self._adverts[sender].weight_class)
        for measured in MEASURED:
            values.pop(measured, None)
        if self._seen is not None and values:
            deltas = {block_id: vector / weight for block_id, vector in values.items()}
            self._seen.append(Individual(weight=weight, deltas=deltas))

    def fail(self, sender: ParticipantId, detail: str) -> None:
        """Note it."""
        self._rejected[sender] = secagg.Rejection(reason=secagg.Reason.DROPPED_OUT, detail=detail)

    def close_stage(self) -> secagg.Summed | secagg.Aborted | None:
        """From ``fit`` to ``mask`` to the end; the same minimum cohorts as the secure sum's."""
        if self.stage == "fit":
            self.stage = "mask"
            self.requests = dict.fromkeys(
                self._adverts, secagg.MaskRequest(context=NOTHING, sharers=NOTHING, ciphertexts=())
            )
            return None
        sums, skipped = {}, {}
        needed = effective_cohort(self._spec.min_cohort, self._spec.corrupt_fraction, len(self._adverts))
        for block in self._spec.blocks:
            owners = frozenset(sender for sender in self._summed if block.block_id in self._adverts[sender].blocks)
            if len(owners) < needed:
                skipped[block.block_id] = f"{len(owners)} organisations train it, {needed} needed"
                continue
            values = block_encoding(self._spec, block).decode(self._words[block.block_id], len(owners))
            sums[block.block_id] = secagg.BlockSum(
                values=values, members=owners, words=self._words[block.block_id].tobytes()
            )
        return secagg.Summed(
            sums=sums,
            survivors=frozenset(self._summed),
            context=digest("plain survivors", *(member.to_bytes(4, "big") for member in sorted(self._summed))),
            weight_classes={sender: self._adverts[sender].weight_class for sender in sorted(self._summed)},
            skipped=skipped,
            rejected=dict(self._rejected),
        )
