"""The class head: no section of its own (``adapter.head``), but a block, a row and a cost like a method's."""

from fedpeft.catalogue.method import MethodRow

__all__ = ["ROW"]

ROW = MethodRow(
    title="Class head",
    formula="W_c x + b_c",
    paper="Devlin 2019",
    attaches="the model's own classifier; nothing on a language model",
    summed="exact: the parameters themselves",
    example_dp="outer product of its input and the logits' gradient",
    export="in the PEFT files (modules_to_save)",
    served_by=("peft",),
)
