"""One cell of ``heterogeneity.py``'s table: what it is, its adapter, and what each of its clients trains."""

from dataclasses import dataclass, field
from typing import Literal

from fedpeft.catalogue.bitfit import BitFit
from fedpeft.catalogue.ia3 import Ia3
from fedpeft.catalogue.lora import Lora
from fedpeft.config.adapter import Adapter
from fedpeft.config.rules import RULES

CLIENTS, MAX_RANK, TIERS = 30, 8, (1, 2, 4, 8)
TARGETS = ("q", "k", "v", "o", "up", "down")
SINGLES = ("bitfit", "ia3")
"""The methods that every device of the mixed federation could afford."""
MIXES = {
    "uniform": (1, 2, 4, 8),
    "heavy-tail": (1, 1, 1, 1, 1, 2, 2, 8),
    "normal": (1, 2, 2, 2, 4, 4, 4, 8),
    "homogeneous": (8,),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federation.

    Args:
        prior: strength of the label calibration; 0 is plain cross entropy.
        head_learning_rate: 0: as the other blocks.
        columns: of B for each rank of a device's budget. A device of rank r may train and send r (d_in + d_out) numbers
            a matrix; summed over the layer's matrices, B alone of 2 r columns is exactly as many.
        start: of the head, ``adapter.head_start``; class means take the first of the rounds.
        mixed: empty, or which methods the clients train (``methods_of``).
        tuning: a tenth of the training set is held out and scored instead of the test set.
        clients: those that take part; empty: all.
    """

    alpha: float
    mix: str
    rule: str
    learning_rate: float
    seed: int
    prior: float = 0.0
    rounds: int = 12
    steps: int = 5
    batch_size: int = 16
    layers: int = 1
    head_learning_rate: float = 0.0
    scaling: str = "fixed"
    options: dict[str, object] = field(default_factory=dict)
    columns: int = 1
    start: Literal["seed", "class-means"] = "seed"
    mixed: str = ""
    tuning: bool = False
    clients: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the results."""
        extra = "".join(f",{name}={value}" for name, value in sorted(self.options.items()))
        extra += f",head={self.head_learning_rate:g}" if self.head_learning_rate else ""
        extra += f",{self.scaling}" if self.scaling != "fixed" else ""
        extra += f",columns={self.columns}" if self.columns != 1 else ""
        extra += f",{self.start}" if self.start != "seed" else ""
        extra += f",mixed={self.mixed}" if self.mixed else ""
        extra += ",tuning" if self.tuning else ""
        extra += f",n={len(self.clients)}of" + "-".join(map(str, self.clients[:2])) if self.clients else ""
        return (
            f"a{self.alpha:g}/{self.mix}/{self.rule}/lr{self.learning_rate:g}/p{self.prior:g}/s{self.seed}"
            f"/r{self.rounds}x{self.steps}x{self.batch_size}/L{self.layers}{extra}"
        )


def adapter_for(cell: Cell) -> Adapter:
    """LoRA on every matrix of the top layers and the head; with ``mixed`` also biases and IA3."""
    traits = RULES[cell.rule]
    trains_a = traits.trains != "B" or bool(cell.options.get("a_round_every"))
    lora = Lora(
        rank=MAX_RANK * cell.columns,
        tiers=tuple(tier * cell.columns for tier in TIERS),
        targets=TARGETS,
        train="both" if trains_a else "B",
        scaling=cell.scaling,
        carried_rank=64 if traits.carries or cell.options.get("fold_every") else 0,
    )
    mixed = bool(cell.mixed)
    bitfit, ia3 = (BitFit(), Ia3()) if mixed else (None, None)
    return Adapter(layers=cell.layers, lora=lora, bitfit=bitfit, ia3=ia3, head_start=cell.start)


def methods_of(cell: Cell, client: int, rank: int) -> tuple[tuple[str, ...], int | None]:
    """What one client trains: LoRA of its rank, or in the mixed federation what its third affords.

    A third affords BitFit or IA3, a third rank 2, a third rank 8. Whoever affords LoRA trains the biases too, as the
    planner has it: they cost less than a column, and a block that all train is damped by nobody's absence.
    """
    if not cell.mixed:
        return ("lora",), rank
    if cell.mixed in SINGLES:
        return (cell.mixed,), None
    third = client % 3
    if third == 0:
        return ("ia3" if client % 2 else "bitfit",), None
    return ("bitfit", "lora"), cell.columns * (2 if third == 1 else 8)
