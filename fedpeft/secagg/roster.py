"""Who is in a round, as one ``ShareRequest`` says it: the same object, from the same bytes, on every side.

Invariants checked on construction: members on the spec's roster, one class each, one owner bitmap a block, no bit of a
bitmap outside. What only a device can check (signatures, its own entry) is in ``device.py``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from fedpeft.ids import ParticipantId, SizeClass
from fedpeft.secagg.graph import (
    COMPLETE_UP_TO,
    MOST_NEIGHBOURS,
    Degree,
    circle,
    masking_degree,
    neighbours,
    sharing_degree,
)
from fedpeft.secagg.messages import RoundOffer, ShareRequest
from fedpeft.secagg.offer import open_spec
from fedpeft.secagg.primitives import DIGEST_SIZE, TAG_SIZE
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.spec import MAX_WEIGHT_CLASS, RoundSpec
from fedpeft.secagg.transcript import NeighbourKeys, listed_digest, roster_context

__all__ = ["Roster", "members_of", "pack_members", "read_roster"]


@dataclass(frozen=True, eq=False)
class Roster:
    """The members of a round and how they are joined.

    Args:
        spec: the terms.
        offer: their context.
        context: hash of the roster.
        members: U1, ascending.
        root: of the tree over the digests of the members' adverts.
        classes: each member's weight class.
        owners: for each block of the spec, its owners, ascending.
        degree: of the sharing graph.
    """

    spec: RoundSpec
    offer: bytes
    context: bytes
    members: tuple[ParticipantId, ...]
    root: bytes
    classes: tuple[SizeClass, ...]
    owners: tuple[tuple[ParticipantId, ...], ...]
    degree: Degree

    @cached_property
    def place(self) -> dict[ParticipantId, int]:
        """Each member's index in ``members``."""
        return {member: index for index, member in enumerate(self.members)}

    @cached_property
    def owner_sets(self) -> tuple[frozenset[ParticipantId], ...]:
        """``owners``, for membership tests."""
        return tuple(frozenset(owners) for owners in self.owners)

    @cached_property
    def _known(self) -> dict[tuple[ParticipantId, int | None], tuple[ParticipantId, ...]]:
        return {}

    @cached_property
    def _circle(self) -> tuple[int, ...]:
        return circle(self.context, self.members)

    @cached_property
    def _block_circles(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(m for m in self._circle if m in owners) for owners in self.owner_sets)

    @cached_property
    def _masking(self) -> tuple[Degree | None, ...]:
        spec, sizes = self.spec, [len(owners) for owners in self.owners]
        circulant = sum(size > COMPLETE_UP_TO for size in sizes)
        return tuple(
            masking_degree(size, len(self.members), spec.corrupt_fraction, spec.dropout_fraction, circulant)
            for size in sizes
        )

    def masking_degree(self, block: int) -> Degree | None:
        """Degree of a block's masking graph; None if it is complete."""
        return self._masking[block]

    def sharing_neighbours(self, member: ParticipantId) -> tuple[ParticipantId, ...]:
        """Who holds this member's shares, and whose shares it holds; ascending."""
        if self.degree.neighbours == len(self.members) - 1:
            place = self.place[member]
            return self.members[:place] + self.members[place + 1 :]
        return self._neighbours(member, None, self.degree)

    def masking_neighbours(self, member: ParticipantId, block: int) -> tuple[ParticipantId, ...]:
        """With whom this owner masks a block; ascending."""
        degree = self.masking_degree(block)
        if degree is None:
            return tuple(owner for owner in self.owners[block] if owner != member)
        return self._neighbours(member, block, degree)

    def neighbours_of(self, member: ParticipantId) -> tuple[ParticipantId, ...]:
        """Whom a member is joined to in any graph, ascending: whose keys it needs."""
        masking = (self.masking_neighbours(member, block) for block in self.owned_by(member))
        return tuple(sorted(set(self.sharing_neighbours(member)).union(*masking)))

    def listed(self, member: ParticipantId, keys: NeighbourKeys) -> bytes:
        """The digest of the advert with these keys that the terms and this roster allow a member."""
        row = self.spec.participants[member - 1]
        blocks = [self.spec.blocks[index].block_id for index in self.owned_by(member)]
        weight_class = self.classes[self.place[member]]
        return listed_digest(self.offer, member, row.device, row.organisation, weight_class, blocks, keys)

    def _neighbours(self, member: ParticipantId, block: int | None, degree: Degree) -> tuple[ParticipantId, ...]:
        """On the circle of all members, or of a block's owners; remembered, because every stage asks again."""
        if (member, block) not in self._known:
            circle = self._circle if block is None else self._block_circles[block]
            others = neighbours(circle, member, degree.neighbours)
            self._known[member, block] = tuple(ParticipantId(other) for other in others)
        return self._known[member, block]

    def owned_by(self, member: ParticipantId) -> tuple[int, ...]:
        """Indices of the blocks that a member uploads."""
        return self._owned.get(member, ())

    @cached_property
    def _owned(self) -> dict[ParticipantId, tuple[int, ...]]:
        return {m: tuple(i for i, owners in enumerate(self.owner_sets) if m in owners) for m in self.members}

    def ciphertext_size(self, dealer: ParticipantId) -> int:
        """Bytes of each of a dealer's ciphertexts: its key's share and one per block it owns, sealed."""
        return SHARE_SIZE * (1 + len(self.owned_by(dealer))) + TAG_SIZE

    def enough_survive(self, block: int, survivors: Collection[ParticipantId]) -> bool:
        """Whether every surviving owner of a circulant block has enough surviving neighbours (protocol.md, "Lemma")."""
        degree = self.masking_degree(block)
        if degree is None:
            return True
        order, half = self._block_circles[block], degree.neighbours // 2
        alive = np.array([member in survivors for member in order], np.int64)  # (m,)
        unrolled = np.concatenate([alive[-half:], alive, alive[:half]])  # (m + k,): the circle, cut open
        counted = np.concatenate([[0], np.cumsum(unrolled)])  # (m + k + 1,)
        beside = counted[2 * half + 1 :] - counted[: len(order)] - alive  # (m,)
        return bool((beside[alive == 1] >= degree.threshold).all())


def read_roster(offer: RoundOffer, request: ShareRequest) -> Roster | str:
    """The roster of a request, or what is wrong with it in words."""
    return _read(offer, replace(request, neighbours=b"", path=b""))


@lru_cache(maxsize=8)
def _read(offer: RoundOffer, request: ShareRequest) -> Roster | str:
    spec, classes, owners = open_spec(offer), request.classes, request.owners
    ids = members_of(request.members, [peer.participant_id for peer in spec.participants])
    if not ids:
        return f"Expected a bitmap of members over {len(spec.participants)} devices, found another or an empty one."
    if len(request.root) != DIGEST_SIZE or len(classes) != len(ids) or len(owners) != len(spec.blocks):
        return "Expected a root of 32 bytes, a class per member and a bitmap per block; found another number."
    if max(classes) > MAX_WEIGHT_CLASS:
        return f"Expected weight classes up to {MAX_WEIGHT_CLASS}, found {max(classes)}."
    owner_lists = [members_of(bitmap, ids) for bitmap in owners]
    degree = sharing_degree(len(ids), spec.corrupt_fraction, spec.dropout_fraction)
    if degree is None:
        return f"Expected enough devices for the stated fractions, found {len(ids)}; ask more."
    found = [owner_list for owner_list in owner_lists if owner_list is not None]
    if len(found) != len(owner_lists):
        return f"Expected bitmaps over {len(ids)} members with zero padding, found another length or padding."
    if len(set().union(*found)) < len(ids):
        return "Expected every member to own a block, found one that owns none."
    roster = Roster(
        spec=spec,
        offer=request.context,
        context=roster_context(request),
        members=ids,
        root=request.root,
        classes=tuple(map(SizeClass, classes)),
        owners=tuple(found),
        degree=degree,
    )
    for index, block in enumerate(spec.blocks):
        if roster.masking_degree(index) is None and len(found[index]) > MOST_NEIGHBOURS:
            return (
                f"Expected at most {MOST_NEIGHBOURS} owners of a block that all of them mask with each other, found "
                f"{len(found[index])} of {block.block_id}; lower the fractions, or ask fewer devices a round."
            )
    return roster


def pack_members(chosen: Collection[ParticipantId], members: Sequence[ParticipantId]) -> bytes:
    """A bitmap over the members, most significant bit first, padded with zeros."""
    return np.packbits(np.fromiter((member in chosen for member in members), bool, len(members))).tobytes()


def members_of(bitmap: bytes, members: Sequence[ParticipantId]) -> tuple[ParticipantId, ...] | None:
    """The members a bitmap names, ascending; None if it has another length or non-zero padding."""
    flags = np.unpackbits(np.frombuffer(bitmap, np.uint8))
    if len(bitmap) != -(-len(members) // 8) or flags[len(members) :].any():
        return None
    return tuple(members[index] for index in np.flatnonzero(flags).tolist())
