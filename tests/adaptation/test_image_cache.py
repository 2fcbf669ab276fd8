"""What is decoded into the cache, and what counts as broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from app.references import Entry
from worker.adaptation import image_cache
from worker.adaptation.image_cache import Stored
from worker.adaptation.scaling import Range, Readings


def test_an_image_that_is_far_too_long_and_narrow_is_broken_and_the_others_are_read(tmp_path: Path) -> None:
    """A kilobyte that is to cover 256 x 256: a hundred gigabytes would be cut off."""
    Image.fromarray(np.full((1, 400_000), 1000, np.uint16)).save(tmp_path / "long.png")
    Image.fromarray(np.full((60, 80), 1000, np.uint16)).save(tmp_path / "good.png")
    Image.fromarray(np.full((20, 4000), 1000, np.uint16)).save(tmp_path / "panorama.png")
    entries = [Entry(path.name, path) for path in sorted(tmp_path.glob("*.png"))]
    stored = Stored(256, 256, 1, False, Range(16, 1.0, 0.0, 10_000.0, ""), Readings(0, below_zero=False))
    record = image_cache.store(tmp_path / "cache", "target", "key", {"target": (entries, stored)}, {})
    told = record["columns"]["target"]
    assert (told["names"], told["broken"]) == (["good.png", "panorama.png"], 1)
    assert told["broken_names"] == ["long.png: 400000 x 1 pixels are too long and narrow to cover 256 x 256"]
