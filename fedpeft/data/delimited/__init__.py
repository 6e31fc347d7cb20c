"""CSV and its relatives: one exact reader, and a quick one for blocks in which nothing is out of the ordinary."""

from fedpeft.data.delimited.reader import csv_batches

__all__ = ["csv_batches"]
