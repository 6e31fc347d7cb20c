"""``inversion``: how much of one device's text is read from its update alone, and from sums of 2, 3, 5 and 10.

The attack is that of ``fedpeft.testing.inversion`` (after Petrov et al. 2024, DAGER): the gradient of LoRA's B in the
lowest layer spans what entered it, and each token of the vocabulary lies in that space or does not. For a sum of m
devices the attacker takes the m likeliest tokens at each position; a word of the victim counts as read if it is among
them (whose of the m it was is not known). It knows all lengths. One step of SGD on one tweet of at most 14 tokens a
device, MiniLM, LoRA on the values of all layers and the class head, at two ranks: the space of a sum has no more
dimensions than the rank.

Every update goes through the product's own ring, or clip, grid and noise:

- no noise: the secure sum alone;
- client noise: ``privacy.unit = "client"``, epsilon 8 at delta 1e-2 over 20 rounds, C the norm of an update: the sum
  of m devices holds the whole noise;
- DP-SGD: ``unit = "example"``, every device's step with C = 1 and z = 2.46 (2,000 examples, epsilon 1).
"""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from attack.common import Finding
from privacy_inversion import LABELS, LONGEST, MINILM, NOISE, short_texts

from fedpeft.base import build, default_store, load_model, load_tokenizer
from fedpeft.config.model import Adapter, Lora
from fedpeft.data import EncodedDataset
from fedpeft.entropy import generator, os_entropy
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.privacy import Budget, Release, calibrate, clip, decode_sum, noisy_words, size_mechanism
from fedpeft.ring import BlockEncoding, RingParams, SumRange
from fedpeft.secagg.masks import noise_bytes, rounding_bits
from fedpeft.testing.inversion import TextAttack
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import NoiseScale, train, train_privately

SUMS = (1, 2, 3, 5, 10)
RANKS = (16, 128)
VIEWS = ("no noise", "client noise", "DP-SGD")
DELTA, EPSILON, ROUNDS = 1e-2, 8.0, 20
MAX_ABS = 4.0
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "inversion-sums.svg"

Vector = npt.NDArray[np.float64]


def inversion(quick: bool) -> Finding:
    """The share of a victim's words that are read, by rank, noise and devices in the sum."""
    torch.set_num_threads(1)
    artifact = build(MINILM, quantize="int8", store=default_store())
    texts = short_texts(load_tokenizer(artifact), 10 if quick else 24)
    curve = []
    for rank in RANKS:
        adapter = Adapter(lora=Lora(rank=rank, tiers=(rank,), targets=("v",)))
        union = attach(load_model(artifact, task="classify", labels=LABELS, head_seed=0), adapter, seed=0)
        curve += _curve(union, texts, rank, sums=(1, 10) if quick else SUMS, victims=2 if quick else 8)
    alone = {row["rank"]: row["words"] for row in curve if row["devices"] == 1 and row["noise"] == "no noise"}
    noised = max(row["words"] for row in curve if row["noise"] != "no noise")
    if not quick:
        PICTURE.write_text(_picture(curve), encoding="utf-8")
    most = {rank: max(row["devices"] for row in curve if _read_half(row, rank)) for rank in RANKS}
    return Finding(
        learnt=f"{100 * alone[RANKS[0]]:.0f} % of the words of a single update; without noise half of them from sums "
        f"of up to {most[RANKS[0]]} at rank {RANKS[0]} and {most[RANKS[1]]} at rank {RANKS[1]}; with noise of either "
        f"unit at most {100 * noised:.1f} %",
        holds=noised <= 0.05,
        figures={"curve": curve, "texts": len(texts)},
    )


def _read_half(row: dict[str, float | str], rank: int) -> bool:
    return row["rank"] == rank and row["noise"] == "no noise" and float(row["words"]) >= 0.5


def _curve(
    union: UnionAdapter, texts: EncodedDataset, rank: int, *, sums: Sequence[int], victims: int
) -> list[dict[str, float | str]]:
    blocks = {block.block_id: block for block in union.spec.blocks if block.trainable}
    up = next(name for name in blocks if name.startswith("lora.B."))
    part = next(module for _, module in union.model.named_modules() if type(module).__name__ == "LoraPart")
    shape = tuple(next(iter(union.parameters(up).values())).shape)  # of the lowest layer, first in the block
    attack = TextAttack.prepare(union, part, positions=LONGEST)
    plain = [_delta(union, texts, i, list(blocks), private=False) for i in range(len(texts))]
    private = [_delta(union, texts, i, list(blocks), private=True) for i in range(len(texts))]
    norm = float(np.median([np.sqrt(sum(np.square(part).sum() for part in delta.values())) for delta in plain]))
    found, draw = [], generator(0, "groups")
    for devices in sums:
        words: dict[str, list[float]] = {view: [] for view in VIEWS}
        for victim in range(victims):
            others = draw.permutation([i for i in range(len(texts)) if i != victim])[: devices - 1]
            group = [victim, *map(int, others)]
            tokens = sum(len(texts.input_ids[i]) for i in group)
            for view in VIEWS:
                source = private if view == "DP-SGD" else plain
                total = _summed([source[i] for i in group], up, norm if view == "client noise" else None)
                likely = attack.likeliest(total[: shape[0] * shape[1]].reshape(shape), tokens, devices)
                own = texts.input_ids[victim]
                words[view].append(float(np.mean([own[t] in likely[t] for t in range(1, len(own) - 1)])))
        found += [
            {"rank": rank, "devices": devices, "noise": view, "words": round(float(np.mean(words[view])), 4)}
            for view in VIEWS
        ]
    return found


def _delta(
    union: UnionAdapter, texts: EncodedDataset, index: int, blocks: Sequence[BlockId], *, private: bool
) -> dict[BlockId, npt.NDArray[np.float32]]:
    """The update that one device makes of one text."""
    own = EncodedDataset(
        input_ids=(texts.input_ids[index],), labels=np.asarray(texts.labels)[index : index + 1], truncated=0
    )
    plan = plan_for(blocks, steps=1, rate=0.01, batch_size=1, optimizer="sgd", max_grad_norm=1e9)
    before = union.initial_state()
    union.load(before)
    if private:
        train_privately(union, own, plan, NoiseScale(l2_clip_norm=1.0, noise_multiplier=NOISE, sampling_rate=1.0))
    else:
        train(union, own, plan, seed=index)
    after = union.extract(list(blocks))
    return {block: (after[block] - before[block]).astype(np.float32) for block in blocks}


def _summed(
    deltas: Sequence[dict[BlockId, npt.NDArray[np.float32]]], wanted: BlockId, l2_clip_norm: float | None
) -> Vector:
    """One block of the opened sum: of ring words, or of clipped contributions with their shares of noise."""
    count = len(deltas)
    if l2_clip_norm is None:
        encoding = BlockEncoding(
            params=RingParams(bits=32, addends=max(2, count)),
            ranges=(SumRange(length=len(deltas[0][wanted]), max_abs=MAX_ABS),),
        )
        words = encoding.zeros()
        for delta in deltas:
            words += encoding.encode(delta[wanted], rounding_bits(os_entropy(32)))
        return encoding.decode(words, count)
    size = sum(len(part) for part in deltas[0].values())

    def release(z: float) -> Release:
        return Release(noise_multiplier=z, shares=count, share_sigma=1e5, parameters=size, devices=count)

    made = size_mechanism(
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=calibrate(Budget(epsilon=EPSILON, delta=DELTA), ROUNDS, release),
        colluders=0,
        devices=count,
        threshold=count,
        bits=32,
        parameters=size,
    )
    shares = [
        noisy_words(
            clip(delta, l2_clip_norm=l2_clip_norm, allowance=made.allowance).vectors,
            made,
            noise_bytes(os_entropy(32)),
        )[wanted]
        for delta in deltas
    ]
    return decode_sum(np.sum(shares, axis=0, dtype=shares[0].dtype), made.terms.step)


def _picture(curve: list[dict[str, float | str]]) -> str:
    """Share of words over devices in the sum, a line for each rank without noise and each noise at the larger rank."""
    lines = {
        f"rank {RANKS[0]}, no noise": (RANKS[0], "no noise", "#d08a2e"),
        f"rank {RANKS[1]}, no noise": (RANKS[1], "no noise", "#2a6fb0"),
        f"rank {RANKS[1]}, client noise, epsilon 8": (RANKS[1], "client noise", "#5a9e5a"),
        f"rank {RANKS[1]}, DP-SGD, epsilon 1": (RANKS[1], "DP-SGD", "#888"),
    }
    left, top, width, height = 60, 40, 520, 220
    drawn = [
        f'<line x1="{left}" x2="{left + width}" y1="{top + height * (1 - share)}" y2="{top + height * (1 - share)}" '
        f'stroke="#ddd"/><text x="{left - 8}" y="{top + height * (1 - share) + 4}" text-anchor="end">{share:.0%}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    places = {devices: left + width * i / (len(SUMS) - 1) for i, devices in enumerate(SUMS)}
    drawn += [f'<text x="{x}" y="{top + height + 20}" text-anchor="middle">{m}</text>' for m, x in places.items()]
    for row, (name, (rank, noise, colour)) in enumerate(lines.items()):
        shares = {r["devices"]: float(r["words"]) for r in curve if r["rank"] == rank and r["noise"] == noise}
        points = " ".join(f"{places[int(m)]:.0f},{top + height * (1 - share):.1f}" for m, share in shares.items())
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        y = top + height + 62 + 18 * row
        drawn.append(
            f'<line x1="{left}" x2="{left + 24}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        drawn.append(f'<text x="{left + 32}" y="{y}">{html.escape(name)}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 400" role="img" '
        'aria-label="Share of one device&#39;s words that are read from a sum, by devices in the sum">\n'
        "<style>text{font:12px system-ui,sans-serif;fill:#222}</style>\n"
        '<rect width="640" height="400" fill="#fff"/>\n'
        f'<text x="{left}" y="22" font-weight="600">Words of one device read from a sum of updates</text>\n'
        f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">devices in the sum</text>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )
