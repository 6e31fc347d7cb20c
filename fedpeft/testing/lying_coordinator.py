"""A coordinator that lies about who shared and who survived, and takes what the devices give it.

It speaks to real ``DeviceSession``s, signs terms with its real key, keeps every message and checks nothing. What it
tells each device is the caller's choice; ``recover`` then tries to read one device's input out of what it holds. Used
by tests/attacks and benchmarks/attacks.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import BlockEncoding, SumRange
from fedpeft.secagg import (
    Advertise,
    Agreement,
    ConsistRequest,
    MaskedInput,
    MaskRequest,
    RevealedShares,
    RevealRequest,
    SummedBlock,
)
from fedpeft.secagg.coordinator_state import KEY_SHARE, ShareName, Sharing
from fedpeft.secagg.coordinator_state import Masking as MaskingStage
from fedpeft.secagg.masks import Mask, apply_masks
from fedpeft.secagg.primitives import AgreementKey, Secret
from fedpeft.secagg.roster import Roster, pack_members
from fedpeft.secagg.shamir import SHARE_SIZE, combine, share_value, weights
from fedpeft.secagg.spec import block_encoding
from fedpeft.secagg.transcript import edge_secret, pair_stream, self_stream, sharers_context
from fedpeft.testing.secagg import Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

__all__ = [
    "BLOCK",
    "LENGTH",
    "Loot",
    "Stage2",
    "ask_about_survivors",
    "ask_to_open",
    "collect_inputs",
    "read_unchecked",
    "recover",
    "two_block_round",
    "until_masking",
]

BLOCK, OTHER = BlockId("attacked"), BlockId("of-all")
LENGTH = 8
Members = frozenset[ParticipantId]


@dataclass(frozen=True, kw_only=True)
class Stage2:
    """A round whose devices wait to be told who shared.

    Args:
        round: its devices.
        roster: who is in it.
        adverts: their public keys.
        ciphertexts: for each holder, the ciphertexts of its sharing neighbours, by dealer.
    """

    round: Round
    roster: Roster
    adverts: Mapping[ParticipantId, Advertise]
    ciphertexts: Mapping[ParticipantId, Mapping[ParticipantId, bytes]]

    @property
    def block(self) -> int:
        """The place of the attacked block."""
        return [block.block_id for block in self.roster.spec.blocks].index(BLOCK)

    def again(self) -> "Stage2":
        """The same devices, where they are now, for another story: what one is told the other knows nothing of."""
        return replace(self, round=replace(self.round, fleet=self.round.fleet.again(), replies={}, delayed=[]))


@dataclass(kw_only=True)
class Loot:
    """What the coordinator got.

    Args:
        told: for each device, the sharers it was told of.
        masked: the masked inputs.
        agreed: how many signed the survivors.
        shares: what was revealed, by secret and holder.
    """

    told: dict[ParticipantId, Members]
    masked: dict[ParticipantId, MaskedInput] = field(default_factory=dict)
    agreed: int = 0
    shares: dict[ShareName, dict[int, bytes]] = field(default_factory=dict)
    revealed: int = 0

    def of(self, victim: ParticipantId, block: int) -> int:
        """How many shares of this device's self-mask seed of a block it got."""
        return len(self.shares.get((victim, block), {}))


def two_block_round(devices: int, owners: Collection[int], *, seed: int = 0, **terms: object) -> Round:
    """A round in which everybody owns one block, and ``owners`` the attacked one too; random inputs."""
    fleet, rng = make_fleet(devices, seed=seed), np.random.default_rng(seed)
    blocks = [SummedBlock(block_id=name, ranges=(SumRange(length=LENGTH, max_abs=1.0),)) for name in (OTHER, BLOCK)]
    members = [ParticipantId(i) for i in range(1, devices + 1)]
    return Round(
        fleet=fleet,
        spec=make_spec(fleet, blocks, **terms),
        owns={m: frozenset({OTHER, BLOCK} if m in owners else {OTHER}) for m in members},
        inputs={m: {name: rng.uniform(-1, 1, LENGTH).astype(np.float32) for name in (OTHER, BLOCK)} for m in members},
    )


def until_masking(attacked: Round) -> Stage2:
    """The honest part: FIT and SHARE."""
    state = attacked.reach("share")
    if not isinstance(state.progress, Sharing):
        raise TypeError("Expected the stage of shares.")
    members = state.progress.members
    following = attacked.finish_stage(state)
    ciphertexts = {}
    for holder, request in getattr(following, "requests", {}).items():
        dealers = members.roster.sharing_neighbours(holder)
        ciphertexts[holder] = dict(zip(dealers, request.ciphertexts, strict=True))
    if not isinstance(getattr(following, "progress", None), MaskingStage):
        raise TypeError(f"Expected the stage of masks, found {following}.")
    return Stage2(round=attacked, roster=members.roster, adverts=members.adverts, ciphertexts=ciphertexts)


def mask_for(stage: Stage2, member: ParticipantId, sharers: Members) -> MaskedInput | None:
    """What a device uploads when it is told that these shared; None if it refuses."""
    ciphertexts = tuple(ciphertext for dealer, ciphertext in stage.ciphertexts[member].items() if dealer in sharers)
    request = MaskRequest(
        context=stage.roster.context, sharers=pack_members(sharers, stage.roster.members), ciphertexts=ciphertexts
    )
    reply = stage.round.ask(member, request)
    return reply if isinstance(reply, MaskedInput) else None


def collect_inputs(stage: Stage2, told: Mapping[ParticipantId, Members]) -> Loot:
    """MASK, with each device's own story; ``told``: see ``ask_about_survivors``."""
    everybody = frozenset(stage.roster.members)
    loot = Loot(told={member: told.get(member, everybody) for member in everybody})
    for member in sorted(everybody):
        reply = mask_for(stage, member, loot.told[member])
        if reply is not None:
            loot.masked[member] = reply
    return loot


def ask_about_survivors(stage: Stage2, told: Mapping[ParticipantId, Members], survivors: Members) -> Loot:
    """The lie: MASK with each device's own sharers, then CONSIST and REVEAL for ``survivors``, whatever is missing.

    Args:
        stage: see ``until_masking``.
        told: the sharers that single devices are told of; everybody else is told the truth.
        survivors: who is said to have survived. All devices upload; who is not named here "vanished" afterwards.
    """
    return ask_to_open(stage, collect_inputs(stage, told), survivors)


def ask_to_open(stage: Stage2, loot: Loot, survivors: Members) -> Loot:
    """CONSIST and REVEAL for ``survivors``; see ``ask_about_survivors``.

    Args:
        loot: of ``collect_inputs``; who was told a story of its own is not asked any more. It gets the rest.
    """
    everybody = frozenset(stage.roster.members)
    misled = frozenset(member for member, told in loot.told.items() if told != everybody)
    context = sharers_context(stage.roster.context, pack_members(everybody, stage.roster.members))
    bitmap = pack_members(survivors, stage.roster.members)
    question = ConsistRequest(context=context, survivors=bitmap)
    replies = {member: stage.round.ask(member, question) for member in sorted(survivors - misled)}
    agreements = {member: reply.signature for member, reply in replies.items() if isinstance(reply, Agreement)}
    loot.agreed = len(agreements)
    for member in agreements:
        silent = [p for p in stage.roster.sharing_neighbours(member) if p in survivors and p not in agreements]
        request = RevealRequest(
            context=context,
            survivors=bitmap,
            signers=pack_members(agreements, stage.roster.members),
            signatures=b"".join(agreements.values()),
            masked=b"".join(loot.masked[peer].signature for peer in silent if peer in loot.masked),
        )
        reveal = stage.round.ask(member, request)
        if isinstance(reveal, RevealedShares):
            loot.revealed += 1
            _keep(stage.roster, loot, member, survivors, reveal)
    return loot


def _keep(roster: Roster, loot: Loot, holder: ParticipantId, survivors: Members, reply: RevealedShares) -> None:
    opened = np.unpackbits(np.frombuffer(reply.opened, np.uint8))
    names: list[ShareName] = []
    for dealer in roster.sharing_neighbours(holder):
        if dealer in survivors:
            names.extend((dealer, block) for block in roster.owned_by(dealer) if opened[block])
        else:
            names.append((dealer, KEY_SHARE))
    for index, name in enumerate(names):
        loot.shares.setdefault(name, {})[holder] = reply.shares[SHARE_SIZE * index : SHARE_SIZE * (index + 1)]


def recover(stage: Stage2, loot: Loot, victim: ParticipantId) -> npt.NDArray[np.float64] | None:
    """The victim's input of the attacked block, (``LENGTH``,), if every mask on it can be taken off; else None."""
    roster, block = stage.roster, stage.block
    seed = _rebuilt(stage, loot, (victim, block))
    if seed is None or victim not in loot.masked:
        return None
    masks = [Mask(Secret(self_stream(seed, roster.context, BLOCK)), add=False)]
    for peer in loot.told[victim].intersection(roster.masking_neighbours(victim, block)):
        key_seed = _rebuilt(stage, loot, (peer, KEY_SHARE))
        if key_seed is None:
            return None
        key, other = AgreementKey(key_seed), stage.adverts[victim].mask_key
        edge = edge_secret(key.agree(other) or b"", roster.context, key.public, other)
        masks.append(Mask(Secret(pair_stream(edge, BLOCK)), add=not victim < peer))
    encoding = block_encoding(roster.spec, roster.spec.blocks[block])
    upload = loot.masked[victim].vectors[roster.owned_by(victim).index(block)]
    words = np.frombuffer(upload, encoding.zeros().dtype).copy()
    apply_masks(words, masks)
    return read_unchecked(encoding, words)


def read_unchecked(encoding: BlockEncoding, words: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.float64]:
    """Words of one device as ``decode`` reads a sum of one, which refuses words that no input encodes to.

    Args:
        encoding: of one range, not exact, one lane a word.
        words: masked or not, (P,).
    """
    return (words.astype(np.float64) - encoding.params.levels) / encoding.scale(encoding.ranges[0])


def _rebuilt(stage: Stage2, loot: Loot, name: ShareName) -> bytes | None:
    shares = {holder: share_value(share) for holder, share in loot.shares.get(name, {}).items()}
    good = {holder: value for holder, value in shares.items() if value is not None}
    threshold = stage.roster.degree.threshold
    if len(good) < threshold:
        return None
    holders = tuple(sorted(good))[:threshold]
    return combine(weights(holders), [good[holder] for holder in holders])
