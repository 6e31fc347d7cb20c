"""One run from its first round to its last, and the directory that it lives in."""
