"""The RGB-D set on disk, in four folders that share no scene.

    source_rgb/<class>/NNNN.png       labelled colour, for the source classifier alone; the demo deletes it afterwards
    target/NNNN.png                   unlabelled depth of the task's classes: shuffled, no class in any name
    pairs/{rgb,depth}/NNNN.png        both cameras on objects outside the task
    test/{rgb,depth}/<class>/NNNN.png held out and labelled

Depth is 16-bit PNG in millimetres, 0 = no reading. A split is rendered beside its place and renamed when whole, with a
digest of everything that made it: a later run with the same digest finds it done.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from demo import scenes, shapes

SIZE = 64
"""Height and width of every image, in pixels."""
COUNTS = {"source_rgb": 1500, "target": 600, "pairs": 300, "test": 300}
"""Scenes of each split; the classes take turns."""
CLASSES = tuple(shapes.TASK)
MANIFEST = ".manifest.json"


def _kinds(split: str) -> tuple[str, ...]:
    return tuple(shapes.OTHER) if split == "pairs" else CLASSES


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The randomness of one scene: no two scenes of a seed share any."""
    return np.random.default_rng((seed, list(COUNTS).index(split), index))


def file_names(seed: int, split: str, index: int) -> dict[str, str]:
    """Which images of a scene are kept, {"rgb" or "depth": path below the split}. The classes take turns by index, so
    the target's numbers are shuffled."""
    kinds = _kinds(split)
    label, number = kinds[index % len(kinds)], f"{index:04d}.png"
    if split == "source_rgb":
        return {"rgb": f"{label}/{number}"}
    if split == "target":
        order = np.random.default_rng((seed, len(COUNTS))).permutation(COUNTS["target"])
        return {"depth": f"{order[index]:04d}.png"}
    if split == "pairs":
        return {"rgb": f"rgb/{number}", "depth": f"depth/{number}"}
    return {"rgb": f"rgb/{label}/{number}", "depth": f"depth/{label}/{number}"}


def _write(folder: Path, seed: int, split: str, index: int) -> None:
    kinds = _kinds(split)
    names = file_names(seed, split, index)
    for camera, image in scenes.render(generator(seed, split, index), kinds[index % len(kinds)], SIZE, names).items():
        path = folder / names[camera]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def digest(seed: int, split: str) -> str:
    """Of all that a split's images depend on, the program included."""
    made_by = [Path(module.__file__).read_bytes() for module in (shapes, scenes)] + [Path(__file__).read_bytes()]
    parameters = json.dumps([seed, split, COUNTS[split], SIZE])
    return hashlib.sha256(b"\0".join([parameters.encode(), *made_by])).hexdigest()


def is_ready(folder: Path, seed: int, split: str) -> bool:
    manifest = folder / split / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_text())["digest"] == digest(seed, split)


def prepare(folder: Path, seed: int, split: str, processes: int = 2, advance: Callable[[], object] = lambda: None) -> Path:
    """Renders a split unless it is there already; advance is called after each image. Returns the split's folder."""
    if is_ready(folder, seed, split):
        return folder / split
    aside = folder / f".{split}.partial"
    for stale in (aside, folder / split):
        shutil.rmtree(stale, ignore_errors=True)
    aside.mkdir(parents=True)
    # spawn: a child forked from a process that runs torch's threads can hang.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(partial(_write, aside, seed, split), range(COUNTS[split]), chunksize=10):
            advance()
    (aside / MANIFEST).write_text(json.dumps({"digest": digest(seed, split), "seed": seed, "scenes": COUNTS[split]}))
    aside.rename(folder / split)
    return folder / split
