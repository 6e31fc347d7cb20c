"""The identifiers that cross module borders, each its own type so that they cannot be mixed up."""

from typing import NewType

__all__ = ["SIZELESS", "BlockId", "NodeId", "ParticipantId", "RoundId", "SizeClass"]

"""One run of one config, e.g. ``20261122T001231Z-airlines-7f3a``."""

RoundId = NewType("RoundId", int)
"""Rounds of a run count from 1; round 0 is the initial state."""

NodeId = NewType("NodeId", int)
"""Flower's address of a node. Changes when a node re-registers: never an identity."""

ParticipantId = NewType("ParticipantId", int)
"""A device's place in one round's roster, 1..n (also its Shamir abscissa). Means nothing outside that round."""

BlockId = NewType("BlockId", str)
"""A block of the union adapter, e.g. ``lora.B.t8`` (docs/design.md, section 3)."""

SizeClass = NewType("SizeClass", int)
"""k of a device's public size, the power of two 2^k nearest to its number of examples. No count is one."""

SIZELESS = SizeClass(0)
"""Of a device whose size decides nothing, or that hides it."""
