"""Each trained block has its method's own learning rate, or the run's."""

import typing

import pytest

from fedpeft.config.explain import sections_in
from fedpeft.config.model import Adapter, BitFit, MethodName, Train
from fedpeft.ids import BlockId
from fedpeft.round.plan import learning_rates

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("method", typing.get_args(MethodName))
def test_a_method_has_its_own_rate_or_the_runs(method):
    block = BlockId("lora.B.t4" if method == "lora" else method)
    section = next(sections_in(Adapter.model_fields[method].annotation))
    plain, own = (Adapter(**{method: section(**rate)}) for rate in ({}, {"learning_rate": 0.25}))
    train = Train(learning_rate=0.5)
    assert learning_rates(plain, train, frozenset({block})) == {block: 0.5}
    assert learning_rates(own, train, frozenset({block, BlockId("head")})) == {block: 0.25, "head": 0.5}


def test_the_head_has_its_own_rate():
    adapter = Adapter(bitfit=BitFit(), head_learning_rate=0.125)
    rates = learning_rates(adapter, Train(learning_rate=0.5), frozenset({BlockId("head"), BlockId("bitfit")}))
    assert rates == {"head": 0.125, "bitfit": 0.5}
