"""Which engine takes a method's private steps follows from what was measured, and from nothing else."""

import json
from pathlib import Path

import pytest

from fedpeft.catalogue import METHODS, AnyMethod
from fedpeft.catalogue.opacus import MEASURES, NOT_COMPARED, UNMEASURED

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "privacy_opacus.json"
MEASURED = json.loads(RESULTS.read_text())["methods"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_opacus_takes_a_method_if_and_only_if_it_has_it_and_was_measured_to_be_right(method: AnyMethod) -> None:
    assert method.opacus is not NOT_COMPARED
    assert (method.opacus is MEASURES) == method.measures
    if not method.opacus.able:
        assert method.opacus.why_not
        assert method.name not in MEASURED
    elif method.name in MEASURED:
        assert method.opacus is not UNMEASURED
        assert (method.opacus.why_not == "") == MEASURED[method.name]["right"]
    else:
        assert method.opacus is UNMEASURED


def test_the_class_head_is_in_every_run_and_opacus_has_it() -> None:
    assert MEASURED["head"]["right"]
