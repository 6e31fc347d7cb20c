"""Helpers for tests: in-memory transports, tiny models, fake clocks. Never imported by the library itself."""
