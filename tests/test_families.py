"""What layers cost, by kind."""

from fedpeft.families import FAMILIES, family_named


def test_every_family_is_found_by_its_name():
    assert [family_named(family.name) for family in FAMILIES] == list(FAMILIES)
