import gc
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data.packed import PagedBytes, PagedNumbers, Pages, paged

NUMBERS = st.lists(st.integers(0, 2**32 - 1), max_size=60)


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(0, 60), st.data())
def test_bytes_come_back_wherever_they_lie(parts: list[bytes], memory: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged, "PAGE_BYTES", 16)
        made = PagedBytes(Pages(memory))
        for part in parts:
            made.append(part)
        whole = b"".join(parts)
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        assert (len(made), made.read(start, stop)) == (len(whole), whole[start:stop])


@given(NUMBERS, st.data())
def test_numbers_are_taken_in_the_order_that_was_asked_for(numbers: list[int], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=30)) if numbers else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged, "PAGE_BYTES", 24)
        made = PagedNumbers(np.uint32, Pages(0))
        made.extend(np.array(numbers[:7], np.uint32))
        made.extend(np.array(numbers[7:], np.uint32))
        assert made.take(np.array(places, np.intp)).tolist() == [numbers[place] for place in places]
        assert [list(made), made[:], made[1:9:2]] == [numbers, numbers, numbers[1:9:2]]


def test_the_file_is_gone_with_what_lies_in_it() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = PagedBytes(Pages(0))
    made.append(bytes(3 * paged.PAGE_BYTES))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del made
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
