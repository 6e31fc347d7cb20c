"""Eight different adapters in one batch against one adapter for the same eight rows.

    python benchmarks/serving.py

A Llama of random weights (12 layers of width 576, a vocabulary of 8,192), LoRA of rank 8 on q, v, o, up and down of
every layer; eight questions of 20 to 27 tokens, 24 tokens answered each. The last line is JSON: ``one`` and ``eight``,
seconds of CPU time of one thread, the least of five repetitions taken in turn, and ``ratio``; meant is at most 1.3.
"""

import json
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedpeft.tuning.generation.decoder import Decoder, Sampling
from fedpeft_client.serving.rows import Factors, RowAdapters

TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
ADAPTERS, RANK, ANSWER, REPETITIONS = 8, 8, 24, 5


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    rows = RowAdapters(model)
    matrices = {name: part for name, part in model.named_modules() if name.rpartition(".")[2] in TARGETS}
    for _ in range(ADAPTERS):
        changes = {
            name: (0.02 * torch.randn(RANK, part.in_features), 0.02 * torch.randn(part.out_features, RANK))
            for name, part in matrices.items()
        }
        rows.put(Factors(changes=changes, heads={}))
    places = [0] * ADAPTERS
    decoder = Decoder(model, frozenset(), lambda chosen: rows.choose([places[row] for row in chosen]))
    questions = [np.arange(20 + row, dtype=np.int32) for row in range(ADAPTERS)]
    found: dict[str, list[float]] = {"one": [], "eight": []}
    for _ in range(REPETITIONS):
        for name, chosen in (("one", [0] * ADAPTERS), ("eight", list(range(ADAPTERS)))):
            places[:] = chosen
            start = time.process_time()
            made = sum(1 for _ in decoder.generate(questions, [Sampling(max_tokens=ANSWER)] * ADAPTERS))
            found[name].append(time.process_time() - start)
            assert made == ADAPTERS * (ANSWER + 1)
    least = {name: min(seconds) for name, seconds in found.items()}
    print(json.dumps({**least, "ratio": least["eight"] / least["one"]}))


if __name__ == "__main__":
    main()
