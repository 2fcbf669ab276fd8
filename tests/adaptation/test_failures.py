from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from app.errors import Problem
from worker.adaptation.failures import first_line, problem_of


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


NCCL = """[Rank 1] some words before
NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, unhandled system error (run with NCCL_DEBUG=INFO for details)
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-a1b2c3 (size 9637888), error: No space left on device (28)"""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be"),
            "device_failed",
            "ECC",
        ),
        (RuntimeError("in a step\nCUDA error: no kernel image is available for execution"), "device_failed", "no kernel image"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device_failed", "CUDNN_STATUS_EXECUTION_FAILED"),
        (torch.distributed.DistBackendError(NCCL), "device_failed", "/dev/shm/nccl-a1b2c3"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if"), "internal", "NOT_SUPPORTED"),
        (torch.AcceleratorError("CUDA error: invalid configuration argument\nCUDA kernel errors"), "internal", "invalid"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"), "internal", "cublasSgemm"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out_of_memory",
            "cublasCreate",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
            "out_of_memory",
            "CUDA error: out of memory",
        ),
        (RuntimeError("at the top\nDefaultCPUAllocator: can't allocate memory"), "out_of_memory", "DefaultCPUAllocator"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel"), "internal", "device-side assert"),
        (RuntimeError("writing: No space left on device"), "disk_full", "No space left on device"),
        (ValueError("a file is named CUDA error.png"), "internal", "ValueError"),
    ],
)
def test_what_a_gpu_says_is_told_by_the_line_that_says_it(tmp_path, error, code, told):
    problem = problem_of(error, tmp_path)
    assert problem.code == code
    assert told in problem.detail
    assert "might be" not in problem.detail or code == "internal"


def test_an_nccl_error_tells_where_and_what(tmp_path):
    detail = problem_of(torch.distributed.DistBackendError(NCCL), tmp_path).detail
    assert "NCCL error in" in detail and "some words before" not in detail


@pytest.mark.parametrize(
    ("said", "told"),
    [("", ""), ("one\nthree", "one"), ("one\nit is two\nand two", "it is two"), ("x" * 1000, "x" * 300)],
    ids=["nothing", "the first", "the first with the words", "too long"],
)
def test_one_line_of_what_was_said_is_told(said, told):
    assert first_line(said, ("two",)) == told
