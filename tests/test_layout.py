"""The table of aliases: every slot's module, rows of fused ones, and what peft trains by default."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import ConfigInvalid
from fedpeft.layout import Rows, layout_of
from fedpeft.target_names import is_pattern, pattern_fault


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 6))
def test_rows_and_the_rest_of_their_period_are_all_rows(groups, before, own, after):
    period = before + own + after
    parts = [Rows(period, 0, before), Rows(period, before, before + own), Rows(period, before + own, period)]
    every = sorted(i for part in parts for i in part.indices(groups * period))
    assert every == list(range(groups * period))
    assert [part.count(groups * period) for part in parts] == [len(part.indices(groups * period)) for part in parts]


FUSED = {
    "gpt_neox by head": ("attention.query_key_value", 12, {"num_attention_heads": 2}, [0, 1, 6, 7]),
    "gpt2 in blocks": ("attn.c_attn", 12, {"n_head": 2, "hidden_size": 4}, [0, 1, 2, 3]),
    "falcon with one key": (
        "self_attention.query_key_value",
        8,
        {"num_attention_heads": 2, "multi_query": True},
        [0, 1, 2, 3],
    ),
    "phi3 with fewer keys": (
        "self_attn.qkv_proj",
        8,
        {"num_attention_heads": 2, "hidden_size": 4, "head_dim": 2},
        [0, 1, 2, 3],
    ),
    "codegen in four parts": ("attn.qkv_proj", 12, {"model_type": "codegen"}, [0, 3, 6, 9]),
}


@pytest.mark.parametrize(("path", "rows", "config", "query"), FUSED.values(), ids=FUSED)
def test_the_queries_of_a_fused_matrix_are_these_rows(path, rows, config, query):
    layout = layout_of({f"m.layers.0.{path}": (rows, 4)}, {"model_type": "any"} | config)
    (port,) = layout.select(0, "q")
    assert port.rows.indices(rows) == query
    parts = [layout.select(0, slot)[0].rows.indices(rows) for slot in "qkv"]
    assert sorted(np.concatenate(parts)) == list(range(rows))


LAYER = {f"model.layers.{i}.self_attn.{n}_proj": (8, 8) for i in range(2) for n in "qkvo"}


def test_targets_are_slots_names_all_linear_and_patterns_of_the_whole_path():
    layout = layout_of(LAYER, {"model_type": "llama"})
    paths = {
        target: [[p.path for p in layout.select(i, target)] for i in range(2)]
        for target in ("q", "auto", "o_proj", "all-linear", r"model\.layers\.1\..*(q|k)_proj", "absent")
    }
    q, k, v, o = (f"self_attn.{n}_proj" for n in "qkvo")
    assert paths == {
        "q": [[q], [q]],
        "auto": [[q, v], [q, v]],
        "o_proj": [[o], [o]],
        "all-linear": [[q, k, v, o], [q, k, v, o]],
        r"model\.layers\.1\..*(q|k)_proj": [[], [q, k]],
        "absent": [[], []],
    }
    assert len(layout.selected(0, ["q", "auto", "all-linear"])) == 4


def test_a_name_of_the_run_goes_before_the_table():
    named = layout_of(LAYER, {"model_type": "llama"}).naming({"q": "k_proj"})
    assert [port.path for port in named.select(0, "q")] == ["self_attn.k_proj", "self_attn.q_proj"]
    assert "k" not in named.slots


def test_a_model_without_numbered_layers_is_refused():
    with pytest.raises(ConfigInvalid, match="numbered layers"):
        layout_of({"mixer.weight": (4, 4)}, {"model_type": "mixer"})


@pytest.mark.parametrize("target", ["(a+)+", "(.*)*x", ".*.*.*.*", "[", r"(a)\1", "(?=a)b+", "a" * 201, "", "(a|a){9}"])
def test_a_pattern_that_could_keep_a_device_busy_is_refused(target):
    assert pattern_fault(target)


@pytest.mark.parametrize("target", ["q", "c_attn", "attn.c_proj", r".*\.layers\.[0-3]\..*(q|v)_proj"])
def test_names_and_plain_patterns_are_taken(target):
    assert pattern_fault(target) is None
    assert is_pattern(target) == (".*" in target)


@pytest.mark.torch
def test_auto_is_what_peft_trains_by_default_wherever_it_has_a_default():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT

    from fedpeft.grafting.anatomy import dissect
    from fedpeft.testing.zoo import ROWS
    from fedpeft.testing.zoo_methods import model_on_meta

    checked = 0
    for name, row in ROWS.items():
        known = PEFT.get(row["model_type"])
        if known is None or row["kind"] not in ("lm", "mlm") or isinstance(known, str):
            continue
        layout = dissect(model_on_meta(name), "all").layout
        ours = {f"{path}.{port.path}" for i, path in enumerate(layout.paths) for port in layout.select(i, "auto")}
        every = {
            f"{path}.{own}" for path, layer in zip(layout.paths, layout.layers, strict=True) for own in layer.matrices
        }
        theirs = {path for path in every if any(path.endswith(f".{leaf}") for leaf in known)}
        assert ours == theirs, name
        checked += 1
    assert checked >= 25
