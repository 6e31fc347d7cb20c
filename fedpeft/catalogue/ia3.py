"""[adapter.ia3]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import RIGHT
from fedpeft.catalogue.rates import per_matrix
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Ia3"]


class Ia3(MethodSection):
    """IA3 (Liu 2022): rescales keys, values and the MLP's inner activations; stored as a delta on one."""


def footprint(shape: BaseShape, _: Ia3) -> Footprint:
    """Gains on keys, values and the MLP's inner activation; a product keeps its other factor."""
    keys = sum(out for out, _ in shape.matrices(("k", "v")))
    width = keys + sum(inner for _, inner in shape.matrices(("down",)))
    return Footprint(blocks={BlockId("ia3"): width}, saved=width, saved_first_token=keys, flops=2 * width)


METHOD = Method(
    name="ia3",
    section=Ia3,
    example=Ia3(),
    footprint=footprint,
    row=MethodRow(
        title="IA3",
        formula="(1 + delta) * k, (1 + delta) * v, (1 + delta) * h",
        paper="Liu 2022",
        attaches="keys, values and the input of the MLP's second matrix in the adapted layers",
        summed="exact in delta: a gain is linear in it, gains of two layers multiply as in any model",
        example_dp="product of input and gradient summed over tokens",
        export="PEFT IA3; beside LoRA or BitFit in union.safetensors only",
        served_by=("peft",),
    ),
    opacus=RIGHT,
    export=Export(peft_type="IA3", alone=BOTH),
    rate=per_matrix(encoder=0.26, decoder=0.3),
)
