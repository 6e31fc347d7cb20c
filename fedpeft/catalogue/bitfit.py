"""[adapter.bitfit]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import Opacus
from fedpeft.catalogue.rates import per_matrix
from fedpeft.ids import BlockId

__all__ = ["METHOD", "BitFit"]


class BitFit(MethodSection):
    """BitFit (Ben Zaken 2022): a delta on every bias of the chosen layers."""


def footprint(shape: BaseShape, _: BitFit) -> Footprint:
    """A delta a bias; an addition keeps nothing."""
    if not shape.layer_biases:
        return Footprint(blocks={})
    return Footprint(blocks={BlockId("bitfit"): shape.layer_biases}, flops=2 * shape.layer_biases)


METHOD = Method(
    name="bitfit",
    section=BitFit,
    example=BitFit(),
    footprint=footprint,
    row=MethodRow(
        title="BitFit",
        formula="b + delta",
        paper="Ben Zaken 2022",
        attaches="every bias of the adapted layers, layer norms included; refused on a model without biases",
        summed="exact: the parameters are the change",
        example_dp="the output's gradient summed over tokens",
        export="PEFT LoRA with bias = all",
        served_by=("peft",),
    ),
    opacus=Opacus(able=True, why_not="it takes 1.18 times the memory of our hooks, which keep no input of a bias"),
    export=Export(peft_type="LORA", alone=("encoder",), more="bias"),
    rate=per_matrix(encoder=0.057, decoder=1.0),
)
