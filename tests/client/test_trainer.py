"""What a device can afford, and at which rate it learns it; whole trainings are in tests/e2e."""

import pytest

from fedpeft.config.model import Adapter, BitFit, Lora, Train
from fedpeft.ids import BlockId

pytestmark = pytest.mark.torch


def test_a_capacity_reads_as_a_person_would_say_it() -> None:
    from fedpeft_client.training.trainer import Capacity

    assert str(Capacity(methods=("lora", "bitfit"), rank=4)) == "lora r4 + bitfit"
    assert str(Capacity(methods=("lora",))) == "lora"


def test_a_method_learns_at_its_own_rate_and_at_the_runs_where_it_has_none() -> None:
    from fedpeft.round.plan import learning_rates

    adapter = Adapter(lora=Lora(learning_rate=0.5), bitfit=BitFit(), head_learning_rate=0.25)
    blocks = frozenset(map(BlockId, ("lora.B.t4", "lora.B.t8", "bitfit", "head")))
    rates = learning_rates(adapter, Train(learning_rate=0.125), blocks)
    assert rates == {"lora.B.t4": 0.5, "lora.B.t8": 0.5, "bitfit": 0.125, "head": 0.25}
    assert list(rates) == sorted(rates)


def test_two_devices_of_one_run_draw_different_batches() -> None:
    from fedpeft_client.training.trainer import batch_seed

    seeds = {batch_seed(run, device) for run in (0, 1) for device in ("a", "b")}
    assert len(seeds) == 4
    assert batch_seed(0, "a") == batch_seed(0, "a")
