"""The images of a job as the training loops take them: float batches in [0, 1] out of arrays on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.adaptation.device import moved
from worker.adaptation.scaling import Range

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Images:
    """array: [N, C, H, W], uint8 or uint16, mapped from disk. names: below the reference, in order. low, high: what
    becomes 0 and 1. range: the whole scaling. side: the median shorter side of the files, in pixels. sha256: over those of the files."""

    array: np.memmap
    names: list[str]
    range: Range
    side: float
    sha256: str = ""

    @property
    def low(self) -> float:
        return self.range.low

    @property
    def high(self) -> float:
        return self.range.high

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, index: np.ndarray, device: torch.device = CPU) -> Tensor:
        """Images index [n], in that order, as float32 [n, C, H, W] in [0, 1]. They move as they are stored, in 8 or 16 bits."""
        raw = moved(torch.from_numpy(self.array[index]), device)
        return raw.float().sub_(self.low).div_(self.high - self.low).clamp_(0, 1)


@dataclass(frozen=True)
class Pairs:
    """x_ti_s and x_ti_t, row by row the same scene at the same pixels. scale: how many times as much of a scene they
    show as the target images do, at least 1 (see transforms.random_crops)."""

    source: Images
    target: Images
    scale: float

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, index: np.ndarray, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """(source [n, 3, H, W], target [n, C, H, W]), float32 in [0, 1]."""
        return self.source.batch(index, device), self.target.batch(index, device)


@dataclass(frozen=True)
class LabelledImages:
    """labels: int64 [N], indices into the model's classes."""

    images: Images
    labels: np.ndarray
