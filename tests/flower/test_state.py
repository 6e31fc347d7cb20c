"""Flower's state and handlers as a coordinator of ours uses them, byte for byte as the gateway does; no sockets."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute

from fedpeft.entropy import os_entropy
from fedpeft.flower import from_record, to_record
from fedpeft.flower.handlers import Answer
from fedpeft.flower.objects import LARGE_BYTES, FleetObjects
from fedpeft.flower.records import LARGE_BYTES as ARRAY_BYTES
from fedpeft.flower.state import DELIVERIES
from fedpeft.flower.superlink import SuperLink
from fedpeft.ids import NodeId
from fedpeft_client.enrolment.keys import new_device_key, public_key

ANSWER_BYTES = 2 * ARRAY_BYTES


class Fixture:
    """A coordinator's half, and a device that says what a test wants it to."""

    def __init__(self, folder: Path) -> None:
        self.link = SuperLink(folder / "objects")
        self.state, self.objects = self.link._state, self.link._objects
        self.key = public_key(new_device_key())
        self.node = self.join(self.key)

    def join(self, key: bytes) -> NodeId:
        node = self.link.enrol(key, f"device-{len(self.state.nodes)}")
        request = ActivateNodeRequest(public_key=key, heartbeat_interval=20)
        assert self.ask("activate-node", request.SerializeToString(), key=key).status == 200
        return node

    def ask(self, route: str, body: bytes, *, key: bytes | None = None) -> Answer:
        return self.link.handlers(f"/v1/fleet/{route}", key or self.key, body)

    def send(self, payload: bytes) -> str:
        (message_id,) = self.link.push(
            [Message(to_record(payload), dst_node_id=self.node, message_type="train.fit")], answer_bytes=ANSWER_BYTES
        )
        assert message_id is not None
        return message_id

    def fetch(self) -> Message | None:
        answer = self.ask("pull-messages", PullMessagesRequest(node=Node(node_id=self.node)).SerializeToString())
        assert answer.status == 200
        found = PullMessagesResponse.FromString(answer.body)
        return message_from_proto(found.messages_list[0]) if found.messages_list else None

    def push(self, reply: Message, *, tree: ObjectTree | None = None, key: bytes | None = None) -> Answer:
        if tree is None:
            reply_id = reply.metadata.__dict__["_message_id"] = reply.metadata.message_id or os_entropy(32).hex()
            tree = ObjectTree(object_id=reply_id)
        request = PushMessagesRequest(
            node=Node(node_id=self.node), messages_list=[message_to_proto(reply)], message_object_trees=[tree]
        )
        return self.ask("push-messages", request.SerializeToString(), key=key)

    def left(self) -> tuple[int, int, int, int]:
        """Messages, replies, objects and sessions that Flower still keeps."""
        state = self.state
        messages, replies = len(state.message_ins_store), len(state.message_res_store)
        return messages, replies, len(self.objects) + len(self.objects._held), len(state._object_push_sessions)


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    made = Fixture(tmp_path)
    yield made
    made.link.close()


def large_reply(to: Message, *, size: int = ARRAY_BYTES) -> tuple[Message, ObjectTree, dict[str, bytes]]:
    """A reply whose content goes beside it, as the stock client makes it."""
    reply = Message(to_record(os_entropy(size)), reply_to=to)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        return remove_content_from_message(reply), get_object_tree(reply), objects


def test_a_message_and_its_reply_take_one_request_each(fixture: Fixture) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    assert from_record(message.content) == b"question"
    told = PushMessagesResponse.FromString(fixture.push(Message(to_record(b"answer"), reply_to=message)).body)
    assert not told.objects_to_push
    ((message_id, reply),) = fixture.link.claim({asked})
    assert (message_id, reply) == (asked, b"answer")
    assert fixture.link.claim({asked}) == []
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)


def test_a_message_whose_answer_does_not_come_is_handed_out_again_but_not_without_end(fixture: Fixture) -> None:
    fixture.send(b"question")
    handed_out = [fixture.fetch() for _ in range(DELIVERIES + 2)]
    assert [message is not None for message in handed_out] == [True] * DELIVERIES + [False] * 2


def test_an_answered_message_is_not_handed_out_again_and_a_repeated_answer_counts_once(fixture: Fixture) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    reply = Message(to_record(b"answer"), reply_to=message)
    assert [fixture.push(reply).status for _ in range(2)] == [200, 200]
    assert fixture.fetch() is None
    assert len(fixture.link.claim({asked})) == 1
    assert fixture.push(reply).status == 200, "its first answer was lost on the way"
    assert fixture.link.claim({asked}) == []
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)


def test_messages_of_a_node_are_handed_out_in_their_order(fixture: Fixture) -> None:
    asked = [fixture.send(b"first"), fixture.send(b"second")]
    for expected in (b"first", b"second"):
        message = fixture.fetch()
        assert message is not None
        assert from_record(message.content) == expected
        fixture.push(Message(to_record(b""), reply_to=message))
    fixture.link.forget(asked)
    assert fixture.left() == (0, 0, 0, 0)


def test_half_a_large_reply_of_a_device_that_died_does_not_keep_it_from_answering(fixture: Fixture) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    bare, tree, objects = large_reply(message)
    told = PushMessagesResponse.FromString(fixture.push(bare, tree=tree).body)
    assert set(told.objects_to_push) == set(objects)
    again = fixture.fetch()  # the next process
    assert again is not None
    assert fixture.push(Message(to_record(b"answer"), reply_to=again)).status == 200
    ((_, reply),) = fixture.link.claim({asked})
    assert reply == b"answer"
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)


@pytest.mark.parametrize(("parts", "is_taken"), [(0, True), (1, False), (4000, False)])
def test_an_answer_of_more_parts_than_it_can_have_is_refused_before_they_come(
    fixture: Fixture, parts: int, is_taken: bool
) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    bare, tree, objects = large_reply(message, size=ANSWER_BYTES)
    tree.children.extend(ObjectTree(object_id=f"{number:064x}") for number in range(parts))
    told = PushMessagesResponse.FromString(fixture.push(bare, tree=tree).body)
    assert set(told.objects_to_push) == (set(objects) if is_taken else set())
    if not is_taken:
        assert fixture.left()[1:] == (0, 1, 0), "the question's own object alone"
        again = fixture.fetch()
        assert again is not None, "it may still answer as it should"
        assert fixture.push(Message(to_record(b"answer"), reply_to=again)).status == 200
        ((_, reply),) = fixture.link.claim({asked})
        assert reply == b"answer"
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)
    assert not fixture.state._answer_parts


def test_a_large_message_can_be_had_again_after_it_was_confirmed(fixture: Fixture) -> None:
    asked = fixture.send(bytes(ARRAY_BYTES))
    message = fixture.fetch()
    assert message is not None
    assert len(message.content) == 0
    assert fixture.ask("confirm-message-received", b"").status == 401, "a node speaks for itself only"
    request = PullObjectRequest(node=Node(node_id=fixture.node), run_id=message.metadata.run_id, object_id=asked)
    assert fixture.ask("pull-object", request.SerializeToString()).status == 200
    assert fixture.fetch() is not None
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)


def test_a_reply_that_is_no_message_is_an_error_and_not_ours(fixture: Fixture) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    part, name = next(
        (content, name) for name, content in large_reply(message)[2].items() if content.startswith(b"RecordDict")
    )
    reply = Message(to_record(b"x" * ARRAY_BYTES), reply_to=message)
    reply.metadata.__dict__["_message_id"] = name
    told = PushMessagesResponse.FromString(
        fixture.push(remove_content_from_message(reply), tree=ObjectTree(object_id=name)).body
    )
    push = PushObjectRequest(
        node=Node(node_id=fixture.node),
        run_id=message.metadata.run_id,
        object_id=name,
        object_content=part,
        session_id=told.session_id,
    )
    assert fixture.ask("push-object", push.SerializeToString()).status == 200
    assert fixture.link.claim({asked}) == [(asked, None)]
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)


def test_an_error_reply_leaves_nothing_behind(fixture: Fixture) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    assert fixture.push(Message(Error(code=0, reason="broken"), reply_to=message)).status == 200
    ((_, reply),) = fixture.link.claim({asked})
    assert isinstance(reply, Message)
    assert reply.error.reason == "broken"
    fixture.link.forget({asked})
    assert fixture.left() == (0, 0, 0, 0)


@pytest.mark.parametrize("size", [0, ARRAY_BYTES])
def test_a_message_to_a_node_that_is_gone_leaves_nothing_behind(fixture: Fixture, size: int) -> None:
    fixture.link.expel(fixture.key)
    message = Message(to_record(bytes(size)), dst_node_id=fixture.node, message_type="train.fit")
    assert fixture.link.push([message], answer_bytes=ANSWER_BYTES) == [None]
    assert fixture.left() == (0, 0, 0, 0)


def test_a_node_cannot_answer_for_another(fixture: Fixture) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    other = public_key(new_device_key())
    fixture.join(other)
    reply = Message(to_record(b"answer"), reply_to=message)
    assert fixture.push(reply, key=other).status == 401
    reply.metadata.__dict__["_src_node_id"] = 1
    assert fixture.push(reply).status == 401
    assert fixture.link.claim({asked}) == []


def test_an_answer_to_a_message_of_before_the_restart_is_gone_and_not_broken(fixture: Fixture) -> None:
    fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    reply = Message(to_record(b"answer"), reply_to=message)
    reply.metadata.__dict__["_run_id"] = 5
    assert fixture.push(reply).status == 410


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, ""])
def test_a_reply_names_no_file_of_its_own_choice(fixture: Fixture, name: str) -> None:
    asked = fixture.send(b"question")
    message = fixture.fetch()
    assert message is not None
    reply = Message(to_record(b"answer"), reply_to=message)
    reply.metadata.__dict__["_message_id"] = name
    fixture.push(reply, tree=ObjectTree(object_id=name))
    assert fixture.link.claim({asked}) == []
    assert fixture.left()[3] == 0


@pytest.mark.parametrize(("route", "body"), [("push-messages", b"\xff\xff"), ("activate-node", b"\x0a\xff")])
def test_what_is_no_request_is_told_so(fixture: Fixture, route: str, body: bytes) -> None:
    assert fixture.ask(route, body).status == 400


def test_contents_are_kept_in_memory_up_to_a_bound_and_in_files_beyond(tmp_path: Path) -> None:
    objects = FleetObjects(tmp_path / "objects", held_bytes=3 * LARGE_BYTES // 2)
    contents = {name * 64: name.encode() * LARGE_BYTES for name in "abc"} | {"d" * 64: b"small"}
    for name, content in contents.items():
        objects.keep(name, content)
    assert {path.name for path in (tmp_path / "objects").iterdir()} == {"b" * 64, "c" * 64}
    objects.delete("c" * 64)
    assert {name: objects.take(name) for name in contents} == {**contents, "c" * 64: None}
    assert list((tmp_path / "objects").iterdir()) == []
    objects.keep("e" * 64, bytes(LARGE_BYTES))
    assert list((tmp_path / "objects").iterdir()) == [], "what was taken makes room"
