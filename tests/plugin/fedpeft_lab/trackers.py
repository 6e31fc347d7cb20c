"""A tracker in twenty lines: one CSV file."""

from collections.abc import Mapping
from pathlib import Path


class Csv:
    """Writes ``rounds.csv`` into its folder."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, str]) -> None:
        self._file = (folder / "rounds.csv").open("w")
        self._file.write(f"# {run}, {config['train.local_steps']} steps\nround,metric,value\n")

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """One line a metric."""
        for name, value in values.items():
            self._file.write(f"{number},{name},{value!r}\n")
        self._file.flush()

    def close(self) -> None:
        """The run has ended."""
        self._file.close()


class Fragile(Csv):
    """A server that is gone from round 2 on."""

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """Fails from the second on."""
        if number > 1:
            raise ConnectionError("no such server")
