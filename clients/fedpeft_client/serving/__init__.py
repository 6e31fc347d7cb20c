"""Trained adapters behind HTTP: many on one base, a different one for each row of a batch."""
