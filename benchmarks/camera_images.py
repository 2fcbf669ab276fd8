"""Made images as a depth camera writes them: for benchmarks of the path from files to batches, which care for sizes and
formats and not for what is shown."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (640, 480)
GRID = (20, 15)
NEAR, FAR = 600, 4500
"""In millimetres."""


def depth(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    """16 bit, millimetres: slopes and steps, noise that grows with the distance squared, and holes of 0."""
    slopes = _field(rng, size) * (FAR - NEAR) / 2 + NEAR
    metres = (slopes + (_field(rng, size) > 0.6) * (FAR - NEAR) / 4) / 1000
    noisy = metres + rng.normal(0, 1, metres.shape) * 0.0015 * metres**2
    holes = _field(rng, size) > 0.85
    return Image.fromarray(np.where(holes, 0, noisy * 1000).astype(np.uint16))


def rgb(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    """8 bit: smooth colours, edges and sensor noise."""
    planes = np.stack([_field(rng, size) for _ in range(3)], axis=2) * 160 + 30
    planes[_field(rng, size) > 0.6] *= 0.5
    return Image.fromarray((planes + rng.normal(0, 4, planes.shape)).clip(0, 255).astype(np.uint8))


def make(folder: Path, target: int, pairs: int, size: tuple[int, int] = SIZE) -> Path:
    """folder/target/*.png (depth), folder/pairs/rgb/*.jpg and folder/pairs/depth/*.png, width x height; those that are there
    stay. An image is the same whenever it is made."""
    wanted = [(folder / "target" / f"{i:06}.png", depth, 0, i) for i in range(target)]
    wanted += [(folder / "pairs/depth" / f"{i:06}.png", depth, 1, i) for i in range(pairs)]
    wanted += [(folder / "pairs/rgb" / f"{i:06}.jpg", rgb, 2, i) for i in range(pairs)]
    for path in {path.parent for path, *_ in wanted}:
        path.mkdir(parents=True, exist_ok=True)

    def write(path: Path, draw: Callable[..., Image.Image], *seed: int) -> None:
        if path.exists():
            return
        aside = path.with_suffix(".partial")
        settings = {".png": {"format": "png", "compress_level": 1}, ".jpg": {"format": "jpeg", "quality": 90}}[path.suffix]
        draw(np.random.default_rng(seed), size).save(aside, **settings)
        aside.replace(path)

    with ThreadPoolExecutor() as pool:  # NumPy and Pillow let threads run side by side
        list(pool.map(lambda one: write(*one), wanted))
    return folder


def _field(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Smooth, 0 to 1, float32 [height, width]."""
    coarse = Image.fromarray(rng.random(GRID[::-1], dtype=np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
