"""From revealed shares to sums: rebuild, verify, unmask, decode (docs/protocol.md, "UNMASK").

Every rebuilt secret is checked against what its owner committed to; shares that do not fit are repaired around and
their holder or dealer is named. A block is opened whole or not at all. Order of work: which blocks, which secrets, the
masks of each block in one pass, decode.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumOutOfRange
from fedpeft.secagg.cohort import cohort_problem
from fedpeft.secagg.coordinator_state import (
    KEY_SHARE,
    Aborted,
    BlockSum,
    Open,
    Rejection,
    Revealing,
    ShareName,
    Summed,
    aborted,
)
from fedpeft.secagg.masks import Mask, apply_masks
from fedpeft.secagg.messages import Reason, RevealedShares
from fedpeft.secagg.primitives import AgreementKey, Secret
from fedpeft.secagg.repair import repair
from fedpeft.secagg.roster import Roster, members_of
from fedpeft.secagg.shamir import SHARE_SIZE, combine, combine_without, share_value, weights
from fedpeft.secagg.spec import decode_block
from fedpeft.secagg.transcript import commitment, edge_secret, pair_stream, self_stream

__all__ = ["named_shares", "unmask"]


def named_shares(revealing: Revealing, holder: ParticipantId, reply: RevealedShares) -> dict[ShareName, bytes] | None:
    """A holder's shares by name; None if their number is not what its opened blocks imply."""
    roster = revealing.masked.members.roster
    flags = np.unpackbits(np.frombuffer(reply.opened, np.uint8))
    if len(reply.opened) != -(-len(roster.owners) // 8) or flags[len(roster.owners) :].any():
        return None
    opened = frozenset(np.flatnonzero(flags).tolist())
    dealt = _names(roster, revealing.masked.sharers, revealing.survivors, opened)
    names = [name for dealer in roster.sharing_neighbours(holder) for name in dealt.get(dealer, ())]
    if len(reply.shares) != SHARE_SIZE * len(names):
        return None
    cuts = range(0, len(reply.shares), SHARE_SIZE)
    return dict(zip(names, [reply.shares[cut : cut + SHARE_SIZE] for cut in cuts], strict=True))


@lru_cache(maxsize=8)
def _names(
    roster: Roster, sharers: bytes, survivors: frozenset[ParticipantId], opened: frozenset[int]
) -> dict[ParticipantId, tuple[ShareName, ...]]:
    """Of each dealer in U2, what its holders reveal; the same for all holders that open the same blocks."""
    return {
        dealer: tuple((dealer, block) for block in roster.owned_by(dealer) if block in opened)
        if dealer in survivors
        else ((dealer, KEY_SHARE),)
        for dealer in members_of(sharers, roster.members) or ()
    }


def unmask(state: Open, revealing: Revealing) -> Summed | Aborted:
    """The round's outcome."""
    roster, survivors = revealing.masked.members.roster, revealing.survivors
    rebuilt = _RebuiltSecrets(state.terms.context, revealing)
    sums: dict[BlockId, BlockSum] = {}
    skipped: dict[BlockId, str] = {}
    lost: set[ParticipantId] = set()
    problems = [cohort_problem(roster, index, survivors, revealing.witnesses) for index in range(len(roster.owners))]
    # Dealer by dealer, because all secrets of a dealer have the same holders and so the same Lagrange weights.
    for name in sorted({n for i, problem in enumerate(problems) if problem is None for n in _needed(revealing, i)}):
        rebuilt.secret(name)
    for index, block in enumerate(roster.spec.blocks):
        problem = problems[index]
        missing = [] if problem else [name for name in _needed(revealing, index) if rebuilt.secret(name) is None]
        if problem is None and not missing:
            words = revealing.masked.sums[block.block_id].copy()  # the stage may be closed again, with more shares
            apply_masks(words, list(_masks_to_remove(rebuilt, revealing, index)))
            owners = frozenset(roster.owner_sets[index] & survivors)
            try:
                values = decode_block(roster.spec, block, words, len(owners))
            except SumOutOfRange as error:  # nothing of it is used; whose input it was, nobody can say
                return aborted(state, Reason.OUT_OF_RANGE, f"Block {block.block_id}: {error}", restartable=False)
            sums[block.block_id] = BlockSum(values=values, members=owners, words=words.tobytes())
        else:
            dealers = {dealer for dealer, _ in missing}
            lost |= dealers
            skipped[block.block_id] = problem or f"too few good shares of the masks of {sorted(dealers)}"
    state = replace(state, rejected={**state.rejected, **_blamed(rebuilt.inconsistent)})
    if not sums:
        detail = "; ".join(f"{block}: {why}" for block, why in skipped.items())
        return aborted(
            state, Reason.SECRET_LOST, f"No block could be opened: {detail}.", blamed=lost, restartable=False
        )
    classes = {member: roster.classes[roster.place[member]] for member in sorted(survivors)}
    return Summed(
        sums=sums,
        survivors=survivors,
        context=revealing.context,
        weight_classes=classes,
        skipped=skipped,
        rejected=state.rejected,
    )


class _RebuiltSecrets:
    """The secrets rebuilt so far, each once; None for one that cannot be."""

    def __init__(self, context: bytes, revealing: Revealing) -> None:
        self.context, self.members = context, revealing.masked.members
        self.inconsistent: set[tuple[ParticipantId, int]] = set()
        self._secrets: dict[ShareName, Secret | None] = {}
        self._keys: dict[ParticipantId, AgreementKey] = {}
        self._edges: dict[tuple[ParticipantId, ParticipantId], bytes] = {}
        self._shares: dict[ShareName, dict[int, bytes]] = {}
        for holder in sorted(revealing.shares):
            for name, share in revealing.shares[holder].items():
                self._shares.setdefault(name, {})[holder] = share

    def secret(self, name: ShareName) -> Secret | None:
        """A dealer's secret, verified against its commitment."""
        if name not in self._secrets:
            self._secrets[name] = self._rebuild(name)
        return self._secrets[name]

    def edge(self, dropped: ParticipantId, peer: ParticipantId) -> bytes:
        """The pair secret of a device that dropped out and a peer."""
        if (dropped, peer) not in self._edges:
            key = self._keys[dropped]
            peer_key = self.members.adverts[peer].mask_key
            shared = key.agree(peer_key) or b""
            self._edges[dropped, peer] = edge_secret(shared, self.members.roster.context, key.public, peer_key)
        return self._edges[dropped, peer]

    def _rebuild(self, name: ShareName) -> Secret | None:
        shares, threshold = self._shares.get(name, {}), self.members.roster.degree.threshold
        if len(shares) < threshold:
            return None
        points = tuple(sorted({*shares, name[0]})[: threshold + 1])
        # Enough shares first; the others are read only if these do not give the secret.
        chosen = _values({holder: shares[holder] for holder in points if holder in shares})
        if len(chosen) >= threshold:
            if name[0] in points:
                secret = combine_without(points, name[0], chosen)
            else:
                holders = tuple(chosen)[:threshold]
                secret = combine(weights(holders), [chosen[holder] for holder in holders])
            if secret is not None and self._fits(name, secret):
                return Secret(secret)
        values = _values(shares)
        if len(values) < threshold:
            return None
        repaired = repair(values, threshold, lambda guess: self._fits(name, guess))
        if repaired is None:
            return None
        self.inconsistent.update((name[0], holder) for holder in repaired.wrong)
        return Secret(repaired.secret)

    def _fits(self, name: ShareName, secret: bytes) -> bool:
        dealer, kind = name
        advert, spec = self.members.adverts[dealer], self.members.roster.spec
        if kind == KEY_SHARE:
            self._keys[dealer] = AgreementKey(secret)
            return self._keys[dealer].public == advert.mask_key
        block = spec.blocks[kind].block_id
        return commitment(self.context, dealer, block, secret) == advert.commitments[advert.blocks.index(block)]


def _values(shares: Mapping[int, bytes]) -> dict[int, int]:
    """The field elements among these shares, by holder."""
    return {holder: value for holder, share in shares.items() if (value := share_value(share)) is not None}


def _dropped(revealing: Revealing, block: int) -> list[ParticipantId]:
    """Owners of a block that shared their keys and then dropped out."""
    roster = revealing.masked.members.roster
    sharers = members_of(revealing.masked.sharers, roster.members) or ()
    return [m for m in sharers if m in roster.owner_sets[block] and m not in revealing.survivors]


def _needed(revealing: Revealing, block: int) -> Iterator[ShareName]:
    """The secrets without which a block stays masked."""
    roster, survivors = revealing.masked.members.roster, revealing.survivors
    yield from ((owner, block) for owner in roster.owners[block] if owner in survivors)
    for dropped in _dropped(revealing, block):
        if survivors.intersection(roster.masking_neighbours(dropped, block)):
            yield dropped, KEY_SHARE


def _masks_to_remove(rebuilt: _RebuiltSecrets, revealing: Revealing, block: int) -> Iterator[Mask]:
    """The survivors' self masks, and the pair masks they shared with those who dropped out."""
    roster, survivors = revealing.masked.members.roster, revealing.survivors
    block_id = roster.spec.blocks[block].block_id
    for owner in roster.owner_sets[block] & survivors:
        seed = rebuilt.secret((owner, block))
        if seed is not None:
            yield Mask(Secret(self_stream(seed.value, roster.context, block_id)), add=False)
    for dropped in _dropped(revealing, block):
        for peer in survivors.intersection(roster.masking_neighbours(dropped, block)):
            yield Mask(Secret(pair_stream(rebuilt.edge(dropped, peer), block_id)), add=peer > dropped)


def _blamed(pairs: Collection[tuple[ParticipantId, int]]) -> dict[ParticipantId, Rejection]:
    """Whom inconsistent shares point to: a bad dealer's fit with few holders, a bad holder's with few dealers.

    Args:
        pairs: dealer and holder of each share that does not fit its commitment.
    """
    dealers, holders = Counter(dealer for dealer, _ in pairs), Counter(holder for _, holder in pairs)
    named: dict[ParticipantId, Rejection] = {}
    for dealer, holder in sorted(pairs):
        if dealers[dealer] >= holders[holder]:
            detail = f"dealt shares that do not fit its commitment to {dealers[dealer]} devices"
            named[dealer] = Rejection(reason=Reason.BAD_SHARE, detail=detail)
        if holders[holder] >= dealers[dealer]:
            detail = f"revealed shares that do not fit for {holders[holder]} devices"
            named[ParticipantId(holder)] = Rejection(reason=Reason.BAD_SHARE, detail=detail)
    return named
