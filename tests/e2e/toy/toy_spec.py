"""What the toy processes agree on."""

from fedpeft.testing.trainers import toy_spec

DEVICES = ("ward-a", "ward-b", "ward-c", "ward-d")
SPEC = toy_spec({"lora.B.t4": len(DEVICES)})
BASE = "sha256:" + "0" * 64
