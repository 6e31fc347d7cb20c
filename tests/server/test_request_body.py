"""Bodies of requests: what ends one is silence or slowness, and room for large ones is shared in turn."""

import asyncio

import pytest

from fedpeft_server.service.request_body import BodyPace, BodyRoom, read_body

PACE = BodyPace(silence_s=0.5, least_per_s=1000.0)


def receiving(*parts: tuple[float, bytes]):
    """Of ASGI: each part after so many seconds, then nothing."""
    left = list(parts)

    async def receive() -> dict:
        pause_s, body = left.pop(0) if left else (60.0, b"")
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": body}

    return receive


def test_a_body_may_take_longer_than_any_silence_while_it_comes_on() -> None:
    parts = [(0.08, bytes(100))] * 10
    assert asyncio.run(read_body(receiving(*parts), 1000, PACE)) == bytes(1000)


@pytest.mark.parametrize(
    "parts",
    [[], [(0.0, bytes(900))], [(0.05, b"x")] * 1000],
    ids=["silence at once", "silence in the middle", "a drop at a time"],
)
def test_a_body_that_stops_or_drips_is_given_up(parts: list[tuple[float, bytes]]) -> None:
    async def given_up() -> None:
        with pytest.raises(TimeoutError):
            await read_body(receiving(*parts), 1000, PACE)

    asyncio.run(asyncio.wait_for(given_up(), 10.0))


def test_who_leaves_in_the_middle_of_a_body_is_not_waited_for() -> None:
    async def receive() -> dict:
        return {"type": "http.disconnect"}

    assert asyncio.run(read_body(receive, 10, PACE)) is None


def test_room_is_given_in_turn_and_who_gives_up_waiting_keeps_nobody_out() -> None:
    room, order, held = BodyRoom(100), list[str](), list[int]()

    async def take(name: str, size: int) -> None:
        async with room.of(size):
            order.append(name)
            held.append(min(size, 100))
            assert sum(held) <= 100
            await asyncio.sleep(0.002)
            held.remove(min(size, 100))

    async def main() -> None:
        sizes = {"a": 60, "b": 60, "gives up": 30, "c": 100, "d": 5, "larger than all": 1000, "e": 10}
        tasks = {name: asyncio.create_task(take(name, size)) for name, size in sizes.items()}
        await asyncio.sleep(0)
        tasks["gives up"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 10.0))
    assert order == ["a", "b", "c", "d", "larger than all", "e"]


def test_room_that_was_given_to_who_gave_up_in_that_moment_is_not_lost() -> None:
    room = BodyRoom(10)

    async def main() -> None:
        async def take() -> None:
            async with room.of(10):
                pass

        first = room.of(10)
        await first.__aenter__()
        waiting = asyncio.create_task(take())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # gives the room to who waits
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(take(), 5.0)

    asyncio.run(main())


@pytest.mark.parametrize("order", ["free, then cancel", "cancel, then free"])
def test_who_gives_up_in_the_moment_in_which_room_is_free_is_cancelled_and_nothing_else(order: str) -> None:
    room = BodyRoom(10)

    async def main() -> None:
        async def take(size: int) -> None:
            async with room.of(size):
                pass

        first = room.of(10)
        await first.__aenter__()
        waiting, behind = asyncio.create_task(take(5)), asyncio.create_task(take(10))
        await asyncio.sleep(0)
        if order == "cancel, then free":
            waiting.cancel()
        await first.__aexit__(None, None, None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(behind, 5.0)
        await asyncio.wait_for(take(10), 5.0)

    asyncio.run(main())
