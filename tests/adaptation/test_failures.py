from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from app.errors import Problem
from worker.adaptation.failures import problem_of


def raised(action) -> BaseException:
    with pytest.raises(BaseException) as caught:
        action()
    return caught.value


def test_memory_that_cannot_be_had_is_out_of_memory(tmp_path):
    import numpy as np

    for action in (lambda: torch.empty(2**50), lambda: np.zeros(2**55, dtype=np.uint8), lambda: bytearray(2**60)):
        assert problem_of(raised(action), tmp_path).code == "out_of_memory"
    assert problem_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), tmp_path).code == "out_of_memory"


def test_a_full_disk_is_named_however_deep_it_is_buried(tmp_path):
    def buried():
        try:
            with Path("/dev/full").open("wb", buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            raise RuntimeError("the writer failed") from error

    assert problem_of(raised(buried), tmp_path).code == "disk_full"
    assert problem_of(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path).code == "disk_full"


def test_a_problem_stays_itself_and_anything_else_is_internal(tmp_path):
    problem = Problem("no_images", "none", pointer="/data/target/uri")
    assert problem_of(problem, tmp_path) is problem
    unforeseen = problem_of(KeyError("what"), tmp_path)
    assert unforeseen.code == "internal"
    assert "KeyError" in unforeseen.detail
