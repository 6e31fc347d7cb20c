"""Gradient inversion reads text and label from a plain update, and neither from a masked or a private one."""

import numpy as np
import pytest

pytestmark = pytest.mark.torch

RANK, TEXTS = 16, 24


def _read(view: str) -> tuple[float, float]:
    """Shares of the tokens and of the labels that are read."""
    from fedpeft.config.model import Adapter, Lora
    from fedpeft.data import EncodedDataset
    from fedpeft.entropy import generator
    from fedpeft.ids import BlockId
    from fedpeft.methods import attach
    from fedpeft.methods.lora import LoraPart
    from fedpeft.testing.inversion import TextAttack, label_of, masked
    from fedpeft.testing.models import VOCABULARY, tiny_bert
    from fedpeft.testing.plans import plan_for
    from fedpeft.tuning import NoiseScale, train, train_privately

    union = attach(tiny_bert(), Adapter(lora=Lora(rank=RANK, tiers=(RANK,), targets=("v",))), seed=0)
    part = next(module for module in union.model.modules() if isinstance(module, LoraPart))
    attack = TextAttack.prepare(union, part, positions=10)
    up, head = BlockId("lora.B.t16"), BlockId("head")
    plan = plan_for((up, head), steps=1, rate=0.1, batch_size=1, optimizer="sgd", max_grad_norm=1e9)
    noise = NoiseScale(l2_clip_norm=1.0, noise_multiplier=0.8, sampling_rate=1.0)
    draw = generator(0, "texts")
    tokens, labels = [], []
    for i in range(TEXTS):
        length = int(draw.integers(5, 11))
        own = EncodedDataset(
            input_ids=(draw.integers(1, VOCABULARY, length).astype(np.int32),),
            labels=draw.integers(0, 3, 1).astype(np.int64),
            truncated=0,
        )
        before = union.initial_state()
        union.load(before)
        if view == "private":
            train_privately(union, own, plan, noise)
        else:
            train(union, own, plan, seed=i)
        after = union.extract([up, head])
        deltas = {block: after[block].astype(np.float64) - before[block] for block in (up, head)}
        if view == "masked":
            deltas = {block: masked(delta) for block, delta in deltas.items()}
        shape = tuple(next(iter(union.parameters(up).values())).shape)
        read = attack.read(deltas[up][: shape[0] * shape[1]].reshape(shape), length)
        tokens.append(np.mean(read == own.input_ids[0]))
        labels.append(label_of(deltas[head][-3:]) == own.labels[0])
    return float(np.mean(tokens)), float(np.mean(labels))


def test_a_plain_update_gives_the_text_and_its_label_away() -> None:
    tokens, labels = _read("plain")
    assert tokens > 0.95
    assert labels == 1.0


@pytest.mark.parametrize("view", ["masked", "private"])
def test_masks_alone_and_private_steps_alone_hide_them(view: str) -> None:
    """Of 120 tokens a guess is right once in 120, of three labels once in three; seven standard deviations above."""
    tokens, labels = _read(view)
    assert tokens < 0.10
    assert labels < 0.95
