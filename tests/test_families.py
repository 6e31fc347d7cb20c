"""Ports of a layer's matrices: whole ones, parts of a fused one, and transposed ones."""

import pytest

from fedpeft import families
from fedpeft.families import FAMILIES, LLAMA_LIKE, Port, family_named


def test_a_fused_and_transposed_matrix_has_the_shape_of_its_part():
    assert Port(path="attn.c_attn", part=(2, 3), transposed=True).matrix_in((48, 144)) == (48, 48)
    assert Port(path="qkv", part=(0, 3)).matrix_in((96, 32)) == (32, 32)
    assert Port(path="q").matrix_in((16, 32)) == (16, 32)


def test_every_family_is_found_by_its_name():
    assert [family_named(family.name) for family in FAMILIES] == list(FAMILIES)


@pytest.mark.torch
def test_a_method_is_refused_on_a_matrix_that_is_a_part_of_another(monkeypatch):
    from dataclasses import replace

    from fedpeft.errors import ConfigInvalid
    from fedpeft.grafting.anatomy import dissect
    from fedpeft.testing.models import tiny_llama

    fused = replace(LLAMA_LIKE, ports={**LLAMA_LIKE.ports, "q": Port(path="self_attn.q_proj", part=(0, 2))})
    anatomy = dissect(tiny_llama(), "all")
    monkeypatch.setattr(families, "FAMILIES", (fused,))
    with pytest.raises(ConfigInvalid, match=r"a part of self_attn\.q_proj"):
        anatomy.slot_modules("q", wanted_by="adapter.lora")
