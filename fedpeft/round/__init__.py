"""One round, from both sides: read ``task``, ``coordinator``, ``device`` in this order."""
