"""Tiny transformers and data sets for tests: seconds become milliseconds, every code path stays."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.entropy import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "class_examples",
    "examples_for",
    "save_tiny",
    "tiny_bert",
    "tiny_llama",
    "tiny_tokenizer",
    "token_examples",
]

VOCABULARY = 120


def tiny_bert(*, layers: int = 3, classes: int = 3, seed: int = 0, vocabulary: int = VOCABULARY) -> nn.Module:
    """A BERT classifier of width 32 without dropout; its weights depend on ``seed`` only."""
    return deepcopy(_bert(layers, classes, seed, vocabulary))


def tiny_llama(*, layers: int = 3, seed: int = 0) -> nn.Module:
    """A Llama language model of width 32 with grouped queries; its weights depend on ``seed`` only."""
    return deepcopy(_llama(layers, seed))


@lru_cache(maxsize=16)
def _bert(layers: int, classes: int, seed: int, vocabulary: int) -> nn.Module:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _drawn(BertForSequenceClassification(config), seed)


@lru_cache(maxsize=16)
def _llama(layers: int, seed: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return _drawn(LlamaForCausalLM(config), seed)


WORDS = ("red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "the", "a", "what", "does", "b", "c")


def save_tiny(model: nn.Module, folder: Path) -> None:
    """The model and a tokenizer of a few words, as ``save_pretrained`` writes them."""
    model.save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(folder)


def tiny_tokenizer(words: Sequence[str] = WORDS) -> "PreTrainedTokenizerFast":
    """Four special tokens, and these words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {word: index for index, word in enumerate([*special.values(), *words])}
    of_words = Tokenizer(WordLevel(vocabulary, unk_token=special["unk_token"]))
    of_words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=of_words, **special)


def class_examples(count: int = 48, *, classes: int = 3, seed: int = 0) -> EncodedDataset:
    """Token sequences of 4 to 20 tokens whose class is the last digit base ``classes`` of their second token."""
    draw = generator(seed, "class examples")
    ids = tuple(draw.integers(1, VOCABULARY, int(draw.integers(4, 21))).astype(np.int32) for _ in range(count))
    labels = np.array([int(row[1]) % classes for row in ids], np.int64)
    return EncodedDataset(input_ids=ids, labels=labels, truncated=0)


def token_examples(count: int = 32, *, seed: int = 0) -> EncodedDataset:
    """Sequences whose second half counts on from one token; only that half is labelled."""
    draw = generator(seed, "token examples")
    ids, labels = [], []
    for _ in range(count):
        half, start = int(draw.integers(3, 9)), int(draw.integers(1, VOCABULARY - 12))
        row = np.concatenate([np.full(half, start), start + np.arange(half)]).astype(np.int32)
        ids.append(row)
        labels.append(np.where(np.arange(2 * half) < half, IGNORED, row).astype(np.int64))
    return EncodedDataset(input_ids=tuple(ids), labels=tuple(labels), truncated=0)


def examples_for(build: Callable[..., nn.Module], count: int = 48, *, seed: int = 0) -> EncodedDataset:
    """Examples that the tiny model which ``build`` makes can learn."""
    return (token_examples if build is tiny_llama else class_examples)(count, seed=seed)


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter redrawn, biases too: a model whose biases are zero hides mistakes."""
    draw = generator(seed, "tiny weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = draw.standard_normal(tuple(parameter.shape)).astype(np.float32)
            scale, offset = (0.1, 1.0) if "norm" in name.lower() and name.endswith("weight") else (0.2, 0.0)
            parameter.copy_(torch.from_numpy(values) * scale + offset)
    return model.requires_grad_(requires_grad=False).eval()
