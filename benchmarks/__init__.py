"""Programs that measure; a package so that `python -m benchmarks.suite` finds this folder and no library's."""
