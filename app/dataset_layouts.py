"""SUN RGB-D, DIML RGB+D and RGB-NIR Scene as their archives unpack, split by the classes of the task.

A view whose scene is one of the model's classes is task-relevant (TR): it is a target or an evaluation image. A view of
any other scene is task-irrelevant (TI): it is a pair. So no class list is wired in, and no TR view comes among the pairs.
Run as `python -m app.dataset_layouts sunrgbd FOLDER`, it counts the scenes: that is where the class list of a source
model comes from.
"""

from __future__ import annotations

import json
import re
import string
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from app.errors import Problem, few
from app.references import Entry, Roots, Tree, folder, tree
from app.spec import DATA_SETS, SENSORS, DataSet, ImagesReference, PairsReference

Reference = ImagesReference | PairsReference

MAX_SCENE_BYTES = 1000
"""Of a scene.txt, which holds one word."""
UNKNOWN = frozenset({"", "idk"})
"""What scene.txt holds where the annotators did not know the scene ("idk"). Such a view might show a class of the task,
so it is neither TR nor TI."""
SUN_PASSED_OVER = frozenset(
    {"fullres", "extrinsics", "seg", "annotation", "annotation2D3D", "annotation2Dfinal", "annotation3D", "annotation3Dfinal",
     "annotation3Dlayout"}
)  # fmt: skip
DIML_COLOUR = ("color", "col")
"""In the sample and in the full set."""
DIML_DEPTH = ("depth_filled", "up_png", "depth_raw", "warp_png")
"""Filled in before raw, and only what is aligned with the colour image; the first that is there is read."""


@dataclass(slots=True)
class View:
    """What both sensors saw of one scene. scene: as the data set spells it. None: the image is not there."""

    scene: str
    source: Entry | None = None
    target: Entry | None = None


def relevant(reference: Reference, classes: Sequence[str], roots: Roots | Tree, pointer: str) -> list[Entry]:
    """The target sensor's image of each TR view, labelled with the model's spelling of its class. Raises Problem
    no_images, and as `views` does."""
    known = _by_letters(classes, pointer)
    found = views(reference, roots, pointer)
    images = [
        replace(view.target, label=known[_letters(view.scene)])
        for view in found.values()
        if view.target is not None and view.scene not in UNKNOWN and _letters(view.scene) in known
    ]
    if not images:
        scenes = few(sorted({view.scene for view in found.values()}), 20)
        detail = f"{reference.uri!r} holds no target image of the model's classes; its scenes are {scenes}"
        raise Problem("no_images", detail, pointer=pointer)
    return images


def irrelevant(reference: Reference, classes: Sequence[str], roots: Roots | Tree, pointer: str) -> list[tuple[Entry, Entry]]:
    """(source, target) of each TI view. Raises Problem no_images, pairs_unmatched, and as `views` does."""
    known = _by_letters(classes, pointer)
    found = {
        name: view
        for name, view in views(reference, roots, pointer).items()
        if view.scene not in UNKNOWN and _letters(view.scene) not in known
    }
    if lonely := [name for name, view in found.items() if view.source is None or view.target is None]:
        detail = f"{len(lonely)} of {len(found)} views lack an image of one sensor: {few(lonely)}"
        raise Problem("pairs_unmatched", detail, pointer=pointer, names=lonely[:20])
    if not found:
        detail = f"{reference.uri!r} holds no view of a scene outside the model's classes"
        raise Problem("no_images", detail, pointer=pointer)
    return [(view.source, view.target) for view in found.values() if view.source is not None and view.target is not None]


def views(reference: Reference, roots: Roots | Tree, pointer: str) -> dict[str, View]:
    """Every view of a data set, by name and in that order. Raises Problem no_images, layout_mismatch, and as
    app.references.Tree.walk does."""
    where = tree(roots)
    base = folder(where, reference.uri, pointer)
    found: dict[str, View] = {}
    for name, scene, side, entry in READERS[reference.layout](reference, base, where, pointer):
        view = found.setdefault(name, View(scene))
        if (other := getattr(view, side)) is not None:
            detail = f"{entry.name} and {other.name} are two images of one sensor in one view"
            raise Problem("layout_mismatch", detail, pointer=pointer)
        setattr(view, side, entry)
    if not found:
        raise Problem("no_images", f"{reference.uri!r} holds no image as layout {reference.layout!r} has them", pointer=pointer)
    return found


Found = Iterator[tuple[str, str, str, Entry]]
"""(the view's name, its scene, "source" or "target", the image)"""


def _sunrgbd(reference: Reference, base: PurePath, tree: Tree, pointer: str) -> Found:
    """<sensor>/<subset>/.../<view>/{image/*.jpg, depth_bfx/*.png, scene.txt}, nested to differing depths."""
    depth = reference.depth_folder or "depth_bfx"
    passed_over = SUN_PASSED_OVER | (set(SENSORS) - {reference.sensor} if reference.sensor else set())
    scenes: dict[str, str | None] = {}
    for name, path in tree.walk(base, pointer, passed_over):
        parts = name.split("/")
        if len(parts) < 2 or parts[-2] not in ("image", depth):
            continue
        view = "/".join(parts[:-2]) or "."
        if view not in scenes:
            wanted = reference.sensor in (None, sensor_of(base / view))
            scenes[view] = _scene(base, view, tree, pointer) if wanted else None
        if (scene := scenes[view]) is None:
            continue
        if parts[-2] == depth:
            yield view, scene, "target", Entry(name, path, encoding="rotated")
        else:
            yield view, scene, "source", Entry(name, path)


def sensor_of(view: PurePath) -> str | None:
    """The camera of a SUN RGB-D view: the last part of its path that is a camera's name."""
    return next((part for part in reversed(view.parts) if part in SENSORS), None)


def _scene(base: PurePath, view: str, tree: Tree, pointer: str) -> str:
    name = f"{view}/scene.txt"
    file = base / name
    tree.inside_only(file, name, base, pointer)
    if not tree.is_file(file):
        raise Problem("layout_mismatch", f"no file {name}, which says what scene the view shows", pointer=pointer)
    scene = tree.text(file, name, MAX_SCENE_BYTES, pointer).strip()
    if not scene.isprintable() or len(scene) > 200:
        raise Problem("layout_mismatch", f"{name} holds more than the name of a scene: {scene[:50]!r}", pointer=pointer)
    return scene


def _diml(reference: Reference, base: PurePath, tree: Tree, pointer: str) -> Found:
    """The sample has train/HR/12. Livingroom/{color/in_01_160217_123138_c.png, depth_filled/in_01_..._depth_filled.png},
    the full set 03_classroom_1/1/16.01.20/1/{col/in_k_..._c.png, up_png/in_k_..._ud.png}: depth in millimetres."""
    wanted = {*DIML_COLOUR, *((reference.depth_folder,) if reference.depth_folder else DIML_DEPTH)}
    images = [(name, path) for name, path in tree.walk(base, pointer) if path.parent.name in wanted]
    there = {path.parent.name for _, path in images}
    depth = reference.depth_folder or next((name for name in DIML_DEPTH if name in there), None)
    large = any("HR" in path.relative_to(base).parts for _, path in images)
    for name, path in images:
        parts = path.relative_to(base).parts
        if len(parts) < 2 or path.parent.name not in (*DIML_COLOUR, depth) or (large and "LR" in parts):
            continue
        scene = next((word for part in reversed((base.name, *parts[:-2])) if (word := _diml_scene(part))), None)
        if scene is None:
            raise Problem("layout_mismatch", f"{name} lies below no folder that names its scene", pointer=pointer)
        stem = _without_suffixes(path.stem)
        yield "/".join((*parts[:-2], stem)), scene, "target" if path.parent.name == depth else "source", Entry(name, path)


def _without_suffixes(stem: str) -> str:
    """in_01_160217_123138_depth_filled -> in_01_160217_123138. Read from its end: a pattern that is bound to the end alone is tried at every
    letter, and names come from anybody."""
    return re.sub(r"\A(?:[a-z]+_)+", "", stem[::-1], flags=re.IGNORECASE)[::-1]


def _diml_scene(part: str) -> str:
    """Without the numbers: 12. Livingroom -> Livingroom, 03_classroom_1 -> classroom, 16.01.20 -> nothing."""
    return part.strip(string.digits + string.whitespace + "._")


def _nirscene(reference: Reference, base: PurePath, tree: Tree, pointer: str) -> Found:
    """<scene>/0001_rgb.tiff and <scene>/0001_nir.tiff."""
    for name, path in tree.walk(base, pointer):
        stem, _, sensor = path.stem.rpartition("_")
        if stem and sensor in ("rgb", "nir"):
            view = (path.relative_to(base).parent / stem).as_posix()
            yield view, path.parent.name, "target" if sensor == "nir" else "source", Entry(name, path)


READERS: dict[DataSet, Callable[[Reference, PurePath, Tree, str], Found]] = {
    "sunrgbd": _sunrgbd,
    "diml": _diml,
    "nirscene": _nirscene,
}
"""What each data set's folder holds."""
FILE_A_VIEW = frozenset({"sunrgbd"})
"""Those that have a text file beside each view, which says its scene."""


def _letters(name: str) -> str:
    """So that "Living room", "living_room" and "Livingroom" are one class: one that was taken for another because of its
    spelling would put TR views among the pairs."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _by_letters(classes: Iterable[str], pointer: str) -> dict[str, str]:
    known: dict[str, str] = {}
    for name in classes:
        if (other := known.setdefault(_letters(name), name)) != name:
            detail = f"the model's classes {other!r} and {name!r} differ in spelling alone, which a data set's layout cannot tell apart"
            raise Problem("layout_mismatch", detail, pointer=pointer)
    return known


def census(reference: Reference) -> dict[str, object]:
    """images: how many views have a target image, by scene and, of SUN RGB-D, by sensor. shared, of SUN RGB-D alone: the
    scenes that every sensor saw."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for view in views(reference, None, "").values():
        if view.target is not None and view.scene not in UNKNOWN:
            counts[view.scene][sensor_of(view.target.path) or "all" if reference.layout == "sunrgbd" else "all"] += 1
    images = {scene: dict(sorted(counts[scene].items())) for scene in sorted(counts)}
    if reference.layout != "sunrgbd":
        return {"images": images}
    return {"shared": [scene for scene in images if images[scene].keys() >= set(SENSORS)], "images": images}


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in DATA_SETS:
        sys.exit(f"usage: python -m app.dataset_layouts {{{','.join(DATA_SETS)}}} FOLDER")
    try:
        print(json.dumps(census(ImagesReference(uri=sys.argv[2], layout=sys.argv[1])), indent=1))
    except Problem as problem:
        sys.exit(str(problem))
