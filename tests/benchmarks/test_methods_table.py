"""What docs/methods.md quotes of benchmarks/methods.py is what was measured."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from one_method.table import BANKING, DOCUMENT, RESULTS, lines_of, lines_of_ranks, with_tables

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_a_table_compares_each_method_with_full_fine_tuning_of_the_same_base() -> None:
    full = {"step_s": 2.0, "peak_mb": 1000.0, "bytes_up": 4e6}
    known = {
        "airlines: full": full | {"accuracy": 0.7, "loss": 0.6},
        "airlines: bitfit": {"step_s": 1.0, "peak_mb": 500.0, "bytes_up": 4e3, "accuracy": 0.65, "loss": 0.7},
        "docstrings: full": full | {"ppl": 20.0, "accuracy": None, "loss": 3.0},
        "airlines nf4: lora": {"step_s": 3.0, "peak_mb": 400.0, "bytes_up": 8e3, "accuracy": 0.6, "loss": 0.8},
        "airlines: dora": {"failed": "no reason given"},
    }
    assert lines_of(known) == [
        "| airlines: dora | FAILED: no reason given |",
        "| Method | airlines: accuracy | step | memory | kB up | docstrings: perplexity | step | memory | kB up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| full fine-tuning | 70.0% | 1.00 | 1.00 | 4,000 | 20.00 | 1.00 | 1.00 | 4,000 |",
        "| `bitfit` | 65.0% | 0.50 | 0.50 | 4 | - | - | - | - |",
        "| `dora` | - | - | - | - | - | - | - | - |",
        "",
        "| On NF4, packed | accuracy | step | memory | kB up |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| `lora` | 60.0% | 1.50 | 0.40 | 8 |",
    ]
    assert lines_of({"memory full": {"peak_mb": 1.0}}) == []


def test_ranks_stand_in_their_order_below_what_they_are_compared_with() -> None:
    names = {"lora r8": 20, "lora r64": 160, "adapter": 30, "full": 1000, "lora r1": 3}
    known = {name: {"accuracy": 0.5, "trained": trained, "steps": 250} for name, trained in names.items()}
    lines = lines_of_ranks(known)[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| full", "| adapter", "| lora r1", "| lora r8", "| lora r64"]
    assert lines[1] == "| adapter | 50.0% | 30 | 3.00% | 250 |"


def test_the_document_has_the_tables_and_ratios_that_were_measured() -> None:
    assert with_tables(TEXT) == TEXT, "run benchmarks/one_method/table.py"
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for lines in (lines_of(results["runs"]), lines_of_ranks(json.loads(BANKING.read_text(encoding="utf-8"))["runs"])):
        assert all(line in TEXT for line in lines)
    peaks = {name: run["peak_mb"] for name, run in results["runs"].items() if name.startswith("memory ")}
    for name, peak in peaks.items():
        assert f"| {peak:,.0f} | {peak / peaks['memory full']:.2f} |" in TEXT, name
    for key in ("step_ratio_vs_trainer", "step_ratio_equal_dropout", "cache_step_ratio"):
        assert f"{results['summary'][key]:.2f}" in TEXT, key
