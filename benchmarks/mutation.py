"""Which small changes to the code that guards private data would no test notice?

    make mutate                      every mutant that has no verdict yet, or survived older tests: hours
    make mutate SAMPLE=200 SEED=1    a sample, in proportion to each module's mutants: minutes
    python benchmarks/mutation.py [--sample N --seed S] [--only TEXT ...] [--tests PATH ...] [--again] [--survivors]
        [--by TEST ...] [--as-recorded] [--report]

Verdicts are kept in ``.mutation/`` as they come; a later call goes on where the last one stopped. A verdict holds
until the function changes, a survivor's until any test does. ``--report`` runs nothing, ``--only`` takes mutants whose
key holds the text, ``--again`` forgets theirs, ``--survivors`` judges nothing but what has survived so far,
``--tests`` uses these folders of tests alone. First it is recorded, once for each test file, which tests reach which
lines; not for ``--by``, which asks tests that were just written, each by its name, and keeps what they notice, nor with
``--as-recorded``, which goes by what was recorded of a file before it changed: newer tests are not asked.

Survivors that are the same program are explained in benchmarks/mutation_equivalent.toml. The last line is JSON, kept
in benchmarks/results/mutation.json. What changes: ``mutants/operators.py``. Why own code: ``docs/adr/0022-proof.md``.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants.fresh import Fresh
from mutants.judging import MOST_SECONDS, Functions, judged
from mutants.operators import Mutant, mutants_of
from mutants.reach import Reach, record
from mutants.session import Session

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / ".mutation"
ROOT = KEPT / "tree"
"""A copy, made at the start: what is edited meanwhile changes nothing."""
TREES = ("fedpeft", "tests", "server", "clients", "simulations", "benchmarks", "docs")
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.toml")
RESULTS = Path(__file__).parent / "results" / "mutation.json"
PACKAGES = ("secagg", "ring", "wire", "privacy", "round")
FOLDERS = tuple(
    f"tests/{name}"
    for name in ("ring", "wire", "secagg", "round", "privacy", "protocol", "vectors", "attacks", "server", "aggregate")
)
PYTEST = (
    *(
        word
        for name in ("terminal", "cacheprovider", "timeout", "xdist", "faulthandler")
        for word in ("-p", f"no:{name}")
    ),
    *("-m", "not slow and not gpu and not e2e and not torch", "--import-mode=importlib", "-o", "addopts="),
    "--hypothesis-profile=mutation",
)
APART = tuple(f"fedpeft/privacy/opacus_accounting.py::{name}:" for name in ("_main", "_without_torch"))
"""What runs in a process of its own alone, where no mutant reaches: not judged; tests start it."""
ALIVE = frozenset({"survived", "uncovered"})
BAR = 0.95
UNKNOWN_SECONDS = 1.0
Verdict = dict[str, Any]


def main() -> None:
    """Judge what is asked for and not judged yet; print the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--survivors", action="store_true", help="judge again what lives, and nothing new")
    parser.add_argument("--by", action="append", help="a test file or FILE::test, for the mutants of its package")
    parser.add_argument("--tests", action="append", help="default: " + " ".join(FOLDERS))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--as-recorded", action="store_true", help="record nothing anew")
    parser.add_argument("--record", action="store_true", help="stop when it is noted which tests reach which lines")
    arguments = parser.parse_args()
    _copy_tree()
    everything = _all_mutants()
    chosen = _sampled(everything, arguments.sample, arguments.seed)
    if arguments.only:
        chosen = [one for one in chosen if any(text in one.key for text in arguments.only)]
    files = _test_files(arguments.tests or FOLDERS)
    book = Book(KEPT / "verdicts.jsonl", _digest(files))
    pending = [one for one in chosen if arguments.again or not book.holds(one)]
    if arguments.survivors or arguments.by:
        pending = [one for one in pending if one.key not in _explained()]
    if arguments.survivors:
        pending = [one for one in pending if book.status(one) in ALIVE]
    if arguments.by:
        _judge_by(pending, book, arguments.by)
    elif not arguments.report and pending:
        _judge([] if arguments.record else pending, book, files, as_recorded=arguments.as_recorded)
    result = _summed(chosen, book, whole=not arguments.only)
    if not arguments.only and not arguments.record:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for one in chosen:
        if book.status(one) in ALIVE and one.key not in _explained():
            print(f"{book.status(one)}: {one.path}:{one.line}: {one.key.partition('::')[2]}")
    print(json.dumps({key: value for key, value in result.items() if key != "survivors"}))


def _copy_tree() -> None:
    """The sources and tests as they are now, and their place at the head of the search path."""
    shutil.rmtree(ROOT, ignore_errors=True)
    for name in TREES:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(REPOSITORY / name, ROOT / name, ignore=ignored)
    for file in (*REPOSITORY.glob("*.toml"), *REPOSITORY.glob("*.md")):
        shutil.copy(file, ROOT)
    places = [str(ROOT / name) for name in ("", "server", "clients", "simulations")]
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
    os.chdir(ROOT)


class Book:
    """The verdicts, a line each; of one mutant the last one counts."""

    def __init__(self, path: Path, tests: str) -> None:
        self._path, self._tests = path, tests
        lines = path.read_text().splitlines() if path.exists() else []
        self._found: dict[str, Verdict] = {one["key"]: one for one in map(json.loads, lines)}

    def holds(self, mutant: Mutant) -> bool:
        """Whether there is a verdict on this very function, and a survivor's on these very tests."""
        found = self._found.get(mutant.key)
        if found is None or found["digest"] != mutant.digest:
            return False
        return found["status"] == "killed" or found["of"] == self._tests

    def status(self, mutant: Mutant) -> str:
        """Of this mutant: killed, survived, uncovered, or unknown."""
        found = self._found.get(mutant.key)
        return str(found["status"]) if found is not None and found["digest"] == mutant.digest else "unknown"

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        """Keep one more."""
        entry = {"key": mutant.key, "digest": mutant.digest, "of": self._tests, **verdict}
        self._found[mutant.key] = entry
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _all_mutants() -> list[Mutant]:
    files = chain.from_iterable(sorted((ROOT / "fedpeft" / package).rglob("*.py")) for package in PACKAGES)
    found = (one for file in files for one in mutants_of(ROOT, str(file.relative_to(ROOT))))
    return [one for one in found if not one.key.startswith(APART)]


def _sampled(mutants: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """The first of an order in which every module is spread evenly: a larger sample holds each smaller one."""
    if count is None:
        return list(mutants)
    by_module = defaultdict(list)
    for one in mutants:
        by_module[one.path].append(one)
    generator = np.random.default_rng(seed)
    ranked: list[tuple[float, Mutant]] = []
    for ones in by_module.values():
        offset = generator.random()
        ranked += [((rank + offset) / len(ones), ones[i]) for rank, i in enumerate(generator.permutation(len(ones)))]
    return [one for _, one in sorted(ranked, key=lambda pair: (pair[0], pair[1].key))[:count]]


def _test_files(folders: Sequence[str]) -> list[str]:
    """Those without torch, which is loaded for nothing, and without processes of their own, which see no mutant."""
    files = sorted(chain.from_iterable((ROOT / folder).rglob("test_*.py") for folder in folders))
    apart = re.compile(r"^pytestmark = .*\b(torch|e2e)\b", re.MULTILINE)
    return [str(one.relative_to(ROOT)) for one in files if not apart.search(one.read_text())]


def _digest(files: Sequence[str]) -> str:
    return hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in files)).hexdigest()[:16]


def _judge(pending: Sequence[Mutant], book: Book, files: Sequence[str], *, as_recorded: bool = False) -> None:
    """First what a forked copy can judge, then what needs a fresh interpreter."""
    paths = sorted({one.path for one in _all_mutants()})
    imported: list[Mutant] = []
    fresh = Fresh(ROOT, PYTEST)

    def work(session: Session) -> None:
        if not as_recorded:
            record(session, ROOT, paths, KEPT / "reach", files)
        reach = Reach(KEPT / "reach", files)
        functions = Functions(ROOT)
        progress = Progress(len(pending))
        for mutant in pending:
            verdict = judged(session, functions, ROOT, mutant, reach)
            if verdict["status"] == "imported":
                imported.append(mutant)
                continue
            book.add(mutant, verdict)
            progress.one(mutant, verdict)
        for mutant in imported:
            verdict = _judged_on_import(mutant, reach, fresh)
            book.add(mutant, verdict)
            progress.one(mutant, verdict)

    code = pytest.main([*PYTEST, *files], plugins=[Session(work)])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        raise SystemExit(f"pytest ended with {code}")
    fresh.close()


class Asked(Reach):
    """These tests, for every mutant of their package: what they reach nobody has noted, what some of them take is."""

    def __init__(self, names: Iterable[str], files: Sequence[str]) -> None:
        known = Reach(KEPT / "reach", files).seconds
        self.seconds = {name: known.get(name, UNKNOWN_SECONDS) for name in names}

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Those that are not of another package: its module's own first, then quick ones."""
        near = [name for name in self.seconds if Path(name).parts[1] not in {*PACKAGES} - {mutant.package}]
        return sorted(near, key=lambda name: (not name.startswith(f"{mutant.own_tests}::"), self.seconds[name]))


def _judge_by(pending: Sequence[Mutant], book: Book, tests: Sequence[str]) -> None:
    """By these tests alone: what they do not notice stays as it was."""
    fresh, progress = Fresh(ROOT, PYTEST), Progress(len(pending))

    def work(session: Session) -> None:
        asked, functions = Asked(session.items, _test_files(FOLDERS)), Functions(ROOT)
        for mutant in pending:
            verdict = judged(session, functions, ROOT, mutant, asked)
            if verdict["status"] == "imported":
                verdict = fresh.judged(mutant, asked.tests_of(mutant), 60)
            if verdict["status"] == "killed":
                book.add(mutant, verdict)
            progress.one(mutant, verdict)

    pytest.main([*PYTEST, *tests], plugins=[Session(work)])
    fresh.close()


class Progress:
    """A line for each that is alive, and one now and then."""

    def __init__(self, count: int) -> None:
        self._count, self._found = count, Counter[str]()
        self._start = time.monotonic()

    def one(self, mutant: Mutant, verdict: Verdict) -> None:
        """Count one more."""
        self._found[verdict["status"]] += 1
        done = self._found.total()
        if verdict["status"] != "killed":
            print(f"{verdict['status']}: {mutant.path}:{mutant.line}: {mutant.key.partition('::')[2]}", flush=True)
        if done % 50 == 0 or done == self._count:
            print(f"{done} of {self._count} in {time.monotonic() - self._start:.0f} s: {dict(self._found)}", flush=True)


def _judged_on_import(mutant: Mutant, reach: Reach, fresh: Fresh) -> Verdict:
    """By the module's own tests first, then by the others that could notice."""
    start = time.monotonic()
    cost = _files_for(mutant, reach)
    files = list(cost)
    verdict: Verdict = {"status": "uncovered"}
    for some in (files[:1], files[1:]):
        if some and verdict["status"] != "killed":
            verdict = fresh.judged(mutant, some, 10 + 8 * sum(cost[file] for file in some))
    return {**verdict, "tests": len(files), "seconds": round(time.monotonic() - start, 2)}


def _files_for(mutant: Mutant, reach: Reach) -> dict[str, float]:
    """Test files that could notice, with their seconds: the module's own, then quick ones, 30 seconds in all."""
    cost: dict[str, float] = defaultdict(float)
    for name, seconds in reach.seconds.items():
        cost[name.partition("::")[0]] += seconds
    reached = reach.files_of(mutant.path)
    own = (f"tests/{mutant.package}/", "tests/vectors/")
    near = [file for file in cost if file.startswith(own) or file in reached]
    near.sort(key=lambda file: (file != mutant.own_tests, cost[file]))
    sums = accumulate(map(cost.__getitem__, near))
    return {file: cost[file] for file, sum_ in zip(near, sums, strict=True) if sum_ <= MOST_SECONDS or file == near[0]}


def _explained() -> dict[str, str]:
    if not EQUIVALENT.exists():
        return {}
    entries = tomllib.loads(EQUIVALENT.read_text()).get("equivalent", [])
    return {key: entry["because"] for entry in entries for key in entry["mutants"]}


def _summed(chosen: Iterable[Mutant], book: Book, *, whole: bool) -> dict[str, Any]:
    explained = _explained()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = {}
    for one in chosen:
        status = book.status(one)
        if status != "killed" and one.key in explained:
            status = "equivalent"
        elif status in ALIVE:
            survivors[one.key] = status
        counts[one.package][status] += 1
    total = sum(counts.values(), Counter[str]())
    judged = total["killed"] + total["survived"] + total["uncovered"]
    return {
        "killed": total["killed"] / judged if judged else 0.0,
        "bar": BAR,
        "of_all": whole,
        "counts": dict(total),
        "packages": {name: dict(found) for name, found in counts.items()},
        "explained_as_equivalent": explained,
        "survivors": survivors,
    }


if __name__ == "__main__":
    main()
