"""What each attack of docs/threat-model.md still learns: one function a key, one JSON for all.

    python benchmarks/attacks.py --quick | --full [--only KEY ...] [--again]

A key's finding is kept in benchmarks/results/attacks.json as soon as it is there; without ``--again`` a later call
takes up where the last one stopped. ``--quick`` keeps nothing and takes less than a minute a key. The last line is
JSON: for each key ``learnt`` (one sentence), ``holds`` (whether the attack learnt no more than the documents say) and
the figures that show it.

To add an attack: a function from ``quick`` to a ``Finding``, in a file of its own, and a line in ``ATTACKS``.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from attacks_common import Finding
from attacks_inversion import inversion

RESULTS = Path(__file__).parent / "results" / "attacks.json"

ATTACKS: Mapping[str, Callable[[bool], Finding]] = {"inversion": inversion}
"""By key; the argument says whether it is a quick look."""


def main() -> None:
    """Run what is asked for and not kept yet, and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--only", action="append", choices=sorted(ATTACKS))
    parser.add_argument("--again", action="store_true", help="run also what is kept")
    arguments = parser.parse_args()
    kept: dict[str, object] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not arguments.quick else {}
    for key in arguments.only or ATTACKS:
        if key in kept and not arguments.again:
            continue
        start = time.monotonic()
        finding = asdict(ATTACKS[key](arguments.quick)) | {"seconds": round(time.monotonic() - start, 1)}
        kept[key] = finding
        print(key, json.dumps(finding), flush=True)
        if arguments.full:
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept))


if __name__ == "__main__":
    main()
