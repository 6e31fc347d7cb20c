"""Adapters of earlier runs as the frozen blocks that AdapterFusion fuses: the coordinator fills them in, once."""

import json
from collections.abc import Mapping
from pathlib import Path

from fedpeft.adapter import AdapterState
from fedpeft.catalogue.bottleneck import Bottleneck
from fedpeft.catalogue.fusion import Fusion
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.export.merge import read_exported
from fedpeft.ids import BlockId
from fedpeft.methods.bottleneck import BOTTLENECK
from fedpeft.methods.fusion import FUSION

__all__ = ["with_sources"]


def with_sources(state: AdapterState, adapter: Adapter, folders: Mapping[str, str]) -> AdapterState:
    """The state with the adapters of ``adapter.fusion.tasks`` filled in; unchanged without fusion.

    Args:
        state: a run's initial one.
        adapter: the run's.
        folders: exported adapter, or run, by task.

    Raises:
        ConfigInvalid: a task has no folder, or its adapter is not such a bottleneck on such layers.
        DataInvalid: a folder holds no exported adapter.
    """
    settings = adapter.of(Fusion)
    if settings is None:
        return state
    wanted = Bottleneck(
        width=settings.width, placement="pfeiffer", activation=settings.activation, scale=settings.scale
    )
    filled, problems = {}, []
    for task in settings.tasks:
        where, block_id = f"base.adapters.{task}", BlockId(f"{FUSION}.{task}")
        if task not in folders:
            expected = "the folder of an exported adapter, or of a run"
            problems.append(Problem(where=where, expected=expected, found="nothing"))
            continue
        whole = read_exported(Path(folders[task])).whole
        found = None if whole is None else Adapter.model_validate_json(json.dumps(json.loads(whole[1])["adapter"]))
        own = None if found is None else found.of(Bottleneck)
        same = (
            own is not None
            and own.model_copy(update=dict.fromkeys(("learning_rate", "layers")) | {"dropout": 0.0}) == wanted
        )
        vector = None if whole is None else whole[0].get(BOTTLENECK)
        if not same or vector is None or vector.shape != state[block_id].shape:
            layers = f"on the layers of this run ({state[block_id].size:,} coordinates)"
            expected = f"[adapter.bottleneck] of width {wanted.width}, pfeiffer, {wanted.activation}, {layers}"
            problems.append(Problem(where=where, expected=expected, found=f"another adapter in {folders[task]}"))
            continue
        filled[block_id] = vector
    if problems:
        raise ConfigInvalid("The adapters to fuse are not there.", problems=problems)
    return state.replace(filled)
