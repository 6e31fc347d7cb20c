"""Blocks: the names, shapes and digests of what travels, and the global state made of them. No torch."""

from fedpeft.adapter.spec import AdapterSpec, BlockSpec, TensorSpec, flatten, unflatten
from fedpeft.adapter.state import AdapterState

__all__ = ["AdapterSpec", "AdapterState", "BlockSpec", "TensorSpec", "flatten", "unflatten"]
