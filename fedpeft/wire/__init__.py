"""Messages as bytes: one frozen dataclass a message, one strict codec."""

from fedpeft.wire.codec import OtherVersion, WireError, decode, encode, kind_of, message

__all__ = ["OtherVersion", "WireError", "decode", "encode", "kind_of", "message"]
