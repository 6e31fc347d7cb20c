"""Answers that an evaluation generates: asked as trained, written as transformers writes them, scored row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.config.task import Task
from fedpeft.data import Records, encode
from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.errors import ConfigInvalid
from fedpeft.tasks.generated import Generation, exact_match, rouge_l
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, tiny_tokenizer
from fedpeft.tuning import Evaluation
from fedpeft.tuning.evaluate import metrics_of
from fedpeft.tuning.generation.scores import with_answers

pytestmark = pytest.mark.torch
WORDS = [f"w{i}" for i in range(116)]  # with four special tokens the tiny model's vocabulary
TASK = Task(kind="causal-lm", max_length=24, generate=12, max_new_tokens=6)
NOTHING = Evaluation(loss_sum=0.0, correct=0, examples=1)


def rows(count: int = 12) -> list[dict[str, object]]:
    return [
        {"prompt": " ".join(WORDS[i : i + 1 + i % 5]), "completion": f" {WORDS[3 * i]} {WORDS[i]}"}
        for i in range(count)
    ]


def examples_of(made: list[dict[str, object]], task: Task = TASK) -> EncodedDataset:
    return encode(Records.of(made), task, (), tiny_tokenizer(WORDS))


def of_transformers(made: list[dict[str, object]], cut: int = 6) -> list[tuple[float, bool]]:
    """Each row by itself, without our rendering, batches or cache."""
    model, tokenizer, found = tiny_llama(), tiny_tokenizer(WORDS), []
    for row in made:
        ids = tokenizer([str(row["prompt"])], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            ids_out = model.generate(input_ids=ids, max_new_tokens=cut, do_sample=False, eos_token_id=2, pad_token_id=0)
        text = tokenizer.decode(ids_out[0, ids.shape[1] :], skip_special_tokens=True)
        found.append((rouge_l(str(row["completion"]), text), exact_match(str(row["completion"]), text)))
    return found


def written_by_the_model(made: list[dict[str, object]]) -> list[dict[str, object]]:
    """Some completions become what the model writes, so that not every score is 0."""
    model, tokenizer = tiny_llama(), tiny_tokenizer(WORDS)
    changed = []
    for i, row in enumerate(made):
        ids = tokenizer([str(row["prompt"])], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        words = text.split()
        kept = words if i % 3 == 0 else [*words[: len(words) // 2], WORDS[0]] if i % 3 == 1 else None
        changed.append(row if not kept else {**row, "completion": f" {' '.join(kept)}"})
    return changed


def test_the_scores_are_those_of_what_transformers_generates() -> None:
    made = written_by_the_model(rows())
    expected = of_transformers(made)
    score = with_answers(NOTHING, tiny_llama(), tiny_tokenizer(WORDS), examples_of(made), TASK)
    found = metrics_of(TASK, score)
    assert found["rouge_l"] == pytest.approx(np.mean([one for one, _ in expected]), abs=1e-6)
    assert found["exact_match"] == pytest.approx(np.mean([same for _, same in expected]), abs=1e-6)
    assert 0 < found["exact_match"] < found["rouge_l"] < 1
    assert score.lane_weight == len(made)


def test_so_many_rows_are_asked_and_always_the_same_ones() -> None:
    made, task = examples_of(rows()), TASK.model_copy(update={"generate": 5})
    scores = [with_answers(NOTHING, tiny_llama(), tiny_tokenizer(WORDS), made, task) for _ in range(2)]
    assert scores[0].lane_weight == scores[1].lane_weight == 5
    assert scores[0].lanes == pytest.approx(scores[1].lanes)
    more = with_answers(
        NOTHING, tiny_llama(), tiny_tokenizer(WORDS), made, TASK, generation=Generation(rows=7, max_new_tokens=6)
    )
    assert more.lane_weight == 7


def test_the_weights_are_those_of_the_examples_that_were_asked() -> None:
    made = written_by_the_model(rows())
    weights = np.linspace(0.5, 1.5, len(made))
    score = with_answers(NOTHING, tiny_llama(), tiny_tokenizer(WORDS), examples_of(made), TASK, weights=weights)
    expected = np.average([one for one, _ in of_transformers(made)], weights=weights)
    assert metrics_of(TASK, score)["rouge_l"] == pytest.approx(expected, abs=1e-6)


def test_an_example_without_a_prompt_or_without_its_end_is_left_out() -> None:
    plain = encode(Records.of([{"text": "w1 w2 w3"}] * 3), TASK, (), tiny_tokenizer(WORDS))
    nothing = with_answers(NOTHING, tiny_llama(), tiny_tokenizer(WORDS), plain, TASK)
    assert nothing.lanes is not None
    assert not nothing.lanes.any()
    assert metrics_of(TASK, nothing).keys() == {"loss", "accuracy"}
    long = [{"prompt": "w1", "completion": " ".join(WORDS[:40])}, *rows(2)]
    assert with_answers(NOTHING, tiny_llama(), tiny_tokenizer(WORDS), examples_of(long), TASK).lane_weight == 2


def test_the_last_answer_of_a_conversation_is_what_is_asked_for() -> None:
    """Turns before it stay in the prompt, with their answers."""
    ids = np.array([1, 10, 11, 2, 12, 13, 14, 2], np.int32)
    labels = np.where(np.isin(np.arange(8), [2, 3, 6, 7]), ids, IGNORED).astype(np.int64)
    made = EncodedDataset(input_ids=(ids,), labels=(labels,), truncated=0)
    tokenizer, model = tiny_tokenizer(WORDS), tiny_llama()
    with torch.no_grad():
        asked = torch.from_numpy(ids[:6])[None].long()
        out = model.generate(input_ids=asked, max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
    text = tokenizer.decode(out[0, 6:], skip_special_tokens=True)
    right = np.array([*ids[:6], *tokenizer([text])["input_ids"][0], 2], np.int32)
    own = np.where(np.arange(len(right)) > 5, right, IGNORED).astype(np.int64)
    own[2:4] = right[2:4]
    same = with_answers(NOTHING, model, tokenizer, replace(made, input_ids=(right,), labels=(own,)), TASK)
    assert metrics_of(TASK, same)["exact_match"] == 1
    assert metrics_of(TASK, with_answers(NOTHING, model, tokenizer, made, TASK))["exact_match"] == 0


def test_an_encoder_decoder_s_answers_are_scored_without_the_token_that_begins_them() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    layers = {f"{side}_layers": 1 for side in ("encoder", "decoder")}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    widths = {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")}
    ids = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "tie_word_embeddings": False,
    }
    config = BartConfig(vocab_size=120, d_model=16, max_position_embeddings=64, **layers, **heads, **widths, **ids)
    torch.manual_seed(5)
    model, tokenizer = BartForConditionalGeneration(config).eval(), tiny_tokenizer(WORDS)
    torch.nn.init.normal_(model.lm_head.weight)
    free = {"forced_bos_token_id": None, "forced_eos_token_id": None, "do_sample": False, "num_beams": 1}
    made, expected = [], []
    for i in range(9):
        source = " ".join(WORDS[i : i + 2 + i % 3])
        asked = tokenizer([source], return_tensors="pt")["input_ids"]
        text = tokenizer.decode(model.generate(input_ids=asked, max_new_tokens=6, **free)[0], skip_special_tokens=True)
        assert text
        target = f"{text} {WORDS[0]}" if i % 3 else text
        made.append({"source": source, "target": target})
        expected.append((rouge_l(target, text), exact_match(target, text)))
    task = Task(kind="seq2seq", max_length=24, generate=9, max_new_tokens=6)
    found = metrics_of(task, with_answers(NOTHING, model, tokenizer, examples_of(made, task), task))
    assert found["rouge_l"] == pytest.approx(np.mean([one for one, _ in expected]), abs=1e-6)
    assert (
        found["exact_match"] == pytest.approx(np.mean([same for _, same in expected]), abs=1e-6) == pytest.approx(1 / 3)
    )


def test_a_task_that_does_not_write_is_refused() -> None:
    wanted = Generation(rows=3, max_new_tokens=3)
    with pytest.raises(ConfigInvalid, match="Expected a task whose answers can be generated, found classify"):
        with_answers(
            NOTHING, tiny_bert(), tiny_tokenizer(WORDS), class_examples(4), Task(kind="classify"), generation=wanted
        )
