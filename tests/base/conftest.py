"""Two tiny models on disk, as Hugging Face directories, and a store to build into."""

from pathlib import Path

import pytest

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "late",
    "flight",
    "thank",
    "you",
    "bag",
    "lost",
    "the",
    "a",
    "gate",
)


def save_tokenizer(directory: Path) -> None:
    """A word-level tokenizer over ``WORDS``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]")
    fast.save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare BertModel, as sentence encoders are published: names without the `bert.` prefix."""
    import torch
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=32, pad_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        BertModel(config).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings, grouped heads, and columns (80) that are no multiple of 32 in one matrix."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=80, max_position_embeddings=32, tie_word_embeddings=True, initializer_range=0.2,
            attention_dropout=0.5,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(directory)
    save_tokenizer(directory)
    return directory
