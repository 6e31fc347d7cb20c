"""What a person sees: a table on a terminal, one plain line a round elsewhere, and never a crash over a name."""

import io

import pytest
from rich.console import Console

from fedpeft.ids import RoundId
from fedpeft.round.events import Event, EventKind
from fedpeft.round.transport import Stage
from fedpeft.terminal import span
from fedpeft.testing.clock import FakeClock
from fedpeft_sim.live import DOING, LiveScreen


def screen_on(terminal: bool, *, names: tuple[str, ...] = ("united", "jetblue")) -> tuple[LiveScreen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    screen = LiveScreen(console)
    screen.clients(dict.fromkeys(names, "lora r4"), rounds=2)
    return screen, out


def event(kind: EventKind, round_id: int = 1, **fields: object) -> Event:
    return Event(kind=kind, round_id=RoundId(round_id), **fields)  # type: ignore[arg-type]


def a_round(name: str = "united") -> list[Event]:
    return [
        event(EventKind.ROUND_STARTED, detail="attempt 1: asking 2 devices"),
        event(EventKind.ASKED, stage=Stage.FIT, device=name, detail="until 5 s from now"),
        event(EventKind.ANSWERED, stage=Stage.FIT, device=name, seconds=1.5, bytes_up=2000, bytes_down=70_000),
        event(EventKind.COMMITTED, detail="loss 0.5000; 2 of 2 devices"),
    ]


def test_a_plain_output_gets_one_line_a_committed_round() -> None:
    screen, out = screen_on(terminal=False)
    with screen:
        for each in a_round():
            screen.observe(each)
        screen.observe(event(EventKind.COMMITTED, 3, detail="loss 0.4000"))
    assert out.getvalue().splitlines() == [
        "round 1/2 committed: loss 0.5000; 2 of 2 devices",
        "final evaluation committed: loss 0.4000",
    ]


def test_a_round_that_ends_says_how_long_the_others_will_take() -> None:
    clock, out = FakeClock(), io.StringIO()
    screen = LiveScreen(Console(file=out, width=120, color_system=None), clock=clock)
    screen.clients({"united": "lora"}, rounds=5)
    for number in range(1, 7):
        clock.advance(400 if number == 1 else 50)  # the first fills caches: it tells nothing of the others
        screen.observe(event(EventKind.COMMITTED, number, detail="loss"))
    assert out.getvalue().splitlines() == [
        "round 1/5 committed: loss",
        "round 2/5 committed: loss; about 2 min left",
        "round 3/5 committed: loss; about 2 min left",
        "round 4/5 committed: loss; about 50 s left",
        "round 5/5 committed: loss",
        "final evaluation committed: loss",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99.4, "99 s"), (150, "2 min"), (3570, "1 h 00 min"), (5000, "1 h 23 min")]
)
def test_a_foretold_time_is_said_as_a_person_would(seconds: float, said: str) -> None:
    assert span(seconds, roughly=True) == said


def test_failures_and_aborted_rounds_are_told_everywhere() -> None:
    screen, out = screen_on(terminal=False)
    with screen:
        screen.observe(event(EventKind.FAILED, stage=Stage.MASK, device="united", detail="no answer within 5 s"))
        screen.observe(event(EventKind.ABORTED, detail="too-few-devices: found 1"))
    assert out.getvalue().splitlines() == [
        "round 1/2: united failed: no answer within 5 s",
        "round 1/2 aborted: too-few-devices: found 1",
    ]


def test_long_work_is_told_in_quarters_on_a_plain_output() -> None:
    screen, out = screen_on(terminal=False)
    for done in range(101):
        screen.working("centralised", done, 100)
    assert out.getvalue().splitlines() == [f"centralised: {share} of 100" for share in (25, 50, 75, 100)]


def test_a_terminal_shows_every_client_with_its_method_state_bytes_and_seconds() -> None:
    screen, out = screen_on(terminal=True)
    with screen:
        for each in a_round()[:-1]:
            screen.observe(each)
        screen._live.refresh()  # type: ignore[union-attr]
        screen.observe(a_round()[-1])
    shown = out.getvalue()
    for text in ("united", "jetblue", "lora r4", "waiting for others", "not asked yet", "2 kB", "70 kB", "1.5"):
        assert text in shown, text
    assert "round 1/2 committed: loss 0.5000; 2 of 2 devices\n" in shown


def test_what_to_do_now_is_the_last_line_of_a_terminal() -> None:
    screen, out = screen_on(terminal=True)
    with screen:
        screen.hint("continue with:  fedpeft simulate --resume x")
        screen.note("interrupted")
    assert out.getvalue().endswith("continue with:  fedpeft simulate --resume x\n")


def test_a_terminal_shows_that_something_is_loaded_before_the_clients_are_known() -> None:
    out = io.StringIO()
    with LiveScreen(Console(file=out, force_terminal=True, width=80, color_system=None)) as screen:
        screen.loading("config run.toml; loading")
        screen.working("base", 40, 100)
        screen._live.refresh()  # type: ignore[union-attr]
    assert "base: 40 of 100" in out.getvalue()


def test_a_quiet_terminal_shows_failures_alone() -> None:
    out = io.StringIO()
    with LiveScreen(Console(file=out, force_terminal=True, width=80, color_system=None), quiet=True) as screen:
        screen.loading("config run.toml; loading")
        screen.clients({"united": "lora"}, rounds=2)
        for each in a_round():
            screen.observe(each)
        screen.observe(event(EventKind.FAILED, stage=Stage.MASK, device="united", detail="no answer within 5 s"))
    assert out.getvalue() == "round 1/2: united failed: no answer within 5 s\n"


def test_every_stage_has_a_word_for_what_is_done() -> None:
    assert set(DOING) == set(Stage)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", ["[/b]", "Acme [eu]", "[link=http://x]y"])
def test_a_clients_name_is_shown_as_it_is_and_never_read_as_markup(terminal: bool, name: str) -> None:
    screen, out = screen_on(terminal, names=(name,))
    with screen:
        for each in a_round(name):
            screen.observe(each)
        screen.observe(event(EventKind.FAILED, stage=Stage.FIT, device=name, detail=f"expected {name}"))
        screen.observe(event(EventKind.ROUND_STARTED, 2, detail=f"asking {name}"))
        screen.working(name, 1, 2)
    assert name in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_device_says_does_not_reach_the_terminal_as_a_command(terminal: bool) -> None:
    screen, out = screen_on(terminal=terminal, names=("a\x1b[31mX",))
    evil = "gone \x1b]0;title\x07 \x1b[2J\nround 1/2 committed"
    for kind in (EventKind.ROUND_STARTED, EventKind.FAILED, EventKind.ABORTED, EventKind.COMMITTED):
        screen.observe(event(kind, stage=Stage.FIT, device="a\x1b[31mX", detail=evil))
    if screen._live:
        screen._live.refresh()
    screen.__exit__(None, None, None)
    shown = out.getvalue()
    assert "gone \\x1b]0;title\\x07 \\x1b[2J\\nround 1/2 committed" in shown
    assert not any(command in shown for command in ("\x1b]", "\x07", "\x1b[2J", "\x1b[31m"))
