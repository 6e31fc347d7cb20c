"""What a device in a round makes of its data: all that can be used, and never an exception.

Whether a device could use its data must not be heard of (``fedpeft.round.failures``), and under example-level privacy
what one example holds must decide nothing about the others: so whatever does not fit is left out row by row. Who can
mend the data uses ``load_records`` and ``validate``, which name every problem.
"""

from collections.abc import Mapping

from fedpeft.config.model import Task
from fedpeft.data.encode import EncodedDataset, encode
from fedpeft.data.formats import load_noting
from fedpeft.data.records import ProblemLog, Records
from fedpeft.data.rendering import Tokenizer
from fedpeft.data.tasks import fits
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid

__all__ = ["encode_usable", "nothing_encoded", "readable_records"]


def readable_records(source: str, column_map: Mapping[str, str] | None = None) -> tuple[Records, str]:
    """As ``load_records``: what can be read.

    Returns:
        The records, and what was wrong with the rest, for the device's own log; empty: nothing.
    """
    log = ProblemLog()
    try:
        records = load_noting(source, column_map, log).records
    except Exception as error:  # readers raise what they like
        return Records((), ()), f"Expected readable data in {source}: {error}"
    try:
        log.raise_if_any(f"data in {source}")
    except DataInvalid as error:
        return records, str(error)
    return records, ""


def encode_usable(records: Records, task: Task, tokenizer: Tokenizer) -> tuple[EncodedDataset, str]:
    """As ``encode``: rows that cannot be learnt from are left out.

    Whether a row is left out depends on the row alone, so under example-level privacy it is an example like any other
    whose gradient is zero.

    Returns:
        The examples, and what was left out, for the device's own log; empty: nothing.
    """
    good = records.select(index for index, row in enumerate(records.rows) if fits(row, task))
    why = ""
    try:
        encoded = encode(good, task, task.outputs, tokenizer)
    except Exception as error:  # one of them; tokenizers raise what they like
        why = f" ({error})"
        alone = (_alone(good.select([index]), task, tokenizer) for index in range(len(good)))
        encoded = EncodedDataset.joined([nothing_encoded(task), *(part for part in alone if part is not None)])
    left_out = len(records) - len(encoded)
    what = f"{left_out} of {len(records)} rows do not fit the task; they count as examples that teach nothing{why}."
    return encoded, f"{what} `fedpeft data check` names them." if left_out else ""


def nothing_encoded(task: Task) -> EncodedDataset:
    """No examples, of this task."""
    return encode(Records((), ()), task, task.outputs, WhitespaceTokenizer())


def _alone(record: Records, task: Task, tokenizer: Tokenizer) -> EncodedDataset | None:
    try:
        return encode(record, task, task.outputs, tokenizer)
    except Exception:
        return None
