"""Answers that are preferred: rows taken apart, and their losses against the base."""
