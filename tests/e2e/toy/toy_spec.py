"""What the toy processes agree on; TOY_DEVICES and TOY_WIDTH make it larger, for `benchmarks/deployment.py`."""

import os

from fedpeft.testing.trainers import toy_spec

DEVICES = tuple(os.environ.get("TOY_DEVICES", "ward-a,ward-b,ward-c,ward-d").split(","))
WIDTH = int(os.environ.get("TOY_WIDTH", len(DEVICES)))
SPEC = toy_spec({"lora.B.t4": WIDTH})
BASE = "sha256:" + "0" * 64
