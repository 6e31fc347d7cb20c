"""The tokenizer of a source: its files without local paths, as every device loads them, and whether it fits the model.

What is shipped loads without sentencepiece: a vocabulary in sentencepiece's own format is converted here, once, at
the publisher. A tokenizer that lost its vocabulary still loads in transformers, and maps every word to one unknown
token; here it is refused.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.base.architecture import quiet_transformers
from fedpeft.base.fact_entries import TokenizerFacts
from fedpeft.base.source import SENTENCEPIECE_FILES, TOKENIZER_FILES, ModelSource, read_json
from fedpeft.base.store import write_json
from fedpeft.errors import ConfigInvalid, FedpeftError, ResourceMissing
from fedpeft.isolated import IsolationEnded, isolated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROBE", "check_tokenizer", "open_tokenizer", "write_tokenizer"]

PROBE = "The patient was seen on 12 March 2024; blood pressure 120/80. El niño está bien. 你好"
_TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
VOLATILE_KEYS = (
    "name_or_path",
    "_name_or_path",
    "tokenizer_file",
    "special_tokens_map_file",
    "is_local",
    "local_files_only",
)


def write_tokenizer(source: ModelSource, target: Path) -> "PreTrainedTokenizerBase":
    """Put the tokenizer's files into ``target``, without local paths, and load them as a device will.

    Raises:
        ConfigInvalid: transformers cannot load it, or its vocabulary is not among the files.
        ResourceMissing: its vocabulary is sentencepiece's and the package is not installed.
    """
    if source.root is None:
        raise ValueError(f"Expected a source with files, found {source.origin}.")
    try:
        with quiet_transformers():
            _copy(source, source.root, target)
            settings = target / "tokenizer_config.json"
            if settings.is_file():
                content = read_json(settings)
                write_json(settings, {key: value for key, value in content.items() if key not in VOLATILE_KEYS})
            tokenizer = open_tokenizer(target)
    except FedpeftError:
        raise
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ConfigInvalid(
            f"Expected a tokenizer that transformers loads in {source.origin}, found {error}; "
            "save it with transformers."
        ) from error
    except BaseException as error:  # tokenizers panics by an exception of its own that is none of Exception's
        if type(error).__name__ != "PanicException":
            raise
        raise ConfigInvalid(
            f"Expected a tokenizer that can be loaded in {source.origin}, found one that breaks the tokenizers "
            "library; save it with transformers."
        ) from error
    _refuse_without_vocabulary(tokenizer, target)
    _check_template(tokenizer, source.origin)
    return tokenizer


def _check_template(tokenizer: "PreTrainedTokenizerBase", origin: str) -> None:
    """Returns when the chat template renders two turns within limits, or says that it takes no such turns.

    Raises:
        ConfigInvalid: it takes more time or memory than any template needs.
    """
    if not tokenizer.chat_template:
        return
    try:
        isolated(lambda: str(tokenizer.apply_chat_template(_TURNS, tokenize=False)), cpu_s=5.0, memory_bytes=512 << 20)
    except IsolationEnded as ended:
        if ended.exhausted:
            raise ConfigInvalid(
                f"Expected a chat template that renders two turns in {origin}, found that {ended}; devices would "
                "refuse it: use another model, or remove the template."
            ) from ended


def _copy(source: ModelSource, root: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    if source.kind == "gguf":
        AutoTokenizer.from_pretrained(root, gguf_file=source.files[0].name).save_pretrained(target)
        return
    models = [name for name in ("tokenizer.model", *SENTENCEPIECE_FILES) if (root / name).is_file()]
    if not models or (root / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (root / name).is_file():
                (target / name).write_bytes((root / name).read_bytes())
        return
    if importlib.util.find_spec("sentencepiece") is None:
        raise ResourceMissing(
            f"Expected the package sentencepiece to convert {models[0]}, found none; "
            "pip install fedpeft[sentencepiece], or save the tokenizer with transformers."
        )
    settings = read_json(root / "tokenizer_config.json") if (root / "tokenizer_config.json").is_file() else {}
    try:
        tokenizer = open_tokenizer(root)
        found = f"{len(tokenizer)} tokens"
    except Exception as error:  # the tokenizers package raises nothing narrower
        tokenizer, found = None, str(error)
    if tokenizer is None or not tokenizer.is_fast or len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise ConfigInvalid(
            f"Expected the vocabulary of {settings.get('tokenizer_class', 'the tokenizer')} in {models[0]}, found "
            f"{found}; fetch the file again, or save the tokenizer with transformers."
        )
    tokenizer.save_pretrained(target)


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder as it is; ``load_tokenizer`` gives it a padding token."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def _refuse_without_vocabulary(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    names = sorted(set(tokenizer.vocab_files_names.values()))
    special = set(tokenizer.all_special_tokens)
    lost = names and not any((folder / name).is_file() for name in names)
    if lost or not set(tokenizer.get_vocab()) - special:
        raise ConfigInvalid(
            f"Expected the vocabulary of {type(tokenizer).__name__} ({' or '.join(names)}) among the tokenizer's "
            f"files, found {'no such file' if lost else 'only its special tokens'}; fetch the missing file, "
            "or save the tokenizer with transformers."
        )


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", rows: int | None) -> TokenizerFacts:
    """What a task needs to know of a tokenizer before a device loads it.

    Args:
        rows: of the model's input embedding; ``None`` when it has none of the usual kind.

    Raises:
        ConfigInvalid: it has tokens that the model has no embedding for, or it cannot encode a sentence.
    """
    vocabulary = tokenizer.get_vocab()
    if rows is not None and (beyond := _beyond(tokenizer, vocabulary, rows)):
        raise ConfigInvalid(
            f"Expected token ids below {rows}, the rows of the model's embedding, found {len(beyond)} beyond, such as "
            f"{beyond[0]!r} ({vocabulary[beyond[0]]}); use the model's own tokenizer, or resize the embedding and save "
            "the model again."
        )
    try:
        ids = [int(number) for number in tokenizer(PROBE)["input_ids"]]
    except Exception as error:  # see write_tokenizer
        raise ConfigInvalid(f"Expected a tokenizer that encodes a sentence, found {error}; use another.") from error
    bare = [int(number) for number in tokenizer(PROBE, add_special_tokens=False)["input_ids"]]
    unknown = tokenizer.unk_token_id
    return TokenizerFacts(
        tokens=len(vocabulary),
        largest_id=max(vocabulary.values()),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        adds_bos=tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id],
        adds_eos=tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id],
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        probe_tokens=len(bare),
        probe_unknown=sum(number == unknown for number in bare) if unknown is not None else 0,
    )


def _beyond(tokenizer: "PreTrainedTokenizerBase", vocabulary: Mapping[str, int], rows: int) -> list[str]:
    """Tokens without an embedding that an encoding may hold, largest id last.

    transformers adds special tokens that a class expects and a file lacks (GPT-2's unknown token, to a GGUF file's
    vocabulary): such a one stays out of texts, unless it is put around them.
    """
    placed = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token)
    idle = set(tokenizer.all_special_tokens) - set(placed)
    beyond = (token for token, number in vocabulary.items() if number >= rows and token not in idle)
    return sorted(beyond, key=vocabulary.__getitem__)
