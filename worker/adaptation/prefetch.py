"""The next batch is made while the current one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Key = TypeVar("Key")
Batch = TypeVar("Batch")


def prefetched(make: Callable[[Key], Batch], keys: Iterable[Key]) -> Iterator[tuple[Key, Batch]]:
    """(key, make(key)) in the order of the keys; one background thread is one batch ahead. `make` must be a pure function
    of its key. What it raises is raised here."""
    # One torch thread for the one in the background: a second team would spin on the cores that the training needs.
    with ThreadPoolExecutor(1, "prefetch", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead = None
        for key in keys:
            following = key, pool.submit(make, key)
            if ahead is not None:
                yield ahead[0], ahead[1].result()
            ahead = following
        if ahead is not None:
            yield ahead[0], ahead[1].result()
