"""What every method has to keep: the base at the start, its formula afterwards, its own gradient."""

import torch
from fedpeft_lab.gains_torch import Gain
from transformers import BertConfig, BertForSequenceClassification

from fedpeft.config.model import Adapter
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach

config = BertConfig(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
)
torch.manual_seed(0)
plain = BertForSequenceClassification(config).eval()
base = BertForSequenceClassification(config).eval()
base.load_state_dict(plain.state_dict())
union = attach(base, Adapter.model_validate({"gains": {}, "head": False}), seed=0)
tokens = torch.tensor([[5, 9, 17, 33, 2]])

torch.testing.assert_close(union.model(tokens).logits, plain(tokens).logits)
print("it starts as the base")

with torch.no_grad():
    for path, gain in grafts_of(union.model, Gain).items():
        gain.delta.normal_(std=0.3)
        value = plain.get_submodule(path)
        value.weight.mul_(1 + gain.delta[:, None])  # (1 + delta) * (W x + b)
        value.bias.mul_(1 + gain.delta)
torch.testing.assert_close(union.model(tokens).logits, plain(tokens).logits)
print("it computes its formula")

(block,) = union.spec.blocks
assert block.size == 2 * 32, "two layers, a gain for each of 32 values"
print("it trains", block.size, "parameters in the block", block.block_id)
