"""One job by several processes, each on a GPU of its own:

    MODALBRIDGE_PROCESSES_PER_JOB=N                                         of a worker: launcher.py starts them
    torchrun --nproc-per-node N -m worker.adaptation SPEC.json --out DIR    by hand

Every process makes its share of each batch, and everything that a loss sees is gathered, gradients and all. So a loss is that of the
whole batch, in every process the same, and so are the weights after a step: L_IM, L_BN and the ratios are no means over images, and
the mean of the processes' own would be another loss. The first process alone speaks, saves, evaluates and publishes.

A process by itself is a group of one, in which all of this gives back what it is given.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.errors import Problem

MEETING_S = 120.0
PATIENCE = timedelta(days=7)
"""For the first process, which decodes the images while the others wait. Whoever started them sees to it that none waits in vain."""


def start(device: torch.device) -> None:
    """Joins the group that the environment names, if any: as torchrun has it, or by a file to meet at (MODALBRIDGE_GROUP)."""
    if (several := int(os.environ.get("WORLD_SIZE", "1"))) > 1 and not dist.is_initialized():
        met = os.environ.get("MODALBRIDGE_GROUP")
        store = dist.FileStore(met, several) if met is not None else None
        # By gloo what lies on the CPU, a word of one process to the others: who waits for it by nccl keeps a core and its GPU busy.
        backend, device_id = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, store=store, world_size=several, rank=rank(), timeout=PATIENCE, device_id=device_id)
        _meet(device)


def _meet(device: torch.device) -> None:
    """A first exchange. Without it GPUs that do not reach each other would hang until the job's time is up. Raises Problem device_failed."""
    exchange = dist.all_reduce(torch.zeros(1, device=device), async_op=True)
    until = time.monotonic() + MEETING_S
    while not exchange.is_completed():
        if time.monotonic() > until:
            detail = f"the devices of the job's {size()} processes do not reach each other (with GPUs: try NCCL_P2P_DISABLE=1)"
            raise Problem("device_failed", detail)
        time.sleep(0.02)
    exchange.wait()  # which says how it failed, if it did


def end() -> None:
    """Leaves the group. The first process, which goes on, has the job's memory and cores for itself from here."""
    if not dist.is_initialized():
        return
    dist.destroy_process_group()
    if first() and (threads := os.environ.get("MODALBRIDGE_THREADS")):
        torch.set_num_threads(int(threads))
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Before the group is joined too."""
    return rank() == 0


def share(n: int) -> slice:
    """This process's rows of a batch of n. Shares are alike: a remainder is no one's."""
    each = n // size()
    return slice(rank() * each, (rank() + 1) * each)


def part(n: int) -> np.ndarray:
    """This process's indices of n images, int64: as many for each, so the last ones may name the last image again. What is made
    of them, gathered, is that of all n in its first n rows."""
    each = -(-n // size())
    return np.arange(rank() * each, (rank() + 1) * each).clip(max=n - 1)


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, in their order, with gradients. Every process must bring as many rows."""
    return x if size() == 1 or len(x) == 0 else _Gather.apply(x)


def moments(mu: Tensor, var: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance [C] of the values of all processes, from those of n [C] values in each."""
    mus, variances = _Gather.apply(torch.stack([mu, var])[None]).unbind(1)
    mean = mus.mean(0)
    squares = (n - 1) * variances.sum(0) + n * (mus - mean).square().sum(0)
    return mean, squares / (size() * n - 1)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """In place. The gradient of a gathered tensor is the sum over the processes, which all computed the same loss; the average
    over them takes that factor out again."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / size()).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agreed(value: float) -> float:
    """The first process's: what decides when to stop must not differ by a rounding."""
    if size() == 1:
        return value
    told = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(told, 0)
    return told.item()


def first_of_all(x: Tensor) -> None:
    """Makes x what the first process has: where each computes it from the same, another order of sums can change the last bits."""
    if size() > 1:
        dist.broadcast(x, 0)


def any_of(flag: bool) -> bool:
    if size() == 1:
        return flag
    told = torch.tensor(int(flag))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


@contextmanager
def first_before_others() -> Iterator[None]:
    """What the first process has written inside, the others find there."""
    if not first():
        any_of(False)
    yield
    if first():
        any_of(False)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        everyone = x.new_empty(size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(everyone, x.contiguous())
        return everyone

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]
