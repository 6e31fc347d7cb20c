"""Two base models by their numbers: what their artifacts' manifests say (tests/planner/test_read_shape.py)."""

from fedpeft.planner import BaseShape

__all__ = ["DECODER", "MINILM"]

MINILM = BaseShape(
    name="bert",
    family="BERT-like",
    layers=6,
    hidden=384,
    heads=12,
    vocabulary=30522,
    matrices={
        "q": (384, 384),
        "k": (384, 384),
        "v": (384, 384),
        "o": (384, 384),
        "up": (1536, 384),
        "down": (384, 1536),
    },
    layer_biases=4224,
    norms=768,
    norm_biases=768,
    parameters=22_713_216,
    packed_bytes=22_900_000,
    head_is_deep=False,
    first_token_only=True,
)
DECODER = BaseShape(
    name="llama",
    family="Llama-like",
    layers=30,
    hidden=576,
    heads=9,
    vocabulary=49152,
    matrices={
        "q": (576, 576),
        "k": (192, 576),
        "v": (192, 576),
        "o": (576, 576),
        "up": (1536, 576),
        "down": (576, 1536),
        "gate": (1536, 576),
    },
    layer_biases=0,
    norms=1152,
    norm_biases=0,
    parameters=134_515_008,
    packed_bytes=117_000_000,
    head_is_deep=False,
    first_token_only=False,
)
