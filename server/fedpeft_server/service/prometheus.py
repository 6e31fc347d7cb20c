"""Counters and gauges in Prometheus' text format (exposition format 0.0.4), and nothing else."""

import threading

__all__ = ["Meters"]


class Meters:
    """Numbers by name and labels; any thread may change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def count(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Adds to a counter; its name ends in ``_total``."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            series = self._values.setdefault(name, {})
            series[key] = series.get(key, 0.0) + amount

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def text(self) -> str:
        """All of them, names ascending, each prefixed ``fedpeft_``."""
        with self._lock:
            lines: list[str] = []
            for name, series in sorted(self._values.items()):
                lines.append(f"# TYPE fedpeft_{name} {'counter' if name.endswith('_total') else 'gauge'}")
                for labels, value in sorted(series.items()):
                    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
                    lines.append(f"fedpeft_{name}{{{inner}}} {value:g}" if inner else f"fedpeft_{name} {value:g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
