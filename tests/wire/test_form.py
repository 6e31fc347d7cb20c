"""Two records that would be read otherwise have two forms."""

from dataclasses import make_dataclass

import pytest

from fedpeft.ids import RoundId
from fedpeft.wire import form_of

KINDS = (int, bool, float, str, bytes, tuple[int, ...], tuple[str, ...], int | None, str | None)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_field_of_another_type_is_another_form(kind: type) -> None:
    form = form_of(make_dataclass("Record", [("value", kind)]))
    same = [other for other in KINDS if form_of(make_dataclass("Record", [("value", other)])) == form]
    assert same == [kind]
    assert form_of(make_dataclass("Record", [("number", kind)])) != form


def test_a_name_for_a_type_is_that_type() -> None:
    forms = {form_of(make_dataclass("Record", [("value", kind)])) for kind in (RoundId, int)}
    assert len(forms) == 1
