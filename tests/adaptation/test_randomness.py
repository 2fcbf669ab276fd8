from __future__ import annotations

import numpy as np
import torch

from worker.adaptation import randomness


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    epochs = [[randomness.batch(3, "stage", 4 * e + s, 32, 8) for s in range(4)] for e in range(2)]
    first, second = (np.concatenate(epoch) for epoch in epochs)
    assert sorted(first) == sorted(second) == list(range(32))
    assert first.tolist() != second.tolist()


def test_a_remainder_is_dropped_and_a_small_set_is_one_smaller_batch():
    assert randomness.steps_an_epoch(33, 8) == 4
    assert {len(randomness.batch(0, "stage", step, 33, 8)) for step in range(12)} == {8}
    assert randomness.steps_an_epoch(5, 8) == 1
    assert sorted(randomness.batch(0, "stage", 7, 5, 8)) == [0, 1, 2, 3, 4]


def test_a_step_draws_the_same_whatever_was_drawn_before():
    expected = randomness.generator(1, "crops", 5).random(4).tolist()
    randomness.generator(1, "crops", 4).random(100)
    assert randomness.generator(1, "crops", 5).random(4).tolist() == expected
    differ = [randomness.generator(*key).random(4).tolist() for key in ((2, "crops", 5), (1, "flips", 5), (1, "crops", 6))]
    assert expected not in differ


def test_an_epochs_order_is_drawn_once_however_many_its_steps_and_a_batch_is_its_takers_own():
    """Drawing it takes time in proportion to the set: at each step, a step would cost more the larger the set is."""
    drawn = randomness._order.cache_info().misses
    batches = [randomness.batch(4, "drawn once", step, 1000, 10) for step in range(100)]
    assert randomness._order.cache_info().misses == drawn + 1
    expected = batches[3].tolist()
    batches[3][:] = 0
    assert randomness.batch(4, "drawn once", 3, 1000, 10).tolist() == expected


def test_torch_is_seeded_by_seed_stage_and_step():
    def draw(*key):
        randomness.seed_torch(*key)
        return torch.rand(3).tolist()

    assert draw(0, "bridging", 2) == draw(0, "bridging", 2)
    assert draw(0, "bridging", 2) != draw(0, "bridging", 3)


def test_draws_do_not_change_between_releases():
    """A checkpoint of an earlier release is continued by a later one: its order must be the same."""
    assert randomness.batch(0, "bridging/pairs", 0, 10, 4).tolist() == FIRST


FIRST = [5, 8, 6, 2]
