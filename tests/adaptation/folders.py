"""Folders of made images, and what reading them says."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.spec import DataSpec, InputSpec
from worker.adaptation.data import read_target

INPUT = InputSpec(size=28)  # stored as 32 x 32


def ramp(height: int, width: int, largest: float, dtype: type = np.uint16) -> np.ndarray:
    """Rises from near 1 at the left to `largest` at the right: no zeros, so no holes."""
    return np.tile(np.linspace(1, largest, width), (height, 1)).astype(dtype)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def signed_tiff(path: Path, array: np.ndarray) -> Path:
    """array [H, W], int16, as cameras write it; Pillow reads it and does not write it."""
    height, width = array.shape
    # Width, height, bits, no compression, black is zero, one strip from here to there, one sample a pixel, which is signed.
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: array.nbytes, 339: 2}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    body = array.astype("<i2").tobytes()
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + rows + bytes(4))
    return path


def depth_folder(folder: Path, n: int = 10, largest: int = 4000, size: tuple[int, int] = (48, 64)) -> Path:
    for i in range(n):
        save(folder / f"{i:03}.png", ramp(*size, largest))
    return folder


def data_spec(target: Path, modality: str = "depth", scaling: dict | None = None, **rest: object) -> DataSpec:
    return DataSpec.model_validate({"target": {"uri": str(target), "modality": modality, "scaling": scaling or {}}, **rest})


class Events(list):
    def __call__(self, event: object) -> None:
        self.append(event)

    def of(self, kind: str) -> list:
        return [event for event in self if event.type == kind]

    @property
    def warned(self) -> set[str]:
        return {event.code for event in self.of("warning")}


def read(tmp_path: Path, data: DataSpec, input: InputSpec = INPUT) -> tuple[torch.Tensor, Events]:
    events = Events()
    images = read_target(data, input, tmp_path / "cache", events)
    return images.batch(np.arange(len(images))), events
