"""Texts of two or four bytes a character, told from UTF-8."""

__all__ = ["WIDE_MARKS", "wide_encoding"]


WIDE_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def wide_encoding(head: bytes) -> tuple[str, bool] | None:
    """UTF-16 or UTF-32, by its mark or by where the zero bytes of its first letter lie, and whether there is a mark."""
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark):
            return encoding, True
    zeros = tuple(byte == 0 for byte in head[:4])
    match zeros:
        case (False, True, True, True):
            return "UTF-32LE", False
        case (True, True, True, False):
            return "UTF-32BE", False
        case (False, True, *_):
            return "UTF-16LE", False
        case (True, *_):
            return "UTF-16BE", False
    return None
