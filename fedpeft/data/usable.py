"""What a device in a round makes of its data: all that can be used, and never an exception.

Whether a device could use its data must not be heard of (``fedpeft.round.failures``), and under example-level privacy
what one example holds must decide nothing about the others: so whatever does not fit is left out row by row. Who can
mend the data uses ``load_records`` and ``validate``, which name every problem.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.config.model import Task
from fedpeft.data.encode import EncodedDataset, encode
from fedpeft.data.formats import load_noting
from fedpeft.data.records import ProblemLog, Records
from fedpeft.data.rendering import Tokenizer
from fedpeft.data.tasks import fits
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
        encoded = encode(good, task, task.labels, tokenizer)
    except Exception as error:  # one of them; tokenizers raise what they like
        why = f" ({error})"
        alone = (_alone(good.select([index]), task, tokenizer) for index in range(len(good)))
        encoded = _joined([part for part in alone if part is not None], task)
    left_out = len(records) - len(encoded)
    what = f"{left_out} of {len(records)} rows do not fit the task; they count as examples that teach nothing{why}."
    return encoded, f"{what} `fedpeft data check` names them." if left_out else ""


def nothing_encoded(task: Task) -> EncodedDataset:
    """No examples, of this task."""
    labels = np.zeros(0, np.int64) if task.record.one_class else ()
    return EncodedDataset(input_ids=(), labels=labels, truncated=0)


def _alone(record: Records, task: Task, tokenizer: Tokenizer) -> EncodedDataset | None:
    try:
        return encode(record, task, task.labels, tokenizer)
    except Exception:
        return None


def _joined(parts: Sequence[EncodedDataset], task: Task) -> EncodedDataset:
    labels: npt.NDArray[np.int64] | tuple[npt.NDArray[np.int64], ...]
    if task.record.one_class:
        labels = np.array([label for part in parts for label in part.labels], np.int64)
    else:
        labels = tuple(row for part in parts for row in part.labels)
    ids = tuple(row for part in parts for row in part.input_ids)
    owners = None
    if any(part.owners is not None for part in parts):  # a row without the column is nobody's, and silences no other
        owners = np.concatenate(
            [np.zeros(len(part), np.uint64) if part.owners is None else part.owners for part in parts]
        )
    return EncodedDataset(input_ids=ids, labels=labels, truncated=sum(part.truncated for part in parts), owners=owners)
