"""A PEFT method, without torch: gains on the values of attention, v becomes (1 + delta) * v."""

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import MethodPlugin
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.ids import BlockId


class Gains(MethodSection):
    """Its settings in [adapter.gains]; learning_rate and layers are there already."""


def footprint(shape: BaseShape, settings: Gains) -> Footprint:
    """What one layer has of it: the planner counts with this."""
    width = sum(d_out for d_out, _ in shape.matrices(("v",)))
    return Footprint(blocks={BlockId("gains"): width}, saved=width, flops=2 * width)


METHOD = MethodPlugin(
    section=Gains,
    footprint=footprint,
    attach="fedpeft_lab.gains_torch:attach",
    title="Value gains",
    formula="(1 + delta) * v",
)
