"""Client-level privacy on the coordinator: the noise of a run, its ledger."""
