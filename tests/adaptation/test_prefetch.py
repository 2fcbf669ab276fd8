from __future__ import annotations

import threading

import pytest
import torch

from worker.adaptation.prefetch import prefetched


def test_batches_come_in_order_and_one_is_made_ahead():
    made, second = [], threading.Event()

    def make(key: int) -> int:
        made.append(key)
        if key == 1:
            second.set()
        return 10 * key

    seen = []
    for key, value in prefetched(make, range(4)):
        if key == 0:
            assert second.wait(5), "the next batch is on its way before this one is used"
        seen.append((key, value))
    assert seen == [(0, 0), (1, 10), (2, 20), (3, 30)]
    assert made == [0, 1, 2, 3]


def test_what_making_a_batch_raises_is_raised_where_it_is_used():
    def make(key: int) -> int:
        if key == 1:
            raise ValueError("broken")
        return key

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for key, _ in prefetched(make, range(3)):
            seen.append(key)
    assert seen == [0]


def test_the_training_thread_keeps_its_threads():
    before = torch.get_num_threads()
    list(prefetched(lambda key: torch.ones(1000).sum(), range(3)))
    assert torch.get_num_threads() == before


def test_no_keys_are_no_batches():
    assert list(prefetched(lambda key: key, [])) == []
