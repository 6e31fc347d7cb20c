"""A trained language model is asked as it was trained, and answers as transformers would."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fedpeft.adapter import AdapterState  # noqa: E402
from fedpeft.base import build, load_model, load_tokenizer  # noqa: E402
from fedpeft.config import parse  # noqa: E402
from fedpeft.data.prompts import answer_ends, question_tokens  # noqa: E402
from fedpeft.entropy import derive_seed  # noqa: E402
from fedpeft.methods import attach  # noqa: E402
from fedpeft.tasks import Convention  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402
from fedpeft_client.inference import Answerer, Sampling, TrainedModel  # noqa: E402

pytestmark = pytest.mark.torch
RUN = """
base.model = "x"
task = {kind = "causal-lm", max_length = 64}
data = {source = "x", partition = {clients = 3}}
adapter.lora = {rank = 2}
"""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("base")
    source = save_model("llama", folder / "m")
    (source / "chat_template.jinja").write_text(CHATML)
    artifact = build(str(source), quantize="int8", store=folder / "store")
    config = parse(RUN, source="run.toml", simulation=True)
    model = load_model(artifact, task="causal-lm", head_seed=derive_seed(config.run.seed, "head"))
    union = attach(model, config.adapter, seed=0)
    draw, start = np.random.Generator(np.random.Philox(5)), union.initial_state()
    moved = {b: (start[b] + 0.3 * draw.standard_normal(start[b].size)).astype(np.float32) for b in start}
    union.load(AdapterState(start.spec, moved))
    return TrainedModel(config, union, load_tokenizer(artifact), artifact)


@pytest.mark.parametrize("convention", [Convention.MESSAGES, Convention.PROMPT_COMPLETION, Convention.ALPACA])
def test_an_answer_is_the_greedy_one_of_transformers_on_the_merged_model(
    trained: TrainedModel, convention: Convention, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained.export_merged(tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    question = "What is seen?"
    asked = torch.from_numpy(question_tokens(question, convention, tokenizer).astype("int64"))[None]
    room = model.config.max_position_embeddings + 1 - asked.shape[1]  # the last token is read by nobody
    whole = model.generate(asked, do_sample=False, max_new_tokens=min(64, room), attention_mask=torch.ones_like(asked))
    answer = [token for token in whole[0, asked.shape[1] :].tolist() if token != tokenizer.eos_token_id]
    assert trained.predict([question], convention) == [tokenizer.decode(answer)]


def test_without_a_stated_convention_a_base_with_a_chat_template_is_asked_through_it(trained: TrainedModel) -> None:
    (stated,), (default,) = trained.predict(["a"], Convention.MESSAGES), trained.predict(["a"])
    assert default == stated
    assert trained.predict(["a"], Convention.TEXT) != [stated]


QUESTIONS = ("What is seen?", "a", "Which of the many birds sings in the red house at night?", "b c d")


def asked_of(asked: Answerer) -> list[np.ndarray]:
    return [asked.tokens_of({"text": text}) for text in QUESTIONS]


@pytest.mark.parametrize("how", [Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=0.9, top_p=0.8, seed=3)])
def test_answers_of_a_batch_are_those_of_one_question_alone(trained: TrainedModel, how: Sampling) -> None:
    asked = trained.answerer()
    questions = asked_of(asked)
    assert asked.decoder is not None
    assert asked.decoder.abilities.cache
    assert asked.decoder.abilities.padding
    together = asked.answers(questions, [how] * len(questions))
    assert together == [asked.answers([one], [how])[0] for one in questions]


def test_pieces_of_a_stream_are_the_answer_and_stop_before_a_stop_text(trained: TrainedModel) -> None:
    asked = trained.answerer()
    questions, how = asked_of(asked), [Sampling(max_tokens=12)] * len(QUESTIONS)
    whole = [one.text for one in asked.answers(questions, how)]
    stop = [(text[5:7],) for text in whole]
    for stops, expected in ((), whole), (stop, [text[: text.find(text[5:7])] for text in whole]):
        pieces = list(asked.stream(questions, how, stop=stops))
        assert ["".join(one.text for one in pieces if one.row == row) for row in range(len(whole))] == expected
        assert sum(one.answer is not None for one in pieces) == len(whole)


def test_a_seed_decides_what_is_drawn(trained: TrainedModel) -> None:
    asked = trained.answerer()
    (question, *_), hot = asked_of(asked), {"max_tokens": 12, "temperature": 2.0}
    one, same, other = (asked.answers([question], [Sampling(**hot, seed=seed)])[0].text for seed in (1, 1, 2))
    assert one == same != other


def test_a_model_that_a_cache_would_change_is_asked_without(trained: TrainedModel, tmp_path: Path) -> None:
    class Forgetful(torch.nn.Module):
        """Adds to each token how many come with it, which a cache hides."""

        def __init__(self, inner: "torch.nn.Module") -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids: "torch.Tensor", **others: object) -> object:
            output = self.inner(input_ids=input_ids, **others)
            output.logits = output.logits + torch.arange(output.logits.shape[-1]) * input_ids.shape[1]
            return output

    whole = trained.answerer()
    forgetful = Answerer(Forgetful(trained._union.model), whole.tokenizer)
    assert forgetful.decoder is not None
    assert not forgetful.decoder.abilities.cache
    assert not forgetful.decoder.abilities.padding
    questions, how = asked_of(forgetful), [Sampling(max_tokens=3)] * len(QUESTIONS)
    assert forgetful.answers(questions, how) == [forgetful.answers([q], how[:1])[0] for q in questions]


def test_an_answer_ends_with_the_mark_that_the_chat_template_closes_a_turn_with(trained: TrainedModel) -> None:
    import copy

    tokenizer = copy.deepcopy(trained.answerer().tokenizer)
    assert answer_ends(Convention.MESSAGES, tokenizer) == {tokenizer.eos_token_id}, "no token of its own"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answer_ends(Convention.MESSAGES, tokenizer) == {tokenizer.eos_token_id, end}
    assert answer_ends(Convention.ALPACA, tokenizer) == {tokenizer.eos_token_id}
