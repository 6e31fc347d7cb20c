"""Numbers, depth and programs that others wrote: each ends in a refusal, never in a crash, a hang or gigabytes.

Found by attackers: a profile of 10**3000 bytes broke `clients ls` for ever; a chat template of
three loops over ranges did not end, one of a product took 20 GB.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fedpeft.config.model import Task
from fedpeft.data import Records, encode
from fedpeft.errors import ConfigInvalid, DataInvalid, IntegrityFailed
from fedpeft.isolated import IsolationEnded, isolated
from fedpeft.planner import REFERENCE, DeviceProfile

HUGE = [
    {"total_bytes": "1" + "0" * 3000},
    {"total_bytes": "1" + "0" * 18},
    {"cores": "1000000000"},
    {"cores": "true"},
    {"bandwidth": "1" + "0" * 400},
    {"bandwidth": "1e300"},
    {"gemm_rate": "NaN"},
    {"gemm_rate": "1e999"},
    {"flags": json.dumps(["avx2"] * 1000)},
    {"flags": "[" * 500 + "]" * 500},
    {"vram_bytes": "-1"},
]


@pytest.mark.parametrize("change", HUGE)
def test_a_profile_of_numbers_that_no_machine_has_is_refused(change: dict[str, str]) -> None:
    content = {name: json.dumps(value) for name, value in asdict(REFERENCE).items()} | change
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in content.items()) + "}"
    with pytest.raises(IntegrityFailed):
        DeviceProfile.from_json(text)


@pytest.mark.parametrize("text", ["[" * 2000, "{", "null", '"x"', '{"a":' * 500, "\ud800", "9" * 5000])
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(IntegrityFailed):
        DeviceProfile.from_json(text)


def test_every_profile_that_is_taken_is_written_again(tmp_path: Path) -> None:
    assert DeviceProfile.from_json(REFERENCE.to_json()) == REFERENCE


def test_clients_ls_shows_every_row_whatever_an_older_version_let_in(capsys: pytest.CaptureFixture, tmp_path) -> None:
    from fedpeft.cli import main
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft_server.enrolment.certificate_authority import initialise
    from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, Status
    from fedpeft_server.home import CoordinatorHome, Settings

    home = CoordinatorHome(tmp_path / "home")
    initialise(home, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    registry = Registry(home.registry)
    for number, profile in enumerate(('{"total_bytes": 1' + "0" * 3000 + "}", "[" * 3000, REFERENCE.to_json())):
        registry.put(
            EnrolledDevice(
                name=f"ward-{number}", organisation="clinic", status=Status.PENDING, identity=bytes([number]) * 32,
                node_key=b"%d" % number, csr=b"", serial=None, certificate=b"", profile=profile, code="", token_id="",
                reason="", node_id=None, since="2026-11-29",
            )
        )  # fmt: skip
    registry.close()
    assert main(["coordinator", "clients", "ls", "--home", str(home.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ward-0", "ward-1", "ward-2"]
    assert main(["coordinator", "clients", "show", "ward-0", "--home", str(home.path)]) == 0


LOOPS = "{% for i in range(99999) %}{% for k in range(99999) %}{% for l in range(99999) %}x{% endfor %}{% endfor %}"
HOSTILE = {
    "loops": LOOPS + "{% endfor %}",
    "a product": "{{ 'a' * 20000000000 }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a filter": "{{ 'a' | center(20000000000) }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
}


class Templated:
    """As much of a tokenizer as rendering asks for, with transformers' own rendering."""

    bos_token_id = eos_token_id = None
    eos_token = None

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, turns, *, tokenize: bool, add_generation_prompt: bool = False) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            conversations=[turns], chat_template=self.chat_template, add_generation_prompt=add_generation_prompt
        )
        return rendered[0]

    def __call__(self, texts, **_):
        offsets = [[(i, i + 1) for i in range(len(text))] for text in texts]
        return {"input_ids": [[1] * len(text) for text in texts], "offset_mapping": offsets}


def conversations() -> Records:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    return Records(rows=({"messages": turns},) * 3, origins=("a", "b", "c"))


@pytest.mark.torch
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_chat_template_without_end_is_refused_within_seconds(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft.data.limited.TEMPLATE_S", 1.0)
    with pytest.raises((ConfigInvalid, DataInvalid), match="chat template"):
        encode(conversations(), Task(kind="causal-lm", max_length=64), (), Templated(template))


@pytest.mark.torch
def test_a_plain_chat_template_renders_as_without_limits() -> None:
    from fedpeft.data.rendering import render, rendered_rows
    from fedpeft.tasks import Convention

    tokenizer = Templated("{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}")
    rows = conversations().rows
    expected = [render(row, Convention.MESSAGES, tokenizer) for row in rows]
    assert rendered_rows(rows, [Convention.MESSAGES] * 3, tokenizer) == expected


@pytest.mark.torch
@pytest.mark.parametrize("name", ["loops", "a product"])
def test_a_base_with_such_a_template_is_not_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.base import build
    from fedpeft.testing.models import save_tiny, tiny_bert

    monkeypatch.setattr("fedpeft.data.limited.TEMPLATE_S", 1.0)
    save_tiny(tiny_bert(), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(HOSTILE[name])
    with pytest.raises(ConfigInvalid, match="chat template"):
        build(str(tmp_path / "model"), quantize="none", store=tmp_path / "store")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": 1' + "0" * 5000 + "}", '{"a": NaN}', "\xff", '{"a":' * 5000])
def test_a_config_that_is_no_json_within_limits_is_refused(content: str, tmp_path: Path) -> None:
    from fedpeft.base.source import read_json

    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigInvalid, match="JSON"):
        read_json(path)


def test_isolated_work_cannot_change_its_parent_and_its_errors_come_back() -> None:
    held = [1]
    assert isolated(lambda: (held.append(2), len(held))[1], cpu_s=5, memory_bytes=1 << 28) == 2
    assert held == [1]
    with pytest.raises(IsolationEnded, match="ZeroDivisionError"):
        isolated(lambda: 1 // 0, cpu_s=5, memory_bytes=1 << 28)
