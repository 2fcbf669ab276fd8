"""Small trees with the folders, file names and formats of the data sets of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SUN_VIEWS = {
    "kv1": [("kv1/NYUdata/NYU{:04}", "NYU{:04}"), ("kv1/b3dodata/img_{:04}", "img_{:04}")],
    "kv2": [
        ("kv2/kinect2data/{:06}_2014-05-26_14-23-37_260595134347_rgbf000103-resize", "0000103"),
        ("kv2/align_kv2/2014-12-18_15-16-45_{:012}_rgbf000121-resize", "0000121"),
    ],
    "realsense": [
        ("realsense/lg/2014_10_21-18_20_34-{:010}", "0000103"),
        ("realsense/shr/2014_10_28-16_26_59-{:010}", "0000051"),
    ],
    "xtion": [
        ("xtion/sun3ddata/brown_bm_1/brown_bm_1/{:07}-000000000000", "{:07}-000000000000"),
        ("xtion/xtion_align_data/2014_12_16_14_50_29_{:010}", "0000009"),
    ],
}
"""By sensor, the folder of a view and the stem of its images, as the archive of each contributor has them."""


def rotated(millimetres: np.ndarray) -> np.ndarray:
    """Depth as SUN RGB-D writes it: each 16-bit word, read as a string of bits, begins with its fourth."""
    words = [f"{value:016b}" for value in millimetres.ravel()]
    return np.array([int(word[3:] + word[:3], 2) for word in words], np.uint16).reshape(millimetres.shape)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def rgb(value: int = 120, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.stack([np.full(size, v, np.uint8) for v in (value, value // 2, value // 3)], axis=2)


def sun_view(
    root: Path,
    sensor: str,
    number: int,
    scene: str | None,
    depth: np.ndarray | None = None,
    colour: np.ndarray | None = None,
    nesting: int = 0,
) -> Path:
    """One view, with the files that a reader has no use for. depth: millimetres. scene None: no scene.txt."""
    depth = np.full((12, 16), 2500, np.uint16) if depth is None else depth
    folder, stem = (pattern.format(number) for pattern in SUN_VIEWS[sensor][nesting])
    view = root / folder
    save(view / f"image/{stem}.jpg", rgb() if colour is None else colour)
    save(view / f"fullres/{stem}.jpg", rgb())
    save(view / f"fullres/{stem}.png", rotated(depth))
    save(view / f"depth_bfx/{stem}.png", rotated(depth))
    save(view / f"depth/{stem}.png", rotated(depth // 2))
    (view / "annotation2Dfinal").mkdir()
    (view / "annotation2Dfinal/index.json").write_text("{}")
    (view / "intrinsics.txt").write_text("518.857901 0 284.582449 0 519.469611 208.736166 0 0 1 ")
    if scene is not None:
        (view / "scene.txt").write_text(scene)
    return view


def diml_sample_view(root: Path, scene: str, number: int, split: str = "train/HR") -> tuple[Path, Path]:
    """(colour, filled depth), where the reader takes them from."""
    depth = np.full((12, 16), 2500, np.uint16)
    place, stem = root / split / scene, f"in_01_160217_{number:06}"
    save(place / f"depth_raw/{stem}_depth_raw.png", depth)
    save(place / f"depth_vi/{stem}_depth_vi.png", rgb())
    return save(place / f"color/{stem}_c.png", rgb()), save(place / f"depth_filled/{stem}_depth_filled.png", depth)


def diml_view(root: Path, scene: str, number: int) -> Path:
    place, stem = root / f"{scene}/1/16.01.20/1", f"in_k_00_160120_{number:06}"
    depth = np.full((12, 16), 2500, np.uint16)
    for folder, ending in (("raw_png", "rd"), ("up_png", "ud"), ("warp_png", "wd")):
        save(place / folder / f"{stem}_{ending}.png", depth)
    save(place / f"col/{stem}_c.png", rgb())
    return place


def nir_view(root: Path, scene: str, number: int, dtype: type = np.uint8) -> None:
    save(root / scene / f"{number:04}_rgb.tiff", rgb())
    save(root / scene / f"{number:04}_nir.tiff", np.full((12, 16), 90 if dtype == np.uint8 else 9000, dtype))
