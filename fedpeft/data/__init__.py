"""Examples: loading, column conventions, encoding, the held-out split and the bundled sources. No torch."""

from fedpeft.data.encode import IGNORED, EncodedDataset, encode
from fedpeft.data.formats import Loaded, load, load_records
from fedpeft.data.holdout import split_each, split_holdout
from fedpeft.data.people import count_people, split_people
from fedpeft.data.records import Record, Records
from fedpeft.data.rendering import Tokenizer
from fedpeft.data.targets import label_names
from fedpeft.data.tasks import detect, fits, validate
from fedpeft.data.usable import encode_usable, nothing_encoded, readable_records
from fedpeft.tasks import Convention

__all__ = [
    "IGNORED",
    "Convention",
    "EncodedDataset",
    "Loaded",
    "Record",
    "Records",
    "Tokenizer",
    "count_people",
    "detect",
    "encode",
    "encode_usable",
    "fits",
    "label_names",
    "load",
    "load_records",
    "nothing_encoded",
    "readable_records",
    "split_each",
    "split_holdout",
    "split_people",
    "validate",
]
