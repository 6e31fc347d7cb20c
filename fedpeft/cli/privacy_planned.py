"""What `fedpeft privacy plan` found: printed for people, or as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass

import click

from fedpeft.cli.options import say_json

__all__ = ["Planned", "clip_advice", "reach_advice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a plan says, for people and for programs.

    Args:
        facts: the promise's numbers.
        promise: what belongs to it, one fact per line.
        remarks: what follows the promise; empty for none.
        about: what the signals are.
        signals: of each size, by its name.
        sizes: trained coordinates, by the same names.
        learns, drowns: signals from which on steps learn, and below which they drown.
        recommended: one of the names; None: none of these.
        advice: what to print of that.
        config: lines for run.toml.
    """

    facts: Mapping[str, float | int | str]
    promise: tuple[str, ...]
    remarks: tuple[str, ...]
    about: str
    signals: Mapping[str, float]
    sizes: Mapping[str, int]
    learns: float
    drowns: float
    recommended: str | None
    advice: tuple[str, ...]
    config: str

    def verdict(self, name: str) -> str:
        """Of one size."""
        ratio = self.signals[name]
        return "learns" if ratio >= self.learns else "noisy" if ratio >= self.drowns else "too noisy"

    def say(self) -> None:
        """For people."""
        rows = [
            f"  {name:<34} d = {size:>9,}   {self.signals[name]:8.3f}   {self.verdict(name)}"
            for name, size in self.sizes.items()
        ]
        for line in (*self.promise, *self.remarks, "", f"{self.about}:", *rows, "", *self.advice, "", self.config):
            click.echo(line)

    def say_json(self) -> None:
        """For programs."""
        signals = [
            {"name": name, "parameters": size, "signal_to_noise": self.signals[name], "verdict": self.verdict(name)}
            for name, size in self.sizes.items()
        ]
        said = {"promise": [*self.promise, *self.remarks], "signals": signals, "recommended": self.recommended}
        say_json({**self.facts, **said, "advice": list(self.advice), "config": self.config})


def reach_advice(bands: int, gain: float) -> str:
    """What correlating a device's noise does for a plan."""
    if bands == 1:
        return (
            "correlated noise would leave no less in the model than independent noise: batches this large are near the "
            "least that any noise leaves; each step's is independent"
        )
    return (
        f"correlated over {bands} steps it leaves {gain:.2f} of what independent noise leaves in the model (root mean "
        f"square over the run); each device keeps {4 * (bands - 1)} bytes a trained coordinate"
    )


def clip_advice(bit: float, *, adaptive: bool) -> str:
    """Where the clip norm comes from; ``bit`` is the noise on the share of clients within it."""
    if adaptive:
        return (
            "clip norm: 1 to begin with; it follows the clients' norms, which each round shows with noise of "
            f"{bit:.2f} on the share within it"
        )
    return (
        f"clip norm: fixed, because an adaptive one would only follow noise ({bit:.2f} on the share within it); take "
        "the median norm of a client's update on public data"
    )
