"""The mask kernel beside what no kernel can be faster than."""

import os
import time

import numpy as np

from fedpeft.secagg.masks import PIECE_BYTES, Mask, apply_masks
from fedpeft.secagg.primitives import Secret, fastest_backend, stream

__all__ = ["kernel_floor_fraction"]

CPU = time.thread_time


def kernel_floor_fraction(parameters: int = 10**6, masks: int = 16, repeats: int = 15) -> dict[str, float]:
    """The mask kernel against its floor: AES keystream plus addition, in the cache, on the same core, same moment."""
    backend, words = fastest_backend(), np.zeros(parameters, np.uint32)
    keys = [Mask(Secret(os.urandom(32)), add=bool(i % 2)) for i in range(masks)]
    zeros, buffer = memoryview(bytes(PIECE_BYTES)), np.empty(PIECE_BYTES + 16, np.uint8)
    out, mask_words = memoryview(buffer.data), buffer[:PIECE_BYTES].view(np.uint32)
    piece, pieces = words[: PIECE_BYTES // 4], words.nbytes / PIECE_BYTES

    def keystream() -> None:
        fill = stream(keys[0].key.value, 0, backend)
        for _ in range(int(pieces)):
            fill(zeros, out)

    def addition() -> None:
        for _ in range(int(pieces)):
            np.add(piece, mask_words, out=piece)

    def timed(run: object) -> float:
        start = CPU()
        run()  # type: ignore[operator]
        return CPU() - start

    best = {"keystream": 9.0, "addition": 9.0, "kernel": 9.0}
    for _ in range(repeats):
        best["kernel"] = min(best["kernel"], timed(lambda: apply_masks(words, keys)) / masks)
        best["keystream"] = min(best["keystream"], timed(keystream) * pieces / int(pieces))
        best["addition"] = min(best["addition"], timed(addition) * pieces / int(pieces))
    floor = best["keystream"] + best["addition"]
    speed = {f"{name}_gb_s": words.nbytes / seconds / 1e9 for name, seconds in best.items()}
    return {"fraction": floor / best["kernel"], "floor_gb_s": words.nbytes / floor / 1e9, "backend": backend, **speed}
