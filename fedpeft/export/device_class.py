"""One trained union for devices of a class: LoRA and DyLoRA cut to the class's rank, methods it cannot run left out.

LoRA's cut is the best there is of that rank: thin QR and an SVD of the r x r core of each matrix's product, carried
columns included (``aggregate.factors.refactor``), so the leading directions stay, not the leading tiers. It is an
approximation unless the product's rank is at most the class's; ``inspect.json`` says how far it is from the union.
DyLoRA is cut to its first ranks, for which it was trained.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState, BlockSpec, unflatten
from fedpeft.aggregate.factors import Factors, read_factors, refactor, write_factors
from fedpeft.catalogue.blocks import LORA
from fedpeft.catalogue.dylora import DyLora
from fedpeft.catalogue.lora import Lora, scale_of
from fedpeft.config.adapter import Adapter
from fedpeft.errors import ConfigInvalid

__all__ = ["class_adapter", "class_state"]


def class_adapter(adapter: Adapter, *, rank: int | None, methods: Collection[str] | None) -> Adapter:
    """The configuration of the class's adapter.

    Args:
        adapter: the run's.
        rank: of LoRA and DyLoRA, at most the run's; None: the run's, with LoRA's carried columns.
        methods: what the class can run; None: all of the run's.

    Raises:
        ConfigInvalid: the run lacks one of the methods, or has neither LoRA nor DyLoRA of such a rank.
    """
    present = tuple(method.name for method, _ in adapter.declared())
    chosen = present if methods is None else tuple(methods)
    if missing := sorted(set(chosen) - set(present)):
        raise ConfigInvalid(f"Expected methods of this run ({', '.join(present)}), found {', '.join(missing)}.")
    narrowed = adapter.model_copy(update={name: None for name in present if name not in chosen})
    if rank is None:
        return narrowed
    lora, dylora = narrowed.of(Lora), narrowed.of(DyLora)
    most = max(lora.rank + lora.carried_rank if lora else 0, dylora.rank if dylora else 0)
    if rank > most:
        found = f"rank {most}" if most else "neither"
        raise ConfigInvalid(f"Expected LoRA of at least rank={rank} to cut, or DyLoRA, found {found}.")
    cut: dict[str, Lora | DyLora] = {}
    if lora and rank <= lora.rank + lora.carried_rank:
        whole = {"rank": rank, "tiers": (rank,), "carried_rank": 0, "scale": scale_of(lora), "scaling": "fixed"}
        cut["lora"] = lora.model_copy(update=whole)
    if dylora and rank <= dylora.rank:
        cut["dylora"] = dylora.model_copy(update={"rank": rank})
    return narrowed.model_copy(update=cut)


def class_state(state: AdapterState, start: AdapterState) -> AdapterState:
    """The union's values in the class's adapter.

    Args:
        state: of the union.
        start: any state of the class's adapter, on the same base.
    """
    theirs, mine = ({b.block_id: b for b in one.spec.blocks if b.method == LORA} for one in (state, start))
    others = [block for block in start.spec.blocks if block.method != LORA]
    kept = start.replace({block.block_id: _corner(state, block) for block in others})
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


def _corner(state: AdapterState, block: BlockSpec) -> npt.NDArray[np.float32]:
    """The union's values in ``block``: all of them, or the first rows and columns of DyLoRA's factors."""
    found = unflatten(state.spec[block.block_id], state[block.block_id])
    corners = [found[tensor.name][tuple(slice(size) for size in tensor.shape)] for tensor in block.tensors]
    return np.concatenate([corner.ravel() for corner in corners])
