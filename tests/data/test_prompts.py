"""A question is written as in training: the example's tokens begin with the question's."""

import pytest

from fedpeft.config.model import Task
from fedpeft.data import IGNORED, Records, encode
from fedpeft.data.prompts import question_tokens
from fedpeft.errors import ConfigInvalid, DataInvalid
from fedpeft.tasks import Convention

zoo = pytest.importorskip("fedpeft.testing.zoo")
pytestmark = pytest.mark.torch

QUESTION, ANSWER = "What is seen on the scan?", "nothing of note"
ROWS: dict[Convention, dict[str, object]] = {
    Convention.MESSAGES: {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    },
    Convention.PROMPT_COMPLETION: {"prompt": QUESTION, "completion": " " + ANSWER},
    Convention.ALPACA: {"instruction": QUESTION, "output": ANSWER},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITES_BOS = "{{ bos_token }}" + CHATML


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(zoo.save_model("llama", tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("template", [None, CHATML, WRITES_BOS], ids=["none", "chatml", "chatml with bos"])
@pytest.mark.parametrize("convention", ROWS)
def test_an_example_begins_with_its_question_and_goes_on_with_what_is_trained(tokenizer, convention, template) -> None:
    tokenizer.chat_template = template
    encoded = encode(Records.of([ROWS[convention]]), Task(kind="causal-lm", max_length=1024), (), tokenizer)
    tokens, labels = encoded.input_ids[0].tolist(), list(encoded.labels[0])
    question = question_tokens(QUESTION, convention, tokenizer).tolist()
    assert tokens[: len(question)] == question
    assert labels[: len(question)] == [IGNORED] * len(question)
    assert labels[len(question)] != IGNORED, "the answer begins here"


def test_a_text_goes_on_as_it_stands(tokenizer) -> None:
    tokenizer.chat_template = CHATML
    encoded = encode(Records.of([{"text": QUESTION + ANSWER}]), Task(kind="causal-lm", max_length=1024), (), tokenizer)
    question = question_tokens(QUESTION, Convention.TEXT, tokenizer).tolist()
    assert encoded.input_ids[0].tolist()[: len(question)] == question


def test_nothing_asked_is_refused(tokenizer) -> None:
    tokenizer.bos_token = None
    with pytest.raises(DataInvalid, match="found an empty text"):
        question_tokens("", Convention.TEXT, tokenizer)


def test_a_template_without_end_is_refused(tokenizer) -> None:
    tokenizer.chat_template = "{% for i in range(10**9) %}{% for j in range(10**9) %}x{% endfor %}{% endfor %}"
    with pytest.raises((ConfigInvalid, DataInvalid)):
        question_tokens(QUESTION, Convention.MESSAGES, tokenizer)
