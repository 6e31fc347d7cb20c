"""What docs/methods.md quotes of benchmarks/methods.py is what was measured."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from methods_table import RESULTS, lines_of

DOCUMENT = (RESULTS.parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


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


def test_the_document_quotes_the_tables_and_ratios_that_were_measured() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    missing = [line for line in lines_of(results["runs"]) if line not in DOCUMENT]
    assert missing == []
    peaks = {name: run["peak_mb"] for name, run in results["runs"].items() if name.startswith("memory ")}
    for name, peak in peaks.items():
        assert f"| {peak:,.0f} | {peak / peaks['memory full']:.2f} |" in DOCUMENT, name
    for key in ("step_ratio_vs_trainer", "step_ratio_equal_dropout", "cache_step_ratio"):
        assert f"{results['summary'][key]:.2f}" in DOCUMENT, key
