"""A trained language model is asked as it was trained, and answers as transformers would."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fedpeft.adapter import AdapterState  # noqa: E402
from fedpeft.base import build, load_model, load_tokenizer  # noqa: E402
from fedpeft.config import parse  # noqa: E402
from fedpeft.data.prompts import question_tokens  # noqa: E402
from fedpeft.entropy import derive_seed  # noqa: E402
from fedpeft.methods import attach  # noqa: E402
from fedpeft.tasks import Convention  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402
from fedpeft_client.inference import TrainedModel  # noqa: E402

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
    whole = model.generate(asked, do_sample=False, max_new_tokens=64, attention_mask=torch.ones_like(asked))
    answer = [token for token in whole[0, asked.shape[1] :].tolist() if token != tokenizer.eos_token_id]
    assert trained.predict([question], convention) == [tokenizer.decode(answer)]


def test_without_a_stated_convention_a_base_with_a_chat_template_is_asked_through_it(trained: TrainedModel) -> None:
    (stated,), (default,) = trained.predict(["a"], Convention.MESSAGES), trained.predict(["a"])
    assert default == stated
    assert trained.predict(["a"], Convention.TEXT) != [stated]
