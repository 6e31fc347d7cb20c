"""Messages as bytes: one frozen dataclass a message, one strict codec."""

from fedpeft.wire.codec import OtherVersion, WireError, decode, encode, kind_of, message
from fedpeft.wire.form import form_of

__all__ = ["OtherVersion", "WireError", "decode", "encode", "form_of", "kind_of", "message"]
