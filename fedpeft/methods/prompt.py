"""Trained embeddings before the input: prompt tuning and P-tuning.

    [P; embed(x_1 .. x_s)],    P (p, h)

- ``prompt`` (Lester, Al-Rfou, Constant 2021): P is the parameter, p h of them.
- ``p_tuning`` (Liu et al. 2021): P = C relu(B relu(A E^T + a) + b) + c from a table E (p, h) through A (n, h), B
  (n, n), C (h, n): p h + h n + n + n^2 + n + n h + h parameters. The encoder is for training; its result is a prompt.

Prompt positions come first and are attended to by every token. The text's positions move on by p, so p and the text
must fit the model's positions. A decoder's outputs at the prompt are cut off again. An encoder's classifier reads its
first token, which is now the first of the prompt, as in the peft library. A prompt sits below every layer: no layer
is frozen below it and nothing can be cached. The model does not begin as the base.

The parts are called with the examples, and give P once for each: so the gradient of each example is there for hooks.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.base.architecture import has_two_stacks
from fedpeft.catalogue.p_tuning import PTuning
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.model import Adapter
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import add_part, device_of
from fedpeft.grafting.initial_values import drawn
from fedpeft.ids import BlockId

__all__ = [
    "PROMPT",
    "P_TUNING",
    "MadePrompt",
    "PlainPrompt",
    "attach_p_tuning",
    "attach_prompt",
    "prompts_of",
    "rows_before",
]

PROMPT, P_TUNING = "prompt", "p_tuning"
_PARTS = "fedpeft_prompt"


class PlainPrompt(nn.Module):
    """P as the parameter ``rows``, (p, h)."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)

    @property
    def length(self) -> int:
        """Rows."""
        return len(self.rows)

    def made(self) -> Tensor:
        """P, (p, h)."""
        return self.rows

    def forward(self, examples: Tensor) -> Tensor:
        """P for each of b examples, (b, p, h)."""
        return self.made().expand(len(examples), -1, -1)


class MadePrompt(nn.Module):
    """P from the table E and three matrices: ``table``, ``first``, ``second``, ``third`` and their biases."""

    def __init__(self, table: Tensor, first: Tensor, second: Tensor, third: Tensor) -> None:
        super().__init__()
        narrow, wide = first.shape
        self.table = nn.Parameter(table, requires_grad=False)
        self.first = nn.Parameter(first, requires_grad=False)
        self.first_bias = nn.Parameter(table.new_zeros(narrow), requires_grad=False)
        self.second = nn.Parameter(second, requires_grad=False)
        self.second_bias = nn.Parameter(table.new_zeros(narrow), requires_grad=False)
        self.third = nn.Parameter(third, requires_grad=False)
        self.third_bias = nn.Parameter(table.new_zeros(wide), requires_grad=False)

    @property
    def length(self) -> int:
        """Rows."""
        return len(self.table)

    def made(self) -> Tensor:
        """P, (p, h)."""
        inner = functional.relu(functional.linear(self.table, self.first, self.first_bias))
        inner = functional.relu(functional.linear(inner, self.second, self.second_bias))
        return functional.linear(inner, self.third, self.third_bias)

    def forward(self, examples: Tensor) -> Tensor:
        """P for each of b examples, (b, p, h)."""
        return self.made().expand(len(examples), -1, -1)


def attach_prompt(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Put a prompt before the input; one block."""
    settings = adapter.of(Prompt)
    if settings is None:
        return ()
    part = PlainPrompt(_initial_rows(anatomy, settings, seed))
    _graft(anatomy, adapter, PROMPT, settings.length, part)
    return (Block(block_id=BlockId(PROMPT), method=PROMPT, parameters=(part.rows,)),)


def attach_p_tuning(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Put an encoded prompt before the input; one block: the table, then matrix by matrix."""
    settings = adapter.of(PTuning)
    if settings is None:
        return ()
    table, device = _embedding(anatomy), device_of(_embedding(anatomy))
    wide, narrow = table.embedding_dim, settings.width
    shapes = {"first": (narrow, wide), "second": (narrow, narrow), "third": (wide, narrow)}
    matrices = [
        drawn(seed, f"p_tuning.{name}", "", shape, math.sqrt(2.0 / shape[1]), device) for name, shape in shapes.items()
    ]
    # The last matrix scales the prompt to the size of the model's own embeddings.
    matrices[2] *= _size_of(table) / math.sqrt(2.0)
    part = MadePrompt(drawn(seed, "p_tuning.table", "", (settings.length, wide), 1.0, device), *matrices)
    _graft(anatomy, adapter, P_TUNING, settings.length, part)
    return (Block(block_id=BlockId(P_TUNING), method=P_TUNING, parameters=tuple(part.parameters())),)


def prompts_of(model: nn.Module) -> nn.ModuleDict:
    """The prompts of a model by method; empty when it has none."""
    return cast("nn.ModuleDict", getattr(_host(cast("nn.Module", model.base_model)), _PARTS, nn.ModuleDict()))


def _host(backbone: nn.Module) -> nn.Module:
    """What every forward of a model passes: OPT's language model calls the decoder within its backbone, not that."""
    inner = getattr(backbone, "decoder", None)
    return inner if isinstance(inner, nn.Module) and not hasattr(backbone, "encoder") else backbone


def _positions(model: nn.Module) -> int:
    positions = int(getattr(model.config, "max_position_embeddings", 2**31))
    return positions if positions > 0 else 2**31  # XLNet's -1: no limit


def _hindrance(anatomy: Anatomy) -> str | None:
    """Why a model takes no rows before its text; None: nothing is known against it."""
    config: Any = anatomy.model.config
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
        return "looks every token up in each layer again, and the rows are no tokens"
    if not anatomy.causal and getattr(config, "classifier_pooling", "cls") in ("mean", "late"):
        return "classifies by the mean over the text's own positions"
    if hasattr(config, "attention_window"):
        return "chooses the positions of global attention by the text's length"
    return None


def _graft(anatomy: Anatomy, adapter: Adapter, method: str, length: int, part: nn.Module) -> None:
    problems = []
    if adapter.layers != "all":
        problems.append(
            Problem(
                where="adapter.layers",
                expected=f'"all" beside [adapter.{method}], which sits below every layer',
                found=str(adapter.layers),
                remedy="Use p_tuning_v2 or llama_adapter for the top layers alone.",
            )
        )
    positions = _positions(anatomy.model)
    if length >= positions:
        expected = f"fewer than the model's {positions} positions"
        problems.append(Problem(where=f"adapter.{method}.length", expected=expected, found=str(length)))
    if problems:
        raise ConfigInvalid("The prompt does not fit.", problems=problems)
    backbone = anatomy.backbone
    if backbone is anatomy.model:  # T5: nothing in it turns tokens into states of one text alone
        raise ConfigInvalid(
            f"Expected a model with one backbone under its head, found {type(backbone).__name__}; use lora, ia3 or "
            "bottleneck on this model instead."
        )
    if (why := _hindrance(anatomy)) is not None:
        raise ConfigInvalid(
            f"Expected a model that takes rows before its text for adapter.{method}, found "
            f"{type(anatomy.model).__name__}, which {why}; use lora, ia3 or bottleneck on this model instead."
        )
    host = _host(backbone)
    if not hasattr(host, _PARTS):
        host.register_forward_pre_hook(_before, with_kwargs=True)
        # Of two stacks the source alone has rows: what comes out is of the target.
        if anatomy.causal and not has_two_stacks(anatomy.model):
            host.register_forward_hook(_after)
    add_part(host, _PARTS, method, part)


def _rows(backbone: nn.Module, embedded: Tensor) -> Tensor:
    """All prompts, one after the other, for each example, (b, p, h)."""
    examples = embedded.detach()  # nothing of them is in the rows
    return torch.cat([part(examples) for part in _parts(backbone).values()], dim=1)


def rows_before(model: nn.Module) -> int:
    """How many of the model's positions prompts take, before every text."""
    return sum(_length(module) for module in model.modules() if hasattr(module, _PARTS))


def _length(backbone: nn.Module) -> int:
    return sum(part.length for part in _parts(backbone).values())


def _parts(backbone: nn.Module) -> "dict[str, PlainPrompt | MadePrompt]":
    return cast("dict[str, PlainPrompt | MadePrompt]", getattr(backbone, _PARTS))


def _before(
    backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Embed the tokens here, put the prompt in front, and let every token see it."""
    named = dict(kwargs)
    if args:
        named["input_ids"] = args[0]
    if len(args) > 1:
        named["attention_mask"] = args[1]
    ids, embedded = named.pop("input_ids", None), named.pop("inputs_embeds", None)
    if embedded is None:
        embedded = cast("Tensor", backbone.get_input_embeddings()(ids))  # type: ignore[operator]
    rows = _rows(backbone, embedded).to(embedded.dtype)
    size, length = rows.shape[:2]
    named["inputs_embeds"] = torch.cat((rows, embedded), dim=1)  # (b, p + s, h)
    for key, filling in (("attention_mask", 1), ("token_type_ids", 0)):
        if (given := named.get(key)) is not None:
            named[key] = torch.cat((given.new_full((size, length), filling), given), dim=1)
    return (), named


def _after(backbone: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
    """A decoder's hidden states of the text alone."""
    output["last_hidden_state"] = output["last_hidden_state"][:, _length(backbone) :]
    return output


def _embedding(anatomy: Anatomy) -> nn.Embedding:
    embedding = anatomy.backbone.get_input_embeddings()  # type: ignore[operator]
    if not hasattr(embedding, "num_embeddings") or not hasattr(embedding, "embedding_dim"):
        raise ConfigInvalid(f"Expected a table of token embeddings, found {type(embedding).__name__}.")
    return cast("nn.Embedding", embedding)


@torch.no_grad()
def _rows_of(embedding: nn.Embedding, tokens: range | list[int]) -> Tensor:
    """The embeddings of these tokens; the table may be packed, so it is asked and not read."""
    ids = torch.tensor(list(tokens), device=device_of(embedding))
    return cast("Tensor", embedding(ids)).float()


def _size_of(embedding: nn.Embedding) -> float:
    """The deviation of an embedding's entries, to three digits: the same whatever order a machine adds in."""
    return float(f"{float(_rows_of(embedding, range(min(512, embedding.num_embeddings))).double().std()):.3g}")


def _initial_rows(anatomy: Anatomy, settings: Prompt, seed: int) -> Tensor:
    embedding = _embedding(anatomy)
    if settings.init == "gaussian":
        shape = (settings.length, embedding.embedding_dim)
        return drawn(seed, "prompt", "", shape, _size_of(embedding), device_of(embedding))
    tokens = generator(seed, "prompt.tokens").integers(0, embedding.num_embeddings, settings.length)
    return _rows_of(embedding, [int(token) for token in tokens])
