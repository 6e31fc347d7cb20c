"""[adapter.layernorm]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import RIGHT
from fedpeft.ids import BlockId

__all__ = ["METHOD", "LayerNorm"]


class LayerNorm(MethodSection):
    """LayerNorm tuning (Zhao 2024): a delta on every norm's gain, and on its bias unless [adapter.bitfit] has it."""


def footprint(shape: BaseShape, _: LayerNorm) -> Footprint:
    """A delta on every norm's gain and bias; a gain keeps the normalised input."""
    block = {BlockId("layernorm"): shape.norms + shape.norm_biases}
    return Footprint(blocks=block, saved=shape.norms, flops=8 * shape.norms)


METHOD = Method(
    name="layernorm",
    section=LayerNorm,
    example=LayerNorm(),
    footprint=footprint,
    row=MethodRow(
        title="LayerNorm tuning",
        formula="n(x) * (w + dw) + (b + db)",
        paper="Zhao 2024; Qi 2022",
        attaches="every norm of the adapted layers; its bias is BitFit's where the run has BitFit",
        summed="exact: the parameters are the change",
        example_dp="product of normalised input and gradient summed over tokens",
        export="PEFT LN_TUNING; beside another method in modules_to_save",
        served_by=("peft",),
    ),
    opacus=RIGHT,
    export=Export(peft_type="LN_TUNING", alone=BOTH),
)
