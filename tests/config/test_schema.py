"""The template runs as it is, names every key, and shows the true defaults; the schema knows every section."""

import re
import tomllib
from collections.abc import Iterator
from typing import get_args

import pytest
from jsonschema import Draft202012Validator, ValidationError
from pydantic import BaseModel

from fedpeft.config import RunConfig, parse, resolved
from fedpeft.config.adapter import MethodName
from fedpeft.config.explain import field_at, sections_in
from fedpeft.config.schema import json_schema, template


def leaves(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = list(sections_in(field.annotation))
        for one in inner:
            yield from leaves(one, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def test_the_template_is_a_valid_run() -> None:
    parse(template(), source="template", simulation=True)


def test_the_template_with_every_default_uncommented_is_the_same_run() -> None:
    text = template()
    there = [table for table in text.split("\n\n") if not re.search(r"^# \[", table, flags=re.MULTILINE)]
    uncommented = re.sub(r"^# ([a-z_]+ = )", r"\1", "\n\n".join(there), flags=re.MULTILINE)
    assert uncommented != text
    assert parse(uncommented, source="t", simulation=True) == parse(text, source="t", simulation=True)


def test_the_template_with_every_absent_table_uncommented_has_these_tables_at_their_defaults() -> None:
    text = template()
    absent = [f"{table}={{}}" for table in re.findall(r"^# \[([a-z0-9_.]+)\]$", text, flags=re.MULTILINE)]
    uncommented = re.sub(r"^# (\[[a-z0-9_.]+\]$|[a-z_]+ = )", r"\1", text, flags=re.MULTILINE)
    assert "adapter.bottleneck={}" in absent
    expected = parse(text, source="t", overrides=absent, simulation=True)
    assert parse(uncommented, source="t", simulation=True) == expected


def test_the_template_names_every_key_that_a_resolved_file_has() -> None:
    absent = [f"adapter.{method}={{}}" for method in get_args(MethodName) if method != "lora"]
    config = parse(template(), source="t", overrides=absent, simulation=True)
    names = set(re.findall(r"^#? ?(\[*[a-z0-9_.]+\]*)", template(), flags=re.MULTILINE))
    for line in resolved(config).splitlines():
        key = line.split(" = ")[0]
        if re.fullmatch(r"\[+[a-z0-9_.]+\]+|[a-z_]+", key) and key not in {"[data.map]", "[base.adapters]"}:
            assert key in names, key


def test_the_schema_accepts_what_the_loader_accepts_and_refuses_an_unknown_key() -> None:
    validator = Draft202012Validator(json_schema())
    document = tomllib.loads(template())
    validator.validate(document)
    document["run"]["nmae"] = 1
    with pytest.raises(ValidationError, match="nmae"):
        validator.validate(document)


@pytest.mark.parametrize("key", list(leaves()))
def test_every_key_says_what_it_does(key: str) -> None:
    field = field_at(tuple(key.split(".")))
    assert field is not None
    assert field.description
