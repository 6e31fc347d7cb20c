"""How architectures share the output rows of one wide matrix between q, k and v, or gate and up. No torch.

``FUSED`` is the table; a new way of fusing is one function and one line. Who reads it: ``fedpeft.layout``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["FUSED", "Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some output rows of a wider matrix: of each ``period`` rows those from ``start`` to before ``stop``.

    Example:
        >>> Rows(6, 2, 4).indices(12)
        [2, 3, 8, 9]
    """

    period: int
    start: int
    stop: int

    def count(self, rows: int) -> int:
        """How many of ``rows``."""
        return rows // self.period * (self.stop - self.start)

    def indices(self, rows: int) -> list[int]:
        """Which of ``rows``."""
        return [i for i in range(rows) if self.start <= i % self.period < self.stop]


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)


def _heads(config: Mapping[str, Any]) -> int:
    return _number(config, "num_attention_heads", "n_head", "n_heads", "num_heads") or 1


def _blocks(out: int, config: Mapping[str, Any]) -> dict[str, Rows]:
    """All of q, then all of k, then all of v; k and v narrower with grouped queries."""
    hidden = _number(config, "hidden_size", "n_embd", "d_model", "dim")
    width = _number(config, "head_dim")
    query = out // 3 if hidden is None else _heads(config) * width if width else hidden
    keys = (out - query) // 2
    return {"q": Rows(out, 0, query), "k": Rows(out, query, query + keys), "v": Rows(out, query + keys, out)}


def _by_head(out: int, config: Mapping[str, Any], groups: int | None = None) -> dict[str, Rows]:
    """q, k and v of one head after the other; with ``groups`` the queries of all heads that share a key."""
    heads = _heads(config)
    groups = groups or heads
    width = out // (heads + 2 * groups)
    period = out // groups
    return {
        "q": Rows(period, 0, period - 2 * width),
        "k": Rows(period, period - 2 * width, period - width),
        "v": Rows(period, period - width, period),
    }


def _query_key_value(out: int, config: Mapping[str, Any]) -> dict[str, Rows]:
    """GPT-NeoX and Bloom by head; Falcon by head, by group of heads, or with one key for all."""
    if config.get("new_decoder_architecture"):
        return _by_head(out, config, _number(config, "num_kv_heads", "n_head_kv") or _heads(config))
    return _by_head(out, config, 1 if config.get("multi_query", False) else None)


def _c_attn(out: int, config: Mapping[str, Any]) -> dict[str, Rows]:
    """GPT-2 in blocks; GPT-BigCode too where all heads share a key, else by head."""
    if config.get("model_type") == "gpt_bigcode" and not config.get("multi_query", True):
        return _by_head(out, config)
    return _blocks(out, config)


def _qkv_proj(out: int, config: Mapping[str, Any]) -> dict[str, Rows]:
    """Phi-3 in blocks; CodeGen in four parts of q, v and k."""
    if config.get("model_type") != "codegen":
        return _blocks(out, config)
    each, period = out // 12, out // 4
    return {"q": Rows(period, 0, each), "v": Rows(period, each, 2 * each), "k": Rows(period, 2 * each, period)}


def _gate_up(out: int, _: Mapping[str, Any]) -> dict[str, Rows]:
    """The half that goes through the activation, and the other."""
    return {"gate": Rows(out, 0, out // 2), "up": Rows(out, out // 2, out)}


def _latent(out: int, config: Mapping[str, Any]) -> dict[str, Rows]:
    """DeepSeek's keys (the part without positions) and values of one head after the other."""
    period, width = out // _heads(config), _number(config, "v_head_dim") or 0
    return {"k": Rows(period, 0, period - width), "v": Rows(period, period - width, period)}


FUSED: Mapping[str, Callable[[int, Mapping[str, Any]], dict[str, Rows]]] = MappingProxyType(
    {
        "attn.c_attn": _c_attn,
        "Wqkv": _blocks,
        "qkv_proj": _qkv_proj,
        "query_key_value": _query_key_value,
        "attention.self.in_proj": _by_head,
        "gate_up_proj": _gate_up,
        "mlp.Wi": _gate_up,
        "shared_mlp.input_linear": _gate_up,
        "kv_b_proj": _latent,
    }
)
"""End of a module's path -> how its output rows are shared out, of the number of rows and config.json."""
