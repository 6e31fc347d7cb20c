"""Answers that are preferred, or wanted: rows read and checked, and their tokens."""
