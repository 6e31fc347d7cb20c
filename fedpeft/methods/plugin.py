"""The torch part of a method of another package (docs/plugins.md), held to what every method must keep."""

from torch import nn

from fedpeft.catalogue import PLUGINS
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, foreign
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.plugins import named

__all__ = ["attach_plugin"]


def attach_plugin(name: str, anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """The blocks that the method makes; none where the run does not have it.

    Raises:
        ConfigInvalid: it failed, or made something else than blocks of its own.
        ResourceMissing: its function is not there.
    """
    settings: object = getattr(adapter, name)
    if settings is None:
        return ()
    attach = named(PLUGINS[name].attach)
    with foreign(lambda said: ConfigInvalid(f"The method {name} could not be attached: {said}.")):
        made = attach(anatomy, settings, seed)
    blocks = tuple(made) if isinstance(made, tuple | list) else ()
    if not blocks or not all(isinstance(block, Block) and _is_its_own(name, block) for block in blocks):
        raise ConfigInvalid(
            f"Expected the method {name} to make blocks of parameters, each called {name} or {name}.SOMETHING, found "
            f"{made!r:.200}."
        )
    return blocks


def _is_its_own(name: str, block: Block) -> bool:
    named_so = block.method == name and (block.block_id == name or block.block_id.startswith(f"{name}."))
    return named_so and all(isinstance(parameter, nn.Parameter) for parameter in block.parameters)
