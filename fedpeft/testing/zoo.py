"""Tiny random models of the architectures that people fine-tune, as transformers publishes them, and what they compute.

``zoo.json`` has one row a model: its architecture, the settings that exercise what it is known for (windows,
soft caps, experts, fused matrices), and its tokenizer. All weights, norms, biases and buffers are redrawn:
with the values that transformers initialises, half of all mistakes would not show.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from fedpeft.base.architecture import quiet_transformers
from fedpeft.base.artifact import TaskName
from fedpeft.tasks.form import SEQ2SEQ, TEXT

__all__ = ["NAMES", "ROWS", "SAMPLE", "logits_apart", "save_model", "save_tokenizer", "transformers_model"]

ROWS: Mapping[str, Mapping[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES = tuple(ROWS)
SAMPLE = frozenset(
    {
        *("bert", "distilbert", "albert", "modernbert", "xlnet"),
        *("gpt2", "gpt_neox", "phi3", "mixtral", "granitemoehybrid", "gemma4_text"),
        "m2m_100",  # its class has no rule of its own for what a decoder reads
        "marian",  # no checkpoint holds its positions
        "youtu",  # its class writes into the embedding whenever it initialises
        "gemma3-vlm",
    }
)
"""A tenth of the rows, each of another kind: what `make test` asks; `make slow` asks all."""
WORDS = "refund flight please good bad great awful service delayed plane late early rude hello quick fox yes no why"
TEXTS = [f"{WORDS} 0123456789 User: Assistant:\n"] * 30
CLASSES = {
    "lm": ("AutoModelForCausalLM",),
    "mlm": ("AutoModelForMaskedLM", "AutoModel"),
    "s2s": ("AutoModelForSeq2SeqLM",),
    "multimodal": ("AutoModelForImageTextToText",),
}


def save_model(name: str, directory: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Write the model of one row into ``directory``, as ``save_pretrained`` does.

    Args:
        dtype: of the stored weights.
        changes: settings other than the row's.
    """
    row = ROWS[name]
    tokenizer = _wordpiece() if row["tokenizer"] == "wordpiece" else _byte_pairs(**row["tokenizer"])
    own = {
        "vocab_size": -(-len(tokenizer) // 32) * 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings = {**row["config"], **changes}
    if "text_config" in settings:
        settings["text_config"] = {**own, **settings["text_config"]}
    else:
        settings = {**own, **settings}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(row["model_type"], **settings)
        model = _first_of(CLASSES[row["kind"]], lambda auto: auto.from_config(config))
        redraw(model)
        model.to(dtype).save_pretrained(directory)  # type: ignore[operator]
        tokenizer.save_pretrained(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer beside weights that were written in another way."""
    _byte_pairs(bos="<s>", eos="</s>", around="bos").save_pretrained(directory)


def redraw(model: nn.Module) -> None:
    """Give every tensor that a checkpoint holds values of its own, of a size at which a forward stays tame."""
    generator = torch.Generator().manual_seed(7)
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point() or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        drawn = torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            if tensor.dim() >= 2:
                size = 0.12 if "embed" in name or "wte" in name else 0.96 / max(tensor.shape[-1], 1) ** 0.5
                tensor.copy_(drawn * size)
            else:
                tensor.add_(drawn * (0.02 if "A_log" in name or "dt" in name else 0.12))


def transformers_model(directory: Path, task: TaskName, head: Mapping[str, Tensor], pad: int | None) -> nn.Module:
    """What transformers itself loads from a folder, in float32, with the given values for a new head."""
    names: tuple[str, ...] = ("AutoModelForSequenceClassification",)
    if task == TEXT:
        names = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
    if task == SEQ2SEQ:
        names = ("AutoModelForSeq2SeqLM",)
    with quiet_transformers():
        model = _first_of(names, lambda auto: auto.from_pretrained(directory, dtype=torch.float32)).eval()
    for config in (model.config, model.config.get_text_config()):  # type: ignore[union-attr, operator]
        config.pad_token_id = pad  # type: ignore[union-attr]
    held = model.state_dict()
    with torch.no_grad():
        for name, value in head.items():
            held[name].copy_(value)
    return model


def logits_apart(one: nn.Module, other: nn.Module, task: TaskName) -> tuple[float, float]:
    """The largest difference of two models' logits, and their size: sentences longer than any window, one padded."""
    vocabulary = min(int(model.config.get_text_config().vocab_size) for model in (one, other))  # type: ignore[union-attr, operator]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocabulary, (2, 40), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    target = {"decoder_input_ids": ids.flip(0)} if task == SEQ2SEQ else {}
    with torch.no_grad():
        first, second = (model(input_ids=ids, attention_mask=mask, **target).logits for model in (one, other))
    real = mask.bool() if task == TEXT else slice(None)
    return float((first[real] - second[real]).abs().max()), float(second[real].abs().max())


def _first_of(classes: tuple[str, ...], make: Callable[[Any], nn.Module]) -> nn.Module:
    for name in classes[:-1]:
        with contextlib.suppress(ValueError):  # transformers has no such class for it
            return make(getattr(transformers, name))
    return make(getattr(transformers, classes[-1]))


def _byte_pairs(
    *, eos: str, bos: str | None = None, pad: str | None = None, unk: str | None = None, mask: str | None = None,
    around: str | None = None,
) -> PreTrainedTokenizerFast:  # fmt: skip
    named = {"bos_token": bos, "pad_token": pad, "eos_token": eos, "unk_token": unk, "mask_token": mask}
    special = {key: token for key, token in named.items() if token}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = list(dict.fromkeys(special.values()))
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=tokens, initial_alphabet=alphabet)
    )
    if around is not None:
        ends = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
        single = f"{bos} $A {eos}" if around == "both" else f"{bos} $A"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    if around == "both":
        special |= {"cls_token": str(bos), "sep_token": eos}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special)


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of a vocabulary
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokens = list(special.values())
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=tokens))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **named)
