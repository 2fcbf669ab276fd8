"""Randomness as a function of (seed, stage, step), never of what ran before: a resumed run draws what an undisturbed one
would have drawn, and no random state needs saving."""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

import numpy as np
import torch


def generator(seed: int, stage: str, *numbers: int) -> np.random.Generator:
    """The generator for one purpose at one step. crc32, because Python's own hash of a string changes with the process."""
    return np.random.default_rng([seed, crc32(stage.encode()), *numbers])


def seed_torch(seed: int, stage: str, step: int) -> None:
    """Torch's global generators on every device: what initialisation, dropout and stochastic depth draw from."""
    torch.manual_seed(int(generator(seed, f"torch/{stage}", step).integers(2**63)))


def batch_size(n: int, wanted: int) -> int:
    """What a set of n images is cut into: `wanted`, or one smaller batch where the set is smaller."""
    return min(n, wanted)


def steps_an_epoch(n: int, wanted: int) -> int:
    """The last remainder is dropped: a remainder of one image would break batch norm."""
    return n // batch_size(n, wanted)


def batch(seed: int, stage: str, step: int, n: int, wanted: int) -> np.ndarray:
    """Indices int64 [min(n, wanted)] of the images of a step: a slice of its epoch's permutation of n."""
    epoch, place = divmod(step, steps_an_epoch(n, wanted))
    size = batch_size(n, wanted)
    return _order(seed, stage, epoch, n)[place * size : (place + 1) * size].copy()


@lru_cache(maxsize=8)
def _order(seed: int, stage: str, epoch: int, n: int) -> np.ndarray:
    """An epoch's permutation of n, int64 [n]. Kept, since drawing it anew would make a step cost more the larger the set is; 8,
    because a stage draws from two sets, and the batch that is made ahead may be of the next epoch."""
    order = generator(seed, f"order/{stage}", epoch).permutation(n)
    order.setflags(write=False)
    return order
