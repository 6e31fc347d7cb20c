"""The federation's model while a transformers Trainer has it.

Trainer and accelerate write on the model that they train, for a process that trains once: accelerate wraps ``forward``
in the precision and marks the model as prepared, so that a second round would train without it; the Trainer sets
special tokens to those of its tokenizer, by which fedpeft pads when it evaluates.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["left_as_found"]

WRAPPED = ("forward", "_original_forward", "_is_accelerate_prepared")


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Afterwards nothing of the model has changed but its parameters.

    Args:
        model: one of transformers'.
    """
    of_model: Any = model
    configs = [of_model.config, of_model.config.get_text_config()]
    wrapped = {name: model.__dict__[name] for name in WRAPPED if name in model.__dict__}
    settings = [dict(vars(config)) for config in configs]
    generation = copy.deepcopy(getattr(model, "generation_config", None))
    try:
        yield
    finally:
        for name in WRAPPED:
            model.__dict__.pop(name, None)
        model.__dict__.update(wrapped)
        for config, found in zip(configs, settings, strict=True):
            vars(config).clear()
            vars(config).update(found)
        if generation is not None:
            of_model.generation_config = generation
