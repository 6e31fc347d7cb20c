"""A payload as the content of a Flower message, and back.

Small payloads are one config record, which travels inside its message (docs/adr/0008). Large ones are one array,
which Flower cuts into chunks of 5 MB and moves in requests of their own, beside the message.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

from fedpeft.errors import SpecMismatch

__all__ = ["LARGE_BYTES", "RECORD", "STYPE", "from_record", "is_inline", "parts_of", "to_record"]

RECORD = "fedpeft"
STYPE = "fedpeft.wire"
LARGE_BYTES = 4 * 2**20
"""From here on a payload is an array: below, a request with it stays within the gateway's body limit."""


def to_record(payload: bytes) -> RecordDict:
    """A payload as message content."""
    if len(payload) < LARGE_BYTES:
        return RecordDict({RECORD: ConfigRecord({STYPE: payload})})
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return RecordDict({RECORD: ArrayRecord({RECORD: array})})


def parts_of(size: int) -> int:
    """How many objects a message with a payload of so many bytes has: its chunks, and what they are parts of."""
    return 4 + -(-size // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)


def is_inline(content: RecordDict) -> bool:
    """Whether it is a small payload, which travels inside its message."""
    record = content.get(RECORD)
    return (
        len(content) == 1
        and isinstance(record, ConfigRecord)
        and list(record) == [STYPE]
        and isinstance(record[STYPE], bytes)
    )


def from_record(content: RecordDict) -> bytes:
    """The payload of a message's content.

    Raises:
        SpecMismatch: the content is not exactly one payload.
    """
    record = content.get(RECORD)
    if len(content) == 1 and isinstance(record, ConfigRecord) and list(record) == [STYPE]:
        payload = record[STYPE]
        if isinstance(payload, bytes):
            return payload
    if len(content) != 1 or not isinstance(record, ArrayRecord) or list(record) != [RECORD]:
        raise SpecMismatch(f"Expected one record {RECORD!r} with one payload, found {sorted(content)}.")
    array = record[RECORD]
    if array.stype != STYPE or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise SpecMismatch(f"Expected an array of {STYPE} bytes, found {array.stype!r} {array.dtype} {array.shape}.")
    return bytes(array.data)
