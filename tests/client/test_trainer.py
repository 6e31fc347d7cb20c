"""What a device can afford, and at which rate it learns it; whole trainings are in tests/e2e."""

import pytest

pytestmark = pytest.mark.torch


def test_a_capacity_reads_as_a_person_would_say_it() -> None:
    from fedpeft_client.training.choice import Capacity

    assert str(Capacity(methods=("lora", "bitfit"), rank=4)) == "lora r4 + bitfit"
    assert str(Capacity(methods=("lora",))) == "lora"


def test_two_devices_of_one_run_draw_different_batches() -> None:
    from fedpeft_client.training.trainer import batch_seed

    seeds = {batch_seed(run, device) for run in (0, 1) for device in ("a", "b")}
    assert len(seeds) == 4
    assert batch_seed(0, "a") == batch_seed(0, "a")
