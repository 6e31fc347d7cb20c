"""Messages as bytes: one frozen dataclass a message, one strict codec."""

from fedpeft.wire.codec import WireError, decode, encode, message

__all__ = ["WireError", "decode", "encode", "message"]
