"""Secure aggregation: sums of vectors that nobody sees one by one (docs/protocol.md)."""
