"""The held-out scores of single clients, round by round: a simulation writes them, for the report of that run alone.

A coordinator of real devices learns none of this, and a private run, simulated or not, keeps none. Each client has a
file of its own, ``clients/NAME.jsonl``, because on Ray clients live in several processes.
"""

from pathlib import Path

from fedpeft_server.run.journal import Journal
from fedpeft_server.run.records import ClientScore, from_json, to_json

__all__ = ["ClientScores", "read_client_scores", "scores_folder"]


class ClientScores:
    """One client's file, to which its process adds.

    Args:
        folder: ``scores_folder`` of the run.
        client: its name.
    """

    def __init__(self, folder: Path, client: str) -> None:
        folder.mkdir(exist_ok=True)
        self._journal = Journal(folder / f"{client}.jsonl")
        self._journal.truncate_torn()  # of a process that was killed: the next line must not join it

    def add(self, score: ClientScore) -> None:
        """Keep one evaluation; of a round that is attempted again the last one counts."""
        self._journal.append(to_json(score), durable=False)


def scores_folder(run: Path) -> Path:
    """Where a run keeps them."""
    return run / "clients"


def read_client_scores(run: Path) -> dict[str, tuple[ClientScore, ...]]:
    """Every client's scores, ascending by round; empty for a run that keeps none.

    Raises:
        IntegrityFailed: a line is no such record.
    """
    found = {}
    for path in sorted(scores_folder(run).glob("*.jsonl")):
        scores = [
            from_json(ClientScore, line, where=f"{path}:{number}")
            for number, line in enumerate(Journal(path).lines(), 1)
        ]
        last = {score.round: score for score in scores}
        found[path.stem] = tuple(last[number] for number in sorted(last))
    return found
