"""``fedpeft.load_adapter``: what a run kept, ready to answer."""

from pathlib import Path

import pytest

import fedpeft
from tests.api.conftest import birds

pytestmark = [pytest.mark.torch, pytest.mark.e2e]


def test_a_loaded_adapter_is_the_one_that_the_run_exported(finished: fedpeft.Result, toys: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = fedpeft.load_adapter(finished.adapter, store=toys / "store")
    assert model.labels == ("a", "b")
    tokens = model.tokenizer(["the red bird 3"], return_tensors="pt")
    inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    base = AutoModelForSequenceClassification.from_pretrained(toys / "my-model", num_labels=2)
    with torch.no_grad():
        ours = model.torch_model(**inputs).logits
        theirs = PeftModel.from_pretrained(base, finished.adapter).eval()(**inputs).logits
    assert float((ours - theirs).abs().max()) < 0.05, "the base is quantized here and whole there"


def test_its_score_on_everything_is_near_the_runs_last_row(finished: fedpeft.Result, toys: Path) -> None:
    score = finished.model(store=toys / "store").evaluate(birds())
    assert score["predictions"] == 60
    assert score["loss"] == pytest.approx(finished.metrics[-1]["loss"], rel=0.2)
    assert set(finished.model(store=toys / "store").predict("the red bird")) <= {"a", "b"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fedpeft.FedpeftError, match="copied adapter loads with peft"):
        fedpeft.load_adapter(tmp_path)
    with pytest.raises(fedpeft.FedpeftError, match="found none"):
        fedpeft.load_adapter(tmp_path / "nothing")
