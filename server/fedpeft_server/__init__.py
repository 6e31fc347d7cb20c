"""The coordinator: the run directory, its report, and the service around the round engine."""
