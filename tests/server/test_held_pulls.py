"""Pulls that wait for a message: answered when there is one, after their time, and when the coordinator ends."""

import asyncio
import threading

from fedpeft.ids import NodeId
from fedpeft_server.service.held_pulls import HeldPulls

WARD, OTHER = NodeId(1), NodeId(2)


def test_a_pull_is_held_until_its_nodes_message_comes_from_another_thread() -> None:
    held = HeldPulls(lambda node: False)

    async def main() -> list[bool]:
        waiting = asyncio.create_task(held.wait(WARD, 5.0))
        await asyncio.sleep(0.01)
        rung: list[bool] = []
        thread = threading.Thread(target=lambda: rung.extend((held.ring(OTHER), held.ring(WARD))))
        thread.start()
        await asyncio.wait_for(waiting, 4.0)
        thread.join()
        return rung

    assert asyncio.run(main()) == [False, True]
    assert not held.ring(WARD), "nobody waits any more"


def test_a_message_that_was_there_before_is_not_waited_for() -> None:
    asyncio.run(asyncio.wait_for(HeldPulls(lambda node: node == WARD).wait(WARD, 5.0), 4.0))


def test_a_message_between_the_look_and_the_wait_is_not_missed() -> None:
    """Who sends makes it due, then rings: at whatever moment that is, the pull is answered."""
    held: HeldPulls

    def due(node: NodeId) -> bool:
        held.ring(node)  # the sender comes exactly here, after what was looked at was decided
        return False

    held = HeldPulls(due)
    asyncio.run(asyncio.wait_for(held.wait(WARD, 5.0), 4.0))


def test_a_pull_ends_after_its_time_and_none_is_held_by_a_coordinator_that_ends() -> None:
    held = HeldPulls(lambda node: False)

    async def main() -> None:
        await asyncio.wait_for(held.wait(WARD, 0.01), 4.0)
        waiting = asyncio.create_task(held.wait(WARD, 5.0))
        await asyncio.sleep(0)
        held.close()
        await asyncio.wait_for(waiting, 4.0)
        await asyncio.wait_for(held.wait(WARD, 5.0), 4.0)

    asyncio.run(main())
    assert not held._held
