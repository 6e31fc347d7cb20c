"""A payload as the content of a Flower message, and back."""

from flwr.app import Array, ArrayRecord, RecordDict

from fedpeft.errors import SpecMismatch

__all__ = ["RECORD", "STYPE", "from_record", "to_record"]

RECORD = "fedpeft"
STYPE = "fedpeft.wire"


def to_record(payload: bytes) -> RecordDict:
    """A payload as message content."""
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return RecordDict({RECORD: ArrayRecord({RECORD: array})})


def from_record(content: RecordDict) -> bytes:
    """The payload of a message's content.

    Raises:
        SpecMismatch: the content is not exactly one payload array.
    """
    record = content.get(RECORD)
    if len(content) != 1 or not isinstance(record, ArrayRecord) or list(record) != [RECORD]:
        raise SpecMismatch(f"Expected one record {RECORD!r} with one array, found {sorted(content)}.")
    array = record[RECORD]
    if array.stype != STYPE or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise SpecMismatch(f"Expected an array of {STYPE} bytes, found {array.stype!r} {array.dtype} {array.shape}.")
    return bytes(array.data)
