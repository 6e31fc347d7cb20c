"""Hypernetwork adapters (Karimi Mahabadi, Ruder, Dehghani, Henderson 2021b): one network makes all bottlenecks.

    i = relu(P [task; layer; place] + c),    D = N_D i  (m, w),    U = N_U i  (w, m),    y + U act(D y)

The places are Houlsby's two of every layer. ``layer`` (L, e), ``place`` (2, e) and ``task`` (e,) are trained
embeddings; P (e, 3 e), c (e,), N_D and N_U (m w, e) are shared by all layers: e (L + 3) + 3 e^2 + e + 2 m w e
parameters, of which a layer more costs e. The task's embedding is a block of its own (``hypernetwork.task``): runs on
other tasks can start from the same network with an embedding of theirs. N_U is zero at the start, so the model begins
as the base. The secure sum's mean is that of the parameters.
"""

import math

import torch
from torch import Tensor, nn

from fedpeft.catalogue.hypernetwork import Hypernetwork
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.narrow import check_width, houlsby_places, narrow
from fedpeft.ids import BlockId

__all__ = ["HYPERNETWORK", "MadeBottleneck", "Maker", "attach_hypernetwork"]

HYPERNETWORK = "hypernetwork"
_PLACES = 2


class Maker(nn.Module):
    """The network that makes D and U: ``layers``, ``places``, ``task``, ``mixing``, ``downs`` and ``ups``."""

    def __init__(self, settings: Hypernetwork, *, layers: int, wide: int, seed: int, device: torch.device) -> None:
        super().__init__()
        size, entries = settings.embedding, settings.width * wide
        self.shape = (settings.width, wide)
        self.layers = _parameter(seed, "layers", (layers, size), 1.0, device)
        self.places = _parameter(seed, "places", (_PLACES, size), 1.0, device)
        self.task = _parameter(seed, "task", (size,), 1.0, device)
        self.mixing = _parameter(seed, "mixing", (size, 3 * size), math.sqrt(2.0 / (3 * size)), device)
        self.mixing_bias = nn.Parameter(torch.zeros(size, device=device), requires_grad=False)
        # D's rows have norm one on average: |i|^2 is about its width.
        self.downs = _parameter(seed, "downs", (entries, size), 1.0 / math.sqrt(size * wide), device)
        self.ups = nn.Parameter(torch.zeros(entries, size, device=device), requires_grad=False)

    def matrices(self, layer: int, place: int) -> tuple[Tensor, Tensor]:
        """D (m, w) and U (w, m) of one place."""
        mixed = torch.cat((self.task, self.layers[layer], self.places[place]))
        inner = torch.relu(self.mixing @ mixed + self.mixing_bias)  # (3 e,) -> (e,)
        rows, wide = self.shape
        return (self.downs @ inner).view(rows, wide), (self.ups @ inner).view(wide, rows)


class MadeBottleneck(nn.Module):
    """One place of the network that ``maker`` makes."""

    def __init__(self, maker: Maker, settings: Hypernetwork, *, layer: int, place: int) -> None:
        super().__init__()
        self.maker, self.activation = maker, settings.activation
        self.layer, self.place = layer, place

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """Y + U act(D y)."""
        down, up = self.maker.matrices(self.layer, self.place)
        return y + narrow(y, down, up, self.activation, None, None).to(y.dtype)


def attach_hypernetwork(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft the made bottlenecks on the chosen layers; two blocks: the network, and the task's embedding.

    Raises:
        ConfigInvalid: the bottleneck is wider than the model.
    """
    settings = adapter.of(Hypernetwork)
    if settings is None:
        return ()
    hosts = list(houlsby_places(anatomy, wanted_by="adapter.hypernetwork"))
    path, first = hosts[0]
    wide = check_width(path, first, settings.width, wanted_by="adapter.hypernetwork")
    layers = len(hosts) // _PLACES
    maker = Maker(settings, layers=layers, wide=wide, seed=seed, device=device_of(first))
    for index, (_, host) in enumerate(hosts):
        layer, place = divmod(index, _PLACES)
        graft_output(host, HYPERNETWORK, MadeBottleneck(maker, settings, layer=layer, place=place))
    network = (maker.layers, maker.places, maker.mixing, maker.mixing_bias, maker.downs, maker.ups)
    return (
        Block(block_id=BlockId(HYPERNETWORK), method=HYPERNETWORK, parameters=network),
        Block(block_id=BlockId(f"{HYPERNETWORK}.task"), method=HYPERNETWORK, parameters=(maker.task,)),
    )


def _parameter(seed: int, name: str, shape: tuple[int, ...], deviation: float, device: torch.device) -> nn.Parameter:
    return nn.Parameter(drawn(seed, f"hypernetwork.{name}", "", shape, deviation, device), requires_grad=False)
