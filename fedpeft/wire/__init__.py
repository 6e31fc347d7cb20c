"""Messages as bytes: one frozen dataclass a message, one strict codec."""

from fedpeft.wire.codec import OtherVersion, WireError, decode, encode, message

__all__ = ["OtherVersion", "WireError", "decode", "encode", "message"]
