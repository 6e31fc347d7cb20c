"""The files by which sentence-transformers makes of a model's folder what it was trained as.

Without them it guesses: mean pooling, no cut of its own, and vectors of any length.
"""

import json
from pathlib import Path

from fedpeft.files import write_file

__all__ = ["write_pooling"]

_POOLING, _LENGTH = "1_Pooling", "2_Normalize"
_MODULES = (("", "Transformer"), (_POOLING, "Pooling"), (_LENGTH, "Normalize"))


def write_pooling(folder: Path, *, width: int, longest: int) -> None:
    """Mean of the tokens' states, at length 1.

    Args:
        folder: with an ordinary model of transformers.
        width: of a vector.
        longest: tokens to which a text is cut.
    """
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(_MODULES)
    ]
    for path in (_POOLING, _LENGTH):
        (folder / path).mkdir()
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    _write(folder / _POOLING / "config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})


def _write(path: Path, content: object) -> None:
    write_file(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
