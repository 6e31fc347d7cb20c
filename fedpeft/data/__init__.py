"""Examples: loading, column conventions, encoding, the held-out split and the bundled sources. No torch."""

from fedpeft.data.encode import IGNORED, EncodedDataset, Tokenizer, encode
from fedpeft.data.formats import Loaded, load, load_records
from fedpeft.data.holdout import split_holdout
from fedpeft.data.records import Record, Records
from fedpeft.data.tasks import Convention, detect, label_names, validate

__all__ = [
    "IGNORED",
    "Convention",
    "EncodedDataset",
    "Loaded",
    "Record",
    "Records",
    "Tokenizer",
    "detect",
    "encode",
    "label_names",
    "load",
    "load_records",
    "split_holdout",
    "validate",
]
