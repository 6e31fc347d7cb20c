"""One trained union for devices of a class: LoRA cut to the class's rank, methods that it cannot run left out.

The cut is the best there is of that rank: thin QR and an SVD of the r x r core of each matrix's product, carried
columns included (``aggregate.factors.refactor``), so the leading directions stay, not the leading tiers. It is an
approximation unless the product's rank is at most the class's; ``inspect.json`` says how far it is from the union.
"""

from collections.abc import Collection
from typing import get_args

import numpy as np

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import Factors, read_factors, refactor, write_factors
from fedpeft.config.adapter import Adapter, MethodName
from fedpeft.errors import ConfigInvalid
from fedpeft.methods.blocks import LORA
from fedpeft.methods.lora import scale_of

__all__ = ["class_adapter", "class_state"]


def class_adapter(adapter: Adapter, *, rank: int | None, methods: Collection[str] | None) -> Adapter:
    """The configuration of the class's adapter.

    Args:
        adapter: the run's.
        rank: of LoRA, at most the run's; None: the run's, with its carried columns.
        methods: what the class can run; None: all of the run's.

    Raises:
        ConfigInvalid: the run lacks one of the methods, LoRA is absent or has a lower rank.
    """
    present = tuple(name for name in get_args(MethodName) if getattr(adapter, name) is not None)
    chosen = present if methods is None else tuple(methods)
    if missing := sorted(set(chosen) - set(present)):
        raise ConfigInvalid(f"Expected methods of this run ({', '.join(present)}), found {', '.join(missing)}.")
    narrowed = adapter.model_copy(update={name: None for name in present if name not in chosen})
    lora = narrowed.lora
    if rank is None:
        return narrowed
    if lora is None or rank > lora.rank + lora.carried_rank:
        found = "no LoRA" if lora is None else f"rank {lora.rank + lora.carried_rank}"
        raise ConfigInvalid(f"Expected LoRA of at least rank={rank} to cut, found {found}.")
    cut = {"rank": rank, "tiers": (rank,), "carried_rank": 0, "scale": scale_of(lora), "scaling": "fixed"}
    return narrowed.model_copy(update={"lora": lora.model_copy(update=cut)})


def class_state(state: AdapterState, start: AdapterState) -> AdapterState:
    """The union's values in the class's adapter.

    Args:
        state: of the union.
        start: any state of the class's adapter, on the same base.
    """
    theirs, mine = ({b.block_id: b for b in one.spec.blocks if b.method == LORA} for one in (state, start))
    kept = start.replace({block.block_id: state[block.block_id] for block in start.spec.blocks if block.method != LORA})
    if mine == theirs:
        return kept.replace({block_id: state[block_id] for block_id in mine})
    whole, cut = read_factors(state.spec, state), {}
    for path, old in read_factors(start.spec, start).items():
        full = whole[path]
        up, down, _ = refactor(
            np.hstack([full.up, full.carried_up]), np.vstack([full.down, full.carried_down]), old.down.shape[0]
        )
        cut[path] = Factors(down=down, up=up, carried_down=old.carried_down, carried_up=old.carried_up)
    return write_factors(kept, cut)
