"""The live view: it fits every terminal, shows failed and busy clients first, and costs next to nothing."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from fedpeft_sim.live_view import SAID, ClientLine, LiveView, Standing, lines_of


def view_of(clients: int, **fields: object) -> LiveView:
    """A round in which one client in fifty has failed and one in ten trains."""
    lines = {}
    for i in range(clients):
        standing = Standing.FAILED if i % 50 == 4 else Standing.BUSY if i % 10 == 3 else Standing.WAITING
        state = "training" if standing is Standing.BUSY else SAID[standing]
        lines[f"client-{i}"] = ClientLine(standing, state, 25_000 * (i % 3), 70_000, 1.5)
    known = {"title": f"round 3/24: attempt 1: asking {clients} devices", "rounds": 24, "rounds_done": 2}
    return LiveView(
        **{**known, "elapsed_s": 95.0, "left_s": 990.0, "clients": lines, **fields},  # type: ignore[arg-type]
        methods=dict.fromkeys(lines, "lora r4"),
    )


@pytest.mark.parametrize("clients", [6, 50, 500])
def test_a_terminal_of_80_by_24_shows_bar_counts_failed_and_busy_clients_and_how_many_more(clients: int) -> None:
    shown = lines_of(view_of(clients), 80, 24).plain.splitlines()
    assert len(shown) <= 20
    assert "2 of 24 rounds, 1 min 35 s, about 16 min left" in shown[1]
    assert shown[2].startswith(f"{clients} clients: ")
    standing = [line.split()[3] for line in shown[4:] if line.startswith("client-")]
    kinds = ["failed", "training", "waiting"]
    assert standing == sorted(standing, key=kinds.index)
    assert standing[0] == "failed"
    assert (f"and {clients - 12} more" in shown[-1]) == (clients > 12)


@given(
    clients=st.integers(0, 40),
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    name=st.text(max_size=80),
    title=st.text(max_size=200),
)
@settings(max_examples=60)
def test_no_name_and_no_terminal_makes_the_view_wider_or_higher_than_it_may_be(
    clients: int, width: int, height: int, name: str, title: str
) -> None:
    lines = {f"{name}{i}": ClientLine(Standing.FAILED, f"failed: {name}") for i in range(clients)}
    view = LiveView(title=title, rounds=3, clients=lines, methods=dict.fromkeys(lines, name))
    shown = lines_of(view, width, height).plain
    assert len(shown.split("\n")) <= max(3, height - 4)
    assert all(cell_len(line) <= max(width - 1, 1) for line in shown.split("\n"))
    assert all(one == "\n" or one.isprintable() for one in shown)


def test_before_the_rounds_there_is_a_spinner_that_turns() -> None:
    first, second = (lines_of(LiveView(title="loading", elapsed_s=at), 80, 24).plain for at in (0.0, 0.25))
    assert first.strip().endswith("loading")
    assert first != second


def test_four_redraws_a_second_of_500_clients_cost_less_than_2_percent_of_a_cores_time() -> None:
    """docs/benchmarks.md has the figure beside a whole round's CPU; this bar holds on a slow and crowded machine."""
    view = view_of(500)
    lines_of(view, 80, 24)
    begun = time.process_time()
    for _ in range(20):
        lines_of(view, 80, 24)
    assert (time.process_time() - begun) / 20 * 4 < 0.02
