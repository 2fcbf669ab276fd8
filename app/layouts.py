"""Which images a reference names, in which order: listing alone, nothing is decoded.

The front end checks a request with it and the engine reads with it, so both see the same files. Entries are sorted by
name. What may be read is for app.references to say; the layouts of known data sets are in app.dataset_layouts.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from app import dataset_layouts, webdataset_layout
from app.errors import Problem, few
from app.references import ENDINGS, MAX_IMAGES, Entry, Roots, Tree, folder, is_image, text_file, tree
from app.spec import DATA_SETS, DataSpec, ImagesReference, PairsReference

MIN_TARGET_IMAGES = 8
MIN_PAIRS = 8
SETS = ("target", "pairs", "evaluation")
"""Of a job, by their names in `data`."""


def _listed(uri: str, tree: Tree, pointer: str) -> list[Entry]:
    """The lines of a SHOT/SOCKET list, `path label`; the label, a class name or number, is the last word if the whole
    line is not itself a file."""
    path, text = text_file(tree, uri, pointer)
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, label = line, None
        if not is_image(line):
            name, _, label = line.rpartition(" ")
        if not name.strip():
            raise Problem("layout_mismatch", f"line {number}: {line[:80]!r} is not `path` or `path label`", pointer=pointer)
        name = name.strip()
        entries.append(Entry(name, tree.below(path.parent, name, number, pointer), label))
        if len(entries) > MAX_IMAGES:
            raise Problem("layout_mismatch", f"more than {MAX_IMAGES} images", pointer=pointer)
    return entries


def images(
    reference: ImagesReference,
    roots: Roots | Tree = None,
    pointer: str = "/data/target/uri",
    classes: Sequence[str] | None = None,
) -> list[Entry]:
    """The images of an unlabelled set; labels and class folders, if there are any, are dropped here, so that nothing
    behind can look at them. classes: the model's; the layouts of known data sets need them. Raises Problem, also
    no_images."""
    where = tree(roots)
    if reference.layout in DATA_SETS:
        found = dataset_layouts.relevant(reference, _needed(classes), where, pointer)
        return [replace(entry, label=None) for entry in found]
    if reference.layout == "list":
        found = [Entry(entry.name, entry.path) for entry in _listed(reference.uri, where, pointer)]
    elif reference.layout == "webdataset":
        found = webdataset_layout.images(where, reference.uri, pointer)
    else:
        found = [Entry(name, path) for name, path in where.walk(folder(where, reference.uri, pointer), pointer)]
    if not found:
        raise Problem("no_images", f"{reference.uri!r} holds no file that ends in {', '.join(sorted(ENDINGS))}", pointer=pointer)
    return found


def _needed(classes: Sequence[str] | None) -> Sequence[str]:
    if classes is None:
        raise ValueError("the layout of a data set is split by the model's classes")
    return classes


def labelled(
    reference: ImagesReference, classes: Sequence[str], roots: Roots | Tree = None, pointer: str = "/data/evaluation/uri"
) -> list[Entry]:
    """The images of a labelled set, each with a class name of `classes`. A class without images is fine; a class that
    the model does not know is Problem unknown_class."""
    where = tree(roots)
    if reference.layout in DATA_SETS:
        return dataset_layouts.relevant(reference, classes, where, pointer)
    if reference.layout == "list":
        found = _named(_listed(reference.uri, where, pointer), classes)
    elif reference.layout == "webdataset":
        found = _named(webdataset_layout.labelled(where, reference.uri, pointer), classes)
    else:
        found = [
            Entry(name, path, name.split("/", 1)[0] if "/" in name else None)
            for name, path in where.walk(folder(where, reference.uri, pointer), pointer)
        ]
    if not found:
        raise Problem("no_images", f"{reference.uri!r} holds no images", pointer=pointer)
    if bare := [entry.name for entry in found if entry.label is None]:
        raise Problem("layout_mismatch", f"images without a class: {few(bare)}", pointer=pointer)
    if unknown := sorted({entry.label for entry in found if entry.label} - set(classes)):
        raise Problem(
            "unknown_class",
            f"not among the model's {len(classes)} classes: {few(unknown)}",
            pointer=pointer,
            classes=[label[:200] for label in unknown[:20]],
        )
    return found


def _named(entries: list[Entry], classes: Sequence[str]) -> list[Entry]:
    """Labels that are numbers become the names of their classes."""
    known = frozenset(classes)
    return [
        replace(one, label=classes[int(one.label)])
        if one.label is not None and one.label not in known and _is_index(one.label, classes)
        else one
        for one in entries
    ]


def _is_index(label: str, classes: Sequence[str]) -> bool:
    return label.isascii() and label.isdigit() and len(label) < 10 and int(label) < len(classes)


def pairs(
    reference: PairsReference,
    roots: Roots | Tree = None,
    pointer: str = "/data/pairs/uri",
    classes: Sequence[str] | None = None,
) -> list[tuple[Entry, Entry]]:
    """(source, target) entries. Every image must have its partner: Problem pairs_unmatched names those without. classes:
    the model's; the layouts of known data sets need them, to leave them out."""
    where = tree(roots)
    if reference.layout in DATA_SETS:
        return dataset_layouts.irrelevant(reference, _needed(classes), where, pointer)
    path = where.find(reference.uri, pointer)
    if reference.layout == "webdataset":
        found = webdataset_layout.pairs(where, reference.uri, reference.source, reference.target, pointer)
    elif where.is_file(path):
        found = list(_manifest(reference, where, pointer))
    else:
        sides = []
        for side in (reference.source, reference.target):
            if (within := where.subfolder(path, side, pointer)) is None:
                raise Problem("layout_mismatch", f"{reference.uri!r} has no folder {side!r}", pointer=pointer)
            by_stem: dict[str, Entry] = {}
            for name, file in where.walk(within, pointer):
                stem = os.path.splitext(name)[0]
                if stem in by_stem:
                    raise Problem(
                        "pairs_unmatched", f"{side}/{name} and {side}/{by_stem[stem].name} share one name", pointer=pointer
                    )
                by_stem[stem] = Entry(name, file)
            sides.append(by_stem)
        source, target = sides
        if lonely := sorted(source.keys() ^ target.keys()):
            raise Problem(
                "pairs_unmatched",
                f"{len(lonely)} of {len(source)} {reference.source} and {len(target)} {reference.target} images have no partner: {few(lonely)}",
                pointer=pointer,
                names=lonely[:20],
            )
        found = [(source[stem], target[stem]) for stem in source]
    if not found:
        raise Problem("no_images", f"{reference.uri!r} holds no pairs", pointer=pointer)
    return found


def _manifest(reference: PairsReference, tree: Tree, pointer: str) -> Iterator[tuple[Entry, Entry]]:
    path, text = text_file(tree, reference.uri, pointer)
    try:
        rows = csv.DictReader(text.splitlines(), strict=True)
        if missing := [side for side in (reference.source, reference.target) if side not in (rows.fieldnames or [])]:
            raise Problem(
                "layout_mismatch",
                f"the CSV has no column {', '.join(missing)}; it has {few(list(rows.fieldnames or []), 20)}",
                pointer=pointer,
            )
        for row in rows:
            names = [(row[side] or "").strip() for side in (reference.source, reference.target)]
            if not all(names):
                raise Problem("pairs_unmatched", f"line {rows.line_num}: one of the two paths is empty", pointer=pointer)
            if names[0] == names[1]:
                raise Problem("pairs_unmatched", f"line {rows.line_num}: both paths are {names[0]!r:.300}", pointer=pointer)
            source, target = (Entry(name, tree.below(path.parent, name, rows.line_num, pointer)) for name in names)
            yield source, target
    except csv.Error as error:
        raise Problem("layout_mismatch", f"{reference.uri!r} is not CSV: {error}", pointer=pointer) from error


def check(data: DataSpec, classes: Sequence[str], roots: Roots | Tree) -> dict[str, int]:
    """All that can be said of a job's data without decoding an image: counts by set. Raises Problem."""
    return {name: check_set(data, name, classes, roots) for name in SETS if getattr(data, name) is not None}


def check_set(data: DataSpec, name: str, classes: Sequence[str], roots: Roots | Tree) -> int:
    """The same of one of the sets that it has. Raises Problem."""
    if name == "target":
        return _enough(len(images(data.target, roots, classes=classes)), MIN_TARGET_IMAGES, "target images", "/data/target/uri")
    if name == "pairs":
        return _enough(len(pairs(data.pairs, roots, classes=classes)), MIN_PAIRS, "pairs", "/data/pairs/uri")
    return len(labelled(data.evaluation, classes, roots))


def reads_a_file_an_image(data: DataSpec, name: str) -> bool:
    """Whether `check_set` opens a text file for each image of the set: its scene's name, or its label."""
    layout = getattr(data, name).layout
    return layout in dataset_layouts.FILE_A_VIEW or (layout == "webdataset" and name == "evaluation")


def _enough(found: int, least: int, what: str, pointer: str) -> int:
    if found < least:
        raise Problem("too_few_images", f"{found} {what}; at least {least} are needed", pointer=pointer)
    return found
