"""What passes between the agent and its worker: a stage of the protocol and its payload. Needs no torch."""

from fedpeft.round.transport import Stage

__all__ = ["HANDLE", "framed", "unframed"]

HANDLE = "handle"
"""The one request that a worker knows."""


def framed(stage: Stage, payload: bytes) -> bytes:
    """Both as one."""
    return stage.value.encode() + b"\n" + payload


def unframed(frame: bytes) -> tuple[Stage, bytes]:
    """The inverse of ``framed``."""
    stage, _, payload = frame.partition(b"\n")
    return Stage(stage.decode()), payload
