"""The suite's arithmetic: what is compared with what, and the table of docs/benchmarks.md."""

from collections.abc import Mapping
from typing import Any

from benchmarks.suite.places import OURS, PLACES

__all__ = ["bars", "best_of_grid", "joined", "lines", "reduction", "rounds_to"]

LEVEL_POINTS, LEVEL_REDUCTION = 0.01, 0.02
"""Level: within a point of accuracy, or 2 % of the loss that the better of two takes off (as ADR 0019 calls a tie)."""
GRID_POINTS, GRID_REDUCTION = 0.015, 0.03
"""How far the template may be behind the best of a grid (issue 19)."""
START_LOSS = 0.005
"""By how much two programs may differ in the loss of one untrained model: other kernels, other sums."""
Found = Mapping[str, Any]


def rounds_to(found: Found, target: float, *, writes: bool) -> int | None:
    """After how many rounds the devices' own evaluation reached the target first; None: it did not.

    Example:
        >>> rounds_to({"curve": [{"accuracy": 0.5}, {"accuracy": 0.8}]}, 0.75, writes=False)
        2
    """
    key = "loss" if writes else "accuracy"
    for made, row in enumerate(found["curve"], start=1):
        value = row[key]
        if value is not None and (value <= target if writes else value >= target):
            return made
    return None


def reduction(found: Found) -> float:
    """What the run takes off the loss that it began with."""
    return float(found["start"]["loss"] - found["end"]["loss"])


def ahead(ours: Found, other: Found, *, writes: bool) -> float:
    """How far the first is ahead: in points of accuracy (0 to 1), or in shares of the better one's reduction.

    Example:
        >>> one, two = ({"start": {"loss": 5.0}, "end": {"loss": loss}} for loss in (4.0, 4.5))
        >>> ahead(one, two, writes=True), ahead(two, one, writes=True)
        (0.5, -0.5)
    """
    if not writes:
        return float(ours["end"]["accuracy"] - other["end"]["accuracy"])
    best = max(reduction(ours), reduction(other))
    return (reduction(ours) - reduction(other)) / best if best > 0 else 0.0


def expect_same_task(one: Found, other: Found) -> None:
    """Refuses a comparison of two runs that did not begin from the same data, batches and model.

    Raises:
        ValueError: they did not.
    """
    for key in ("sha_of_data", "clients", "steps", "batch"):
        if one[key] != other[key]:
            raise ValueError(
                f"Expected the same {key} in {one['place']} for {one['system']} and {other['system']}, found "
                f"{one[key]} and {other[key]}; delete these cells from suite.json and measure them again."
            )
    if one["start"] and other["start"] and abs(one["start"]["loss"] - other["start"]["loss"]) > START_LOSS:
        raise ValueError(
            f"Expected {one['system']} and {other['system']} to begin with one loss in {one['place']}, found "
            f"{one['start']['loss']} and {other['start']['loss']}: they have not the same base."
        )


def bars(cells: Mapping[str, Found]) -> list[dict[str, Any]]:
    """Ours beside each peer in the same place, of the same size, rounds and seed: the three bars of issue 19."""
    judged = []
    for one in cells.values():
        if one["system"] != OURS:
            continue
        writes = PLACES[one["place"]].writes
        for other in cells.values():
            same = all(one[key] == other[key] for key in ("place", "size", "rounds", "seed"))
            if not same or other["system"] == OURS or other["system"].startswith("grid"):
                continue
            expect_same_task(one, other)
            lead = ahead(one, other, writes=writes)
            cpu = one["cpu_s"] / other["cpu_s"]
            sent = (one["bytes_up"] + one["bytes_down"]) / (other["bytes_up"] + other["bytes_down"])
            judged.append(
                {key: one[key] for key in ("place", "size", "rounds", "seed")}
                | {"peer": other["system"], "lead": round(lead, 4), "cpu": round(cpu, 3), "bytes": round(sent, 3)}
                | {
                    "level_or_ahead": lead >= -(LEVEL_REDUCTION if writes else LEVEL_POINTS),
                    "no_more_cpu": cpu <= 1.0,
                    "half_the_bytes": sent <= 0.5,
                }
            )
    return judged


def best_of_grid(cells: Mapping[str, Found]) -> list[dict[str, Any]]:
    """The template beside the best point of the grid in the same place."""
    judged = []
    for one in cells.values():
        same = [
            other
            for other in cells.values()
            if other["system"].startswith("grid")
            and all(one[key] == other[key] for key in ("place", "size", "rounds", "seed"))
        ]
        if one["system"] != OURS or not same:
            continue
        writes = PLACES[one["place"]].writes
        best = max(same, key=lambda other: reduction(other) if writes else other["end"]["accuracy"])
        lead = ahead(one, best, writes=writes)
        judged.append(
            {key: one[key] for key in ("place", "size", "rounds", "seed")}
            | {"best": best["system"], "points": len(same), "lead": round(lead, 4)}
            | {"within": lead >= -(GRID_REDUCTION if writes else GRID_POINTS)}
        )
    return judged


def lines(cells: Mapping[str, Found]) -> list[str]:
    """The table in Markdown, a row a cell."""
    head = ["data", "batch x steps", "rounds", "system", "result", "worst client", "kB up, down a device"]
    head += ["CPU-s a device", "rounds to target", "load"]
    made = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def order(one: Found) -> tuple[int, str, int, int, str]:
        return list(PLACES).index(one["place"]), one["size"], one["rounds"], one["seed"], one["system"]

    for one in sorted(cells.values(), key=order):
        place = PLACES[one["place"]]
        end = one["end"]
        if place.writes:
            result, worst = f"{one['start']['loss']:.3f} -> {end['loss']:.3f}", f"{end['worst']:.3f}"
        else:
            result, worst = f"{100 * end['accuracy']:.1f} %", f"{100 * end['worst']:.1f} %"
        reached = rounds_to(one, place.target, writes=place.writes)
        cost = f"{one['bytes_up'] / 1e3:,.0f}, {one['bytes_down'] / 1e3:,.0f}"
        row = [one["place"], f"{one['batch']} x {one['steps']}", str(one["rounds"]), one["system"], result, worst]
        row += [cost, f"{one['cpu_s']:.1f}", str(reached or "-"), f"{one['load']:.0f}"]
        made.append("| " + " | ".join(row) + " |")
    return made


def joined(sums: dict[str, tuple[float, float, int]], *, writes: bool) -> dict[str, Any]:
    """Scores over all clients, and the worst client's.

    Args:
        sums: by client: sum of the losses, right answers, examples (of a language model: tokens).
        writes: the worst is the one with the highest loss; else with the lowest accuracy.
    """
    losses = {name: loss / count for name, (loss, _, count) in sums.items()}
    rights = {name: right / count for name, (_, right, count) in sums.items()}
    total = sum(count for _, _, count in sums.values())
    return {
        "loss": round(sum(loss for loss, _, _ in sums.values()) / total, 5),
        "accuracy": round(sum(right for _, right, _ in sums.values()) / total, 5),
        "worst": round(max(losses.values()) if writes else min(rights.values()), 5),
        "worst_client": max(losses, key=lambda n: losses[n]) if writes else min(rights, key=lambda n: rights[n]),
        "held_out": total,
    }
