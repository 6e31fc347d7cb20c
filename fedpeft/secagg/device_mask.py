"""The device's MASK stage: open the ciphertexts, encode, mask (docs/protocol.md, "MASK")."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.privacy import noisy_words
from fedpeft.ring import InputRefused
from fedpeft.secagg.device_state import (
    Masked,
    Participation,
    RoundKeys,
    Shared,
    Violation,
    agree,
    reply_key,
    roster_of,
    secret_keys,
)
from fedpeft.secagg.masks import Mask, apply_masks, noise_bytes, rounding_bits
from fedpeft.secagg.messages import MaskedInput, MaskRequest, Reason
from fedpeft.secagg.primitives import KEY_SIZE, IdentityKey, Secret, authenticate, open_sealed
from fedpeft.secagg.roster import Roster, members_of
from fedpeft.secagg.shamir import SHARE_SIZE, share_value
from fedpeft.secagg.spec import RoundSpec, SummedBlock, block_encoding, mechanism
from fedpeft.secagg.transcript import (
    STAGE_MASK,
    associated_data,
    edge_secret,
    encryption_key,
    encryption_nonce,
    fingerprint,
    id_bytes,
    masked_digest,
    pair_stream,
    self_stream,
    sharers_context,
)

__all__ = ["Inputs", "mask", "subset_with_us"]

Inputs = Mapping[BlockId, npt.NDArray[np.float32]]
"""For each owned block its vector, (P,) float32."""


def mask(
    state: Shared, request: MaskRequest, inputs: Inputs, identity: IdentityKey, rounding: Entropy, noise: Entropy
) -> Masked:
    """Opens the ciphertexts, encodes the inputs, masks them for those who shared, and signs who these were."""
    participation, roster = state.participation, roster_of(state.participation, state.roster)
    sharers = subset_with_us(request.sharers, roster, participation)
    dealers = [peer for peer in roster.sharing_neighbours(participation.me) if peer in sharers]
    if len(dealers) < roster.degree.threshold:
        raise Violation(
            Reason.TOO_FEW_DEVICES, f"Expected {roster.degree.threshold} sharing neighbours, found {len(dealers)}."
        )
    if len(request.ciphertexts) != len(dealers):
        raise Violation(Reason.BAD_LENGTH, f"Expected {len(dealers)} ciphertexts, found {len(request.ciphertexts)}.")
    held = _decrypted_shares(state, roster, dealers, request.ciphertexts)
    context = sharers_context(roster.context, request.sharers)
    keys = secret_keys(state.root, participation)
    vectors = _masked_vectors(state, roster, _masks(state, roster, sharers, keys), inputs, rounding, noise)
    unopened = tuple(dealer for dealer, shares in zip(dealers, held, strict=True) if not shares.value)
    key = reply_key(keys.channel, participation)
    parts = [context, b"".join(map(id_bytes, unopened)), *vectors]
    return Masked(
        participation=participation,
        reply_key=Secret(key),
        asked=fingerprint(request),
        roster=state.roster,
        sharers=request.sharers,
        held_shares=held,
        reply=MaskedInput(
            context=context,
            unopened=unopened,
            vectors=vectors,
            signature=identity.sign(masked_digest(context, participation.me)),
            tag=authenticate(key, STAGE_MASK, parts),
        ),
    )


def subset_with_us(bitmap: bytes, roster: Roster, participation: Participation) -> frozenset[ParticipantId]:
    """The members that a bitmap names; it must be well formed and name us."""
    members = members_of(bitmap, roster.members)
    if members is None:
        raise Violation(Reason.BAD_LENGTH, f"Expected a bitmap over {len(roster.members)} members, found another.")
    if participation.me not in members:
        raise Violation(Reason.BAD_ROSTER, "Expected to be among those who replied, found ourselves left out.")
    return frozenset(members)


def _decrypted_shares(
    state: Shared, roster: Roster, dealers: Sequence[ParticipantId], ciphertexts: Sequence[bytes]
) -> tuple[Secret, ...]:
    """The plaintext of each dealer's ciphertext; empty where it does not open or holds no field elements."""
    places = {peer: index for index, peer in enumerate(roster.sharing_neighbours(state.participation.me))}
    held = []
    for dealer, ciphertext in zip(dealers, ciphertexts, strict=True):
        at = KEY_SIZE * places[dealer]
        bound_to = associated_data(roster.context, dealer, state.participation.me)
        plaintext = open_sealed(
            encryption_key(state.channels.value[at : at + KEY_SIZE]), encryption_nonce(dealer), ciphertext, bound_to
        )
        size = SHARE_SIZE * (1 + len(roster.owned_by(dealer)))
        good = plaintext is not None and len(plaintext) == size and _all_in_field(plaintext)
        held.append(Secret(plaintext if plaintext is not None and good else b""))
    return tuple(held)


def _all_in_field(plaintext: bytes) -> bool:
    cuts = range(0, len(plaintext), SHARE_SIZE)
    return all(share_value(plaintext[cut : cut + SHARE_SIZE]) is not None for cut in cuts)


def _masked_vectors(
    state: Shared,
    roster: Roster,
    masks: Mapping[BlockId, Sequence[Mask]],
    inputs: Inputs,
    rounding: Entropy,
    noise: Entropy,
) -> tuple[bytes, ...]:
    """Each own block encoded and masked, as bytes in the spec's order."""
    if set(inputs) != set(state.participation.owns):
        raise Violation(
            Reason.BAD_INPUT, f"Expected vectors for {sorted(state.participation.owns)}, found {sorted(inputs)}."
        )
    blocks = [roster.spec.blocks[index] for index in roster.owned_by(state.participation.me)]
    words = _encoded(roster.spec, blocks, inputs, rounding, noise)
    for block in blocks:
        apply_masks(words[block.block_id], masks[block.block_id])
    return tuple(words[block.block_id].tobytes() for block in blocks)


def _encoded(
    spec: RoundSpec, blocks: Sequence[SummedBlock], inputs: Inputs, rounding: Entropy, noise: Entropy
) -> dict[BlockId, npt.NDArray[np.unsignedinteger]]:
    """Ring words: block by block with stochastic rounding, or with noise all at once, because their norm is one."""
    at = ""
    try:
        words: dict[BlockId, npt.NDArray[np.unsignedinteger]] = {}
        terms = mechanism(spec)
        for block in blocks:
            at = block.block_id
            if terms is None:
                bits = rounding_bits(rounding(KEY_SIZE))
                words[block.block_id] = block_encoding(spec, block).encode(inputs[block.block_id], bits)
            elif inputs[block.block_id].shape != (block.length,):
                raise InputRefused(f"Expected {block.length} coordinates, found {inputs[block.block_id].shape}.")
        at = "all blocks"
        return words if terms is None else noisy_words(inputs, terms, noise_bytes(noise(KEY_SIZE)))
    except InputRefused as refused:
        raise Violation(Reason.BAD_INPUT, f"{at}: {refused}") from refused


def _masks(
    state: Shared, roster: Roster, sharers: frozenset[ParticipantId], keys: RoundKeys
) -> dict[BlockId, list[Mask]]:
    """For each own block: the self mask, and one pair mask for each masking neighbour that shared."""
    me, packed = state.participation.me, state.mask_keys
    mask_keys = {
        peer: packed[KEY_SIZE * place : KEY_SIZE * (place + 1)] for place, peer in enumerate(roster.neighbours_of(me))
    }
    edges: dict[ParticipantId, bytes] = {}
    masks: dict[BlockId, list[Mask]] = {}
    for index, seed in zip(roster.owned_by(me), keys.self_seeds, strict=True):
        block = roster.spec.blocks[index].block_id
        masks[block] = [Mask(Secret(self_stream(seed.value, roster.context, block)), add=True)]
        for peer in sharers.intersection(roster.masking_neighbours(me, index)):
            if peer not in edges:
                edges[peer] = _edge(keys, mask_keys[peer], roster)
            masks[block].append(Mask(Secret(pair_stream(edges[peer], block)), add=me < peer))
    return masks


def _edge(keys: RoundKeys, other: bytes, roster: Roster) -> bytes:
    return edge_secret(agree(keys.mask, other), roster.context, keys.mask.public, other)
