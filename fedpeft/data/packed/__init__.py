"""Rows of a file in few bytes: every column is one run of UTF-8, beyond a size on the disk and not in memory.

A row as a Python dictionary takes five times its text. Here a column's values lie one behind the other, their sizes
too, and a dictionary is made of a row only while somebody looks at it. What outgrows ``MEMORY_BYTES`` goes to a
nameless temporary file (``paged``), so that a file of any size takes about the same memory.
"""

from fedpeft.data.packed.column import MEMORY_BYTES, PackedColumn
from fedpeft.data.packed.origins import LineNumbers, PackedOrigins
from fedpeft.data.packed.paged import PagedBytes, PagedNumbers, Pages
from fedpeft.data.packed.rows import PackedRows

__all__ = [
    "MEMORY_BYTES",
    "LineNumbers",
    "PackedColumn",
    "PackedOrigins",
    "PackedRows",
    "PagedBytes",
    "PagedNumbers",
    "Pages",
]
