"""A coordinator's home as one file, and back."""
