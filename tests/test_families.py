"""What layers cost, by kind."""

import pytest

from fedpeft.families import BERT_LIKE, FAMILIES, LLAMA_LIKE, Family, LayerKind, family_named, family_of


def test_every_family_is_found_by_its_name():
    assert [family_named(family.name) for family in FAMILIES] == list(FAMILIES)


@pytest.mark.parametrize(
    ("matrices", "has_experts", "family"),
    [("q k v o up down", False, BERT_LIKE), ("q k v o up down gate", False, LLAMA_LIKE), ("q k v o", True, LLAMA_LIKE)],
)
def test_a_base_is_of_the_first_family_that_has_its_layers(matrices: str, has_experts: bool, family: Family) -> None:
    layer = LayerKind(model_type="any", matrices=frozenset(matrices.split()), has_experts=has_experts)
    assert family_of(layer) is family
