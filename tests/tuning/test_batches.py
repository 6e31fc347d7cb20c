"""The stream of batches: stateless, complete, bucketed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data import IGNORED
from fedpeft.errors import DataInvalid
from fedpeft.testing.models import class_examples, token_examples
from fedpeft.tuning.batches import BatchStream, collate, lengths_of, padded

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=120),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 2**40),
    window=st.integers(1, 6),
    epoch=st.integers(0, 3),
)
def test_every_epoch_takes_every_example_once_in_batches_no_larger_than_asked(lengths, batch_size, seed, window, epoch):
    stream = BatchStream(np.array(lengths), batch_size=batch_size, seed=seed, window=window)
    batches = stream.epoch(epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == stream.steps_per_epoch == -(-len(lengths) // batch_size)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize(("left", "expected"), [(False, [[1, 2, 3], [4, 9, 9]]), (True, [[1, 2, 3], [9, 9, 4]])])
def test_rows_are_filled_up_to_the_longest_on_the_side_that_is_asked_for(left, expected):
    assert padded([[1, 2, 3], [4]], 9, left=left).tolist() == expected


def test_rows_that_there_are_none_for_are_filled_wholly():
    assert padded([[1], []], 7, shape=(3, 2)).tolist() == [[1, 7], [7, 7], [7, 7]]


def test_any_step_can_be_asked_for_without_the_ones_before():
    lengths = lengths_of(class_examples(50))
    whole = BatchStream(lengths, batch_size=8, seed=3)
    expected = [whole.batch(step) for step in range(30)]
    for step in (29, 0, 13, 7, 28):
        assert np.array_equal(BatchStream(lengths, batch_size=8, seed=3).batch(step), expected[step])


def test_seeds_and_epochs_give_other_orders():
    lengths = lengths_of(class_examples(50))
    stream = BatchStream(lengths, batch_size=8, seed=3)
    assert not np.array_equal(stream.order(0), stream.order(1))
    assert not np.array_equal(stream.order(0), BatchStream(lengths, batch_size=8, seed=4).order(0))


def test_bucketing_pads_little():
    lengths = np.random.Generator(np.random.Philox(0)).integers(5, 60, 2000)
    padded = {}
    for window in (1, 16):
        batches = BatchStream(lengths, batch_size=32, seed=0, window=window).epoch(0)
        padded[window] = sum(len(b) * lengths[b].max() for b in batches) / lengths.sum()
    assert padded[1] > 1.5
    assert padded[16] < 1.1


def test_no_example_is_refused():
    with pytest.raises(DataInvalid, match="at least one example"):
        BatchStream(np.array([], np.int64), batch_size=8, seed=0)


def test_padding_goes_right_and_is_masked():
    examples = token_examples(8)
    batch = collate(examples, np.arange(8), pad_id=7, device=CPU)
    for line, (ids, labels) in enumerate(zip(examples.input_ids, examples.labels, strict=True)):
        size = len(ids)
        assert batch.input_ids[line, :size].tolist() == ids.tolist()
        assert batch.labels[line, :size].tolist() == labels.tolist()
        assert (batch.input_ids[line, size:] == 7).all()
        assert (batch.labels[line, size:] == IGNORED).all()
        assert batch.attention_mask[line].tolist() == [1] * size + [0] * (batch.input_ids.shape[1] - size)


def test_without_padding_there_is_no_mask():
    examples = class_examples(8)
    assert collate(examples, np.array([3]), pad_id=0, device=CPU).attention_mask is None
