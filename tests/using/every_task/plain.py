"""What transformers and peft alone make of an exported folder: the answers with which every cell is compared.

Nothing here imports fedpeft. The model is loaded by the lines of the folder's own README.md, or from a merged folder by
transformers; prompts are written as the conventions' authors publish them.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Plain", "by_readme", "by_transformers"]

TOKENS = 6
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
AUTO = {
    "classify": "AutoModelForSequenceClassification",
    "multi-label": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classify": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "preference": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "embeddings": "AutoModel",
}


def by_readme(folder: Path, base: Path) -> tuple[Any, Any]:
    """Model and tokenizer by the code of the folder's README.md."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("<this directory>", str(folder)).replace("<the base model>", str(base)), names)  # noqa: S102
    return names["model"].eval(), names["tokenizer"]


def by_transformers(folder: Path, kind: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder that is one ordinary model."""
    import transformers

    model = getattr(transformers, AUTO[kind]).from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


class Plain:
    """A model asked row by row.

    Args:
        model, tokenizer: of ``by_readme`` or ``by_transformers``.
        kind: the task.
        longest: tokens of an example.
    """

    def __init__(self, model: Any, tokenizer: Any, kind: str, longest: int) -> None:
        self.model, self.tokenizer, self.kind, self.longest = model, tokenizer, kind, longest
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config

    @torch.no_grad()
    def answer(self, row: dict[str, Any], tokens: int = TOKENS) -> dict[str, Any]:
        """As `adapter predict` says it: ``answer``, and the numbers that it comes from."""
        if self.kind in ("causal-lm", "seq2seq") or (self.kind == "preference" and "chosen" not in row):
            return {"answer": self._written(row, tokens)}
        if self.kind == "preference":
            margin = 0.1 * (self.gain(row, "chosen") - self.gain(row, "rejected"))
            return {"answer": "chosen" if margin > 0 else "rejected", "margin": margin}
        if self.kind == "embeddings":
            one, *others = (self.vector(row[name]) for name in ("anchor", "positive"))
            return {"cosines": [float(one @ other) for other in others]}
        names = self.config.id2label
        if self.kind == "token-classify":
            chosen = self._tags(row).argmax(-1).tolist()
            return {"answer": " ".join(f"{w}/{names[tag]}" for w, tag in zip(row["words"], chosen, strict=True))}
        logits = self._logits(row)
        if self.kind == "regression":
            return {"answer": float(logits[0])}
        if self.kind == "multi-label":
            shares = torch.sigmoid(logits)
            said = ";".join(names[i] for i in range(len(shares)) if shares[i] > 0.5)
        else:
            shares = torch.softmax(logits, -1)
            said = names[int(shares.argmax())]
        return {"answer": said, "probabilities": {names[i]: float(one) for i, one in enumerate(shares)}}

    @torch.no_grad()
    def loss(self, row: dict[str, Any]) -> tuple[float, int]:
        """The sum of its losses and how many; of vectors none."""
        ids = self.config.label2id
        if self.kind == "classify":
            return float(functional.cross_entropy(self._logits(row)[None], torch.tensor([ids[row["label"]]]))), 1
        if self.kind == "multi-label":
            truth = torch.tensor([float(name in row["label"]) for name in ids])
            return float(functional.binary_cross_entropy_with_logits(self._logits(row), truth)), 1
        if self.kind == "regression":
            return float((self._logits(row)[0] - row["label"]) ** 2), 1
        if self.kind == "preference":
            if "chosen" in row:
                margin = 0.1 * (self.gain(row, "chosen") - self.gain(row, "rejected"))
                return float(-functional.logsigmoid(torch.tensor(margin))), 1
            gain = 0.1 * self.gain(row, "completion")
            return float(1 - torch.sigmoid(torch.tensor(gain if row["label"] else -gain))), 1
        if self.kind == "seq2seq":
            source, target = (self.tokenizer(row[name], return_tensors="pt").input_ids for name in ("source", "target"))
            return float(self.model(input_ids=source, labels=target).loss * target.shape[1]), target.shape[1]
        if self.kind == "token-classify":
            truth = torch.tensor([ids[tag] for tag in row["tags"]])
            return float(functional.cross_entropy(self._tags(row), truth, reduction="sum")), len(truth)
        if "messages" in row:
            return self._last_turn(row["messages"])
        if self.kind == "causal-lm":
            prompt, answer = self._prompt(row), row.get("completion", row.get("output", row.get("text")))
            return self._continued(prompt if "text" not in row else "", answer)
        raise ValueError(self.kind)

    def gain(self, row: dict[str, Any], name: str) -> float:
        """How much more likely the adapter makes an answer than the base does."""

        def of_answer() -> float:
            if isinstance(row["prompt"], str):
                return self._continued(row["prompt"], row[name])[0]
            return self._last_turn([*row["prompt"], *row[name]])[0]

        with_it = of_answer()
        with self.model.disable_adapter():
            return of_answer() - with_it

    def _continued(self, prompt: str, answer: str) -> tuple[float, int]:
        """Minus the log probability of an answer and EOS behind a prompt, and how many tokens that is."""
        before = len(self.tokenizer(prompt, add_special_tokens=False).input_ids) + 1  # and BOS
        whole = self.tokenizer(prompt + answer, add_special_tokens=False).input_ids
        ids = torch.tensor([[self.tokenizer.bos_token_id, *whole, self.tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, :before] = -100
        count = int((labels != -100).sum())
        return float(self.model(input_ids=ids, labels=labels).loss * count), count

    def _last_turn(self, turns: list[dict[str, str]]) -> tuple[float, int]:
        """As ``_continued``, of what the chat template writes for the answer, its closing mark included."""
        before = self.tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False)
        whole = self.tokenizer.apply_chat_template(turns, tokenize=False)
        inputs = self.tokenizer(whole, add_special_tokens=False, return_tensors="pt", return_offsets_mapping=True)
        last = len(whole)
        trained = [len(before) <= begin and end <= last for begin, end in inputs.offset_mapping[0].tolist()]
        labels = inputs.input_ids.masked_fill(~torch.tensor([trained]), -100)
        return float(self.model(input_ids=inputs.input_ids, labels=labels).loss * sum(trained)), sum(trained)

    def _tags(self, row: dict[str, Any]) -> Tensor:
        inputs = self.tokenizer(
            row["words"] if self._splits else " ".join(row["words"]),
            is_split_into_words=self._splits, return_tensors="pt", truncation=True, max_length=self.longest,
        )  # fmt: skip
        return self.model(**inputs).logits[0][self._first(inputs, row["words"])]  # type: ignore[no-any-return]

    @property
    def _splits(self) -> bool:
        """Whether pieces of separate words are those of the words in a sentence."""
        return "wordpiece" in type(self.tokenizer.backend_tokenizer.model).__name__.lower()

    def _first(self, inputs: Any, words: list[str]) -> list[int]:
        if self._splits:
            places = inputs.word_ids(0)
            return [places.index(i) for i in range(len(words))]
        found, start = [], 0
        for word in words:  # where the space is a token of its own, it is the first of the word behind it
            space = inputs.char_to_token(0, start - 1) if start else None
            alone = space is not None and inputs.token_to_chars(0, space).start == start - 1
            found.append(space if alone else inputs.char_to_token(0, start))
            start += len(word) + 1
        return found

    def _logits(self, row: dict[str, Any]) -> Tensor:
        texts = [row[name] for name in ("text", "text_pair") if name in row]
        inputs = self.tokenizer(*texts, return_tensors="pt", truncation=True, max_length=self.longest)
        return self.model(**inputs).logits[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def vector(self, text: str) -> Tensor:
        """Of length 1."""
        inputs = self.tokenizer([text], return_tensors="pt", truncation=True, max_length=self.longest)
        states = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state[0]
        return functional.normalize(states.mean(0), dim=-1)

    def _prompt(self, row: dict[str, Any]) -> str:
        if "instruction" in row:
            return (ALPACA_INPUT if row["input"] else ALPACA).format_map(row)
        return str(row.get("prompt", row.get("source", row.get("text"))))

    def _written(self, row: dict[str, Any], tokens: int) -> str:
        turns = row["messages"][:-1] if "messages" in row else row.get("prompt")
        if isinstance(turns, list):
            made = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            made = self.tokenizer(self._prompt(row), return_tensors="pt")
        free = {"forced_bos_token_id": None, "forced_eos_token_id": None} if self.kind == "seq2seq" else {}
        ids = made["input_ids"]
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            **free,
        )[0]
        begun = 0 if self.kind == "seq2seq" else ids.shape[1]
        return str(self.tokenizer.decode(written[begun:], skip_special_tokens=True))
