"""The tokenizer's files beside an adapter or a model: who loads the folder needs no other one."""

import shutil
from pathlib import Path

from fedpeft.base.source import TOKENIZER_FILES

__all__ = ["copy_tokenizer"]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer files of one folder, with the chat template, into another."""
    for name in TOKENIZER_FILES:
        (target / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
