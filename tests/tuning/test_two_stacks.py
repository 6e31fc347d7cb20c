"""An encoder-decoder's examples, one row each, give loss and gradient that transformers computes of two texts."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import build, load_model  # noqa: E402
from fedpeft.config.model import Adapter, Lora, Task  # noqa: E402
from fedpeft.data import Records, encode  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.methods.union import UnionAdapter, attach  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402
from fedpeft.tuning.evaluate import evaluate  # noqa: E402
from fedpeft.tuning.objective import Objective  # noqa: E402

pytestmark = pytest.mark.torch
PAIRS = [
    ("hello quick fox yes", "fox"),
    ("refund", "please good bad great awful"),
    ("late early rude service delayed plane", "why no"),
]


@pytest.fixture(params=["t5", "bart"])
def union(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[UnionAdapter, object]:
    from fedpeft.base import load_tokenizer

    artifact = build(str(save_model(request.param, tmp_path / "m")), quantize="none", store=tmp_path / "s")
    model = load_model(artifact, task="seq2seq", head_seed=0)
    return attach(model, Adapter.having(Lora(rank=4)), seed=1), load_tokenizer(artifact)


def examples(tokenizer: object, pairs: list[tuple[str, str]], max_length: int = 64):  # type: ignore[no-untyped-def]
    records = Records.of([{"source": source, "target": target} for source, target in pairs])
    return encode(records, Task(kind="seq2seq", max_length=max_length), (), tokenizer)  # type: ignore[arg-type]


def of_transformers(union: UnionAdapter, tokenizer, pairs):  # type: ignore[no-untyped-def]
    """The sum of the losses, by transformers' own call of one pair at a time, and how many tokens."""
    total, count = 0.0, 0
    for source, target in pairs:
        inputs = tokenizer([source], return_tensors="pt")
        labels = tokenizer([target], return_tensors="pt")["input_ids"]
        loss = union.model(input_ids=inputs["input_ids"], labels=labels).loss
        total = total + loss * labels.numel()
        count += labels.numel()
    return total, count


def test_loss_and_gradient_are_transformers_own(union) -> None:  # type: ignore[no-untyped-def]
    adapter, tokenizer = union
    adapter.train_only([block.block_id for block in adapter.spec.blocks if block.trainable])
    encoded = examples(tokenizer, PAIRS)
    trained = [p for p in adapter.model.parameters() if p.requires_grad]
    assert trained
    objective = Objective(adapter, encoded, cache=None, logit_offset=None, micro_batch=2, checkpointing=False)
    loss = objective.backward(np.arange(3))
    ours = [parameter.grad.clone() for parameter in trained]
    adapter.model.zero_grad()
    total, count = of_transformers(adapter, tokenizer, PAIRS)
    (total / count).backward()
    assert loss == pytest.approx(total.item() / count, rel=1e-5)
    for got, parameter in zip(ours, trained, strict=True):
        assert torch.allclose(got, parameter.grad, atol=1e-6)
    score = evaluate(adapter, encoded, limit=0, batch_size=3)
    assert score.loss_sum == pytest.approx(total.item(), rel=1e-5)
    assert score.examples == count


def test_too_long_a_pair_loses_ends_and_keeps_its_closing_tokens(union) -> None:  # type: ignore[no-untyped-def]
    _, tokenizer = union
    long = " ".join(["fox"] * 60)
    for source, target in [(long, "yes"), ("yes", long), (long, long)]:
        (whole,) = examples(tokenizer, [(source, target)], 8000).input_ids
        encoded = examples(tokenizer, [(source, target)], 24)
        (ids,), (labels,) = encoded.input_ids, encoded.labels
        assert encoded.truncated == 1
        assert len(whole) > 24 == len(ids)
        written = labels != -100
        assert written.any()
        assert not written[0]
        assert (ids[written] == labels[written]).all()
        assert list(np.flatnonzero(written)) == list(range(int(written.argmax()), 24)), "the target lies at the end"
        assert ids[-1] == whole[-1]


def test_a_prompt_is_refused_where_there_is_no_one_text_to_stand_before(tmp_path: Path) -> None:
    from fedpeft.catalogue import BY_NAME

    artifact = build(str(save_model("t5", tmp_path / "m")), quantize="none", store=tmp_path / "s")
    model = load_model(artifact, task="seq2seq", head_seed=0)
    with pytest.raises(ConfigInvalid, match="one backbone under its head"):
        attach(model, Adapter.having(BY_NAME["prompt"].example), seed=0)
