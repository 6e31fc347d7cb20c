"""From a checkpoint's tensor names to a model's: the renaming and merging that transformers itself does on loading.

transformers stores checkpoints under the names they were published with and converts them when it loads
(``transformers.conversion_mapping``): old names, names with and without the backbone's prefix, one tensor an
expert that becomes one tensor a layer. What is here drives that mapping over tensors that are read by rows, as
``transformers.core_model_loading.convert_and_load_state_dict_in_model`` drives it over a whole state dict.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from fedpeft.base.tensors import RowTensor
from fedpeft.errors import ConfigInvalid

__all__ = ["Match", "match"]


@dataclass(frozen=True, slots=True)
class Match:
    """What a checkpoint gives a model.

    Args:
        tensors: by the model's names (a tied tensor under every name that the checkpoint has it under).
        sources: the checkpoint's names that each of them is made of.
        unused: names of the checkpoint that the model has no place for, as the model would call them.
    """

    tensors: Mapping[str, RowTensor]
    sources: Mapping[str, tuple[str, ...]]
    unused: Mapping[str, str]


@dataclass(slots=True)
class _Group:
    """Tensors of a checkpoint that one converter makes into one or several of the model's."""

    converter: WeightConverter
    members: dict[str, list[str]] = field(default_factory=dict)  # source pattern -> names, in their order


def match(model: nn.Module, tensors: Mapping[str, RowTensor]) -> Match:
    """Give every tensor of a checkpoint its place in ``model``.

    Args:
        model: a transformers model, on the meta device: only names and shapes are used.
        tensors: the checkpoint, by its own names.

    Raises:
        ConfigInvalid: two tensors have the same place, or transformers' conversion does not fit them.
    """
    places = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = str(model.base_model_prefix)
    plain: dict[str, str] = {}
    groups: dict[str, _Group] = {}
    unused: dict[str, str] = {}
    for name in sorted(tensors, key=dot_natural_key):
        place, pattern = rename_source_key(name, renamings, converters, prefix, places)
        if place not in places and name in places:
            place, pattern = rename_source_key(name, [], [], prefix, places)
        if place not in places:
            unused[name] = place
        elif pattern is not None:
            group = groups.setdefault(place, _Group(copy.deepcopy(by_pattern[pattern])))
            group.members.setdefault(pattern, []).append(name)
        elif place in plain:
            raise ConfigInvalid(
                f"Expected one tensor for {place}, found {plain[place]} and {name}; remove the wrong one."
            )
        else:
            plain[place] = name
    found = {place: tensors[name] for place, name in plain.items()}
    sources: dict[str, tuple[str, ...]] = {place: (name,) for place, name in plain.items()}
    kept = _Kept()
    for place, group in groups.items():
        for target, tensor in _Conversion(model, place, group, tensors, kept).results().items():
            found[target] = tensor
            sources[target] = tuple(name for names in group.members.values() for name in names)
    return Match(tensors=found, sources=sources, unused=unused)


@dataclass(slots=True)
class _Kept:
    """The last conversion: its rows are asked for slab by slab, and a fused matrix has several results."""

    place: str | None = None
    made: dict[str, Tensor] = field(default_factory=dict)


class _Conversion:
    """One converter over its tensors, run on the meta device for shapes and on rows for values."""

    def __init__(
        self, model: nn.Module, place: str, group: _Group, tensors: Mapping[str, RowTensor], kept: "_Kept"
    ) -> None:
        self._model, self._place, self._group, self._tensors = model, place, group, tensors
        self._kept = kept

    def results(self) -> dict[str, RowTensor]:
        """What comes out, by the model's names.

        Raises:
            ConfigInvalid: the converter does not take these tensors.
        """
        try:
            shapes = self._run(lambda name: _meta(self._tensors[name]))
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, StopIteration) as error:
            listed = ", ".join(name for names in self._group.members.values() for name in names[:2])
            raise ConfigInvalid(
                f"Expected tensors that transformers makes {self._place} of, found {listed}, ...: {error}; "
                "the checkpoint is incomplete or of another architecture."
            ) from error
        read = self._members if self._is_by_member(shapes) else self._rows
        return {
            name: RowTensor(tuple(shape.shape), shape.dtype, functools.partial(read, name))
            for name, shape in shapes.items()
        }

    def _is_by_member(self, shapes: Mapping[str, Tensor]) -> bool:
        """Whether row i of the result is made of the i-th tensor of each pattern alone, as with experts."""
        first, *rest = self._group.converter.operations
        counts = {len(names) for names in self._group.members.values()}
        inner = all(
            (isinstance(op, Concatenate) and op.dim != 0)
            or (isinstance(op, Transpose) and not op.check_dims and 0 not in (op.dim0, op.dim1))
            for op in rest
        )
        merges = isinstance(first, MergeModulelist) and first.dim == 0 and inner and len(counts) == 1
        return merges and len(shapes) == 1 and all(shape.shape[0] == min(counts) for shape in shapes.values())

    def _members(self, name: str, start: int, stop: int) -> Tensor:
        return self._run(lambda source: self._tensors[source].whole(), start, stop)[name]

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        if self._kept.place != self._place:
            self._kept.place, self._kept.made = None, {}  # dropped before the next is made
            self._kept.made = self._run(lambda source: self._tensors[source].whole())
            self._kept.place = self._place
        return self._kept.made[name][start:stop]

    def _run(self, read: Callable[[str], Tensor], start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        converter = copy.deepcopy(self._group.converter)
        for pattern, names in self._group.members.items():
            for name in names[start:stop]:
                converter.add_tensor(self._place, name, pattern, lambda name=name: read(name))
        with torch.no_grad():
            made = converter.convert(self._place, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _meta(tensor: RowTensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
