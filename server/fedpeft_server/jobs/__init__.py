"""Submitted runs: the queue, the runner that works through it, the process that holds the model."""
