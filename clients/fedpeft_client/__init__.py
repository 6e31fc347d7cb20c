"""The device: its trainer, its memory, its identity."""
