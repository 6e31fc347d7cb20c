"""The bell: who hears that a message waits."""

from fedpeft_server.service.wakeups import Wakeups


def test_only_the_named_devices_hear_and_every_stream_of_theirs_does():
    board, heard = Wakeups(), []
    stop = board.subscribe("a", lambda: heard.append("a1"))
    board.subscribe("a", lambda: heard.append("a2"))
    board.subscribe("b", lambda: heard.append("b"))
    board.notify(["a", "nobody"])
    assert sorted(heard) == ["a1", "a2"]
    assert board.listening() == {"a", "b"}
    stop()
    stop()
    board.notify(["a"])
    assert heard[2:] == ["a2"]
