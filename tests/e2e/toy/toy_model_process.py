"""The coordinator's second process without torch."""

import json
from pathlib import Path

from toy_spec import BASE, SPEC

from fedpeft.child import answer_parent
from fedpeft.testing.trainers import toy_state


def draft(payload: bytes) -> bytes:
    """As the model process's."""
    head = json.dumps({"base": BASE, "spec": SPEC.to_json(), "start": ""})
    return head.encode() + b"\n" + toy_state(SPEC).to_safetensors()


def export(payload: bytes) -> bytes:
    """As the model process's."""
    folder, _, state = payload.partition(b"\n")
    (Path(folder.decode()) / "state.safetensors").write_bytes(state)
    return b""


if __name__ == "__main__":
    answer_parent(lambda arguments: {"draft": draft, "export": export})
