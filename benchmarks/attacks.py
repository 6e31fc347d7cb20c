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

from attack.common import Finding
from attack.inversion import inversion
from attack.product_tests import as_tested
from attack.sums import isolation, split_sharers, tier_with_two_colluders

RESULTS = Path(__file__).parent / "results" / "attacks.json"

REFUSED = "refused: no sum is opened"

ATTACKS: Mapping[str, Callable[[bool], Finding]] = {
    "work_unbound": as_tested(REFUSED, "attacks/test_model_inconsistency.py", "attacks/test_different_work.py"),
    "eval_unbound": as_tested(REFUSED, "attacks/test_different_work.py", matching="eval_examples"),
    "split_sharers_20": split_sharers(20),
    "split_sharers_300": split_sharers(300),
    "isolation_500": isolation(500),
    "isolation_1000": isolation(1000),
    "isolation_3000": isolation(3000),
    "counts_solved": as_tested("nothing: no row holds a number that solves for a count", "attacks/test_counts.py"),
    "lane_of_one_owner": as_tested(
        "nothing: a tier that stays masked has no lane", "attacks/test_counts.py", matching="stays_masked"
    ),
    "resume_difference": as_tested("nothing: the same survivors or no sum", "attacks/test_resume_difference.py"),
    "second_incarnation": as_tested(REFUSED, "attacks/test_second_incarnation.py"),
    "forked_history": as_tested(
        "refused: two histories have two disjoint sets of devices",
        "attacks/test_forked_history.py",
        "round/test_history.py",
    ),
    "wrong_state": as_tested(
        "refused by devices that were there; invented sums move it within max_abs",
        "attacks/test_wrong_state.py",
        "round/test_start.py",
    ),
    "failure_oracle_client": as_tested(
        "nothing: the same bytes", "attacks/test_failure_oracle.py", matching="hostile_head_bias"
    ),
    "failure_oracle_example": as_tested(
        "nothing: the same bytes", "attacks/test_failure_oracle.py", matching="without_one_label"
    ),
    "privacy_off_for_one": as_tested(REFUSED, "attacks/test_different_work.py", matching="privacy_cannot"),
    "tier_with_two_colluders": tier_with_two_colluders,
    "lone_strict_site": as_tested(
        "nothing: terms weaker than a site's own rules are refused before anything leaves",
        "attacks/test_strict_site.py",
    ),
    "crafted_at_a_refresh": as_tested(
        "refused: but for the head, a round that measures it leaves the state as it was",
        "attacks/test_wrong_state.py",
        matching="measures_the_head",
    ),
    "second_look": as_tested("nothing new: the same result, no second draw of noise", "attacks/test_second_look.py"),
    "imprint": as_tested(
        "not prevented without noise; a site may refuse the shapes", "client/test_site.py", matching="imprints"
    ),
    "inversion": inversion,
}
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
