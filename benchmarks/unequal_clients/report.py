"""The table of ``heterogeneity.py``: means over seeds, margins with their standard errors, and a picture."""

import statistics
from collections.abc import Mapping, Sequence

Result = Mapping[str, float]
METRICS = ("mean", "worst")
COLORS = ("#1a5fb4", "#9a9996", "#c64600", "#813d9c", "#26a269", "#62a0ea", "#5e5c64")
WIDTH, LINE, LEFT = 720, 15, 190


class Places:
    """Place of the table -> row -> seed -> result."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[int, Result]]] = {}

    def add(self, place: str, row: str, seed: int, result: Result | None) -> None:
        """Keep a result, if there is one."""
        if result is not None:
            self.rows.setdefault(place, {}).setdefault(row, {})[seed] = result


def report(places: Places, *, ours: str, others: Sequence[str]) -> dict[str, object]:
    """Table, margins of ``ours`` over every other row of a place, and whether all that the issue asks for holds."""
    table = {
        place: {row: _summary(list(by_seed.values())) for row, by_seed in rows.items()}
        for place, rows in places.rows.items()
    }
    margins = {
        f"{place}: {own} over {row}": _margin(rows[own], by_seed)
        for place, rows in places.rows.items()
        for own in (ours if ours in rows else "union",)
        if own in rows
        for row, by_seed in rows.items()
        if row != own and set(by_seed) & set(rows[own])
    }
    asked = {
        name: margin
        for name, margin in margins.items()
        if "homogeneous" not in name and (name.startswith("mixed") or any(name.endswith(f"over {o}") for o in others))
    }
    won = {
        f"{name}, {metric}": margin["seeds"] > 1 and margin[metric] > margin[f"{metric}_se"]
        for name, margin in asked.items()
        for metric in METRICS
    }
    return {
        "beats_all": bool(won) and all(won.values()),
        "beats": f"{sum(won.values())} of {len(won)} measured differences exceed their standard error",
        "lost": [name for name, is_won in won.items() if not is_won],
        "margins": margins,
        "table": table,
    }


def _summary(results: Sequence[Result]) -> dict[str, float]:
    found: dict[str, float] = {"seeds": len(results)}
    for metric in METRICS:
        values = [one[metric] for one in results]
        found[metric] = round(statistics.mean(values), 2)
        found[f"{metric}_se"] = round(_error(values), 2)
    found["megabytes_up"] = round(results[0]["bytes_up"] / 1e6, 2)
    found["device_s"] = round(statistics.mean(one["device_s"] for one in results), 1)
    return found


def _margin(own: Mapping[int, Result], other: Mapping[int, Result]) -> dict[str, float]:
    """Paired by seed: the same split, batches and start."""
    seeds = sorted(set(own) & set(other))
    found: dict[str, float] = {"seeds": len(seeds)}
    for metric in METRICS:
        gains = [own[seed][metric] - other[seed][metric] for seed in seeds]
        found[metric], found[f"{metric}_se"] = round(statistics.mean(gains), 2), round(_error(gains), 2)
    return found


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean; of one value 0, and ``seeds`` says so."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def picture(table: Mapping[str, Mapping[str, Mapping[str, float]]], *, names: Sequence[str]) -> str:
    """Mean (filled) and worst client (ring) of each row in each place, with standard errors, as SVG."""
    parts, y = [], 34
    for place, rows in table.items():
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{place}</text>')
        for row, found in rows.items():
            y += LINE
            color = COLORS[names.index(row) % len(COLORS)] if row in names else COLORS[0 if row == "union" else 1]
            parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{row}</text>')
            for metric, fill in (("worst", "white"), ("mean", color)):
                x, half = _x(found[metric]), (_x(1) - _x(0)) * found[f"{metric}_se"]
                parts.append(
                    f'<path d="M{x - half:.1f} {y - 4}H{x + half:.1f}" stroke="{color}"/>'
                    f'<circle cx="{x:.1f}" cy="{y - 4}" r="4" fill="{fill}" stroke="{color}" stroke-width="1.5"/>'
                )
        y += 2 * LINE
    axis = "".join(
        f'<path d="M{_x(tick):.1f} 20V{y - 18}" stroke="#ddd"/><text x="{_x(tick):.1f}" y="{y}" '
        f'text-anchor="middle">{tick}</text>'
        for tick in range(0, 81, 20)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 12}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{axis}<text x="{LEFT}" y="14">BANKING77, 30 '
        f"clients: accuracy of the test set (filled) and of the worst client (ring), percent</text>"
        f"{''.join(parts)}</svg>\n"
    )


def _x(percent: float) -> float:
    return LEFT + percent * (WIDTH - LEFT - 20) / 80


def markdown(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The table for the documents: mean and worst client, each with its standard error over seeds."""
    lines = ["| place | row | mean | worst client | MB up | device s | seeds |", "|---|---|---|---|---|---|---|"]
    for place, rows in table.items():
        for row, found in rows.items():
            mean, worst = (f"{found[metric]:.1f} ± {found[f'{metric}_se']:.1f}" for metric in METRICS)
            seeds, spent = int(found["seeds"]), f"{found['megabytes_up']:.0f} | {found['device_s']:.0f}"
            lines.append(f"| {place} | {row} | {mean} | {worst} | {spent} | {seeds} |")
    return "\n".join(lines)
