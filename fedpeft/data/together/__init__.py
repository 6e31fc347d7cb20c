"""Texts that belong together."""
