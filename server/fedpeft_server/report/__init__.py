"""report.html: how a run went, in one file."""
