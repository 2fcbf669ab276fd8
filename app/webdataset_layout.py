"""WebDataset's samples: files of one folder whose names are the same up to the first dot (`000017.jpg` and `000017.cls`).

Shards are tar files of such samples; what fetches them unpacks each into a folder of its own, and this layout reads that.
"""

from __future__ import annotations

from collections.abc import Iterator

from app.errors import Problem, few
from app.references import Entry, Tree, folder

MAX_LABEL_BYTES = 1000
LABEL = ".cls"


def images(tree: Tree, uri: str, pointer: str) -> list[Entry]:
    """The one image of each sample. Raises Problem layout_mismatch where one has several, and as Tree.walk does."""
    found: dict[str, Entry] = {}
    for key, _, entry in _images(tree, uri, pointer):
        if (other := found.setdefault(key, entry)) is not entry:
            detail = f"sample {key!r} has several images, {other.name} and {entry.name}; this set takes one of each"
            raise Problem("layout_mismatch", detail, pointer=pointer)
    return list(found.values())


def labelled(tree: Tree, uri: str, pointer: str) -> list[Entry]:
    """The same with what each sample's .cls file holds, None where there is none."""
    return [Entry(one.name, one.path, _label(tree, one, pointer)) for one in images(tree, uri, pointer)]


def pairs(tree: Tree, uri: str, source: str, target: str, pointer: str) -> list[tuple[Entry, Entry]]:
    """(source, target) of each sample that has `key.source.png` or `key.target.png`. Raises Problem pairs_unmatched, and as
    images() does."""
    sides: tuple[dict[str, Entry], dict[str, Entry]] = ({}, {})
    for key, field, entry in _images(tree, uri, pointer):
        for name, side in zip((source, target), sides, strict=True):
            if field == name and side.setdefault(key, entry) is not entry:
                raise Problem("layout_mismatch", f"sample {key!r} has several images of {name!r}", pointer=pointer)
    if lonely := sorted(sides[0].keys() ^ sides[1].keys()):
        detail = f"{len(lonely)} samples have only one of {source!r} and {target!r}: {few(lonely)}"
        raise Problem("pairs_unmatched", detail, pointer=pointer, names=lonely[:20])
    return [(entry, sides[1][key]) for key, entry in sides[0].items()]


def _images(tree: Tree, uri: str, pointer: str) -> Iterator[tuple[str, str, Entry]]:
    """(key, field, image): of `a/17.rgb.png` a/17 and rgb, of `a/17.png` a/17 and nothing."""
    for name, path in tree.walk(folder(tree, uri, pointer), pointer):
        place, _, last = name.rpartition("/")
        stem, *fields = last.split(".")[:-1]
        yield f"{place}/{stem}" if place else stem, ".".join(fields), Entry(name, path)


def _label(tree: Tree, entry: Entry, pointer: str) -> str | None:
    path = entry.path.with_name(entry.path.name.partition(".")[0] + LABEL)
    tree.inside_only(path, path.name, path.parent, pointer)
    return tree.text(path, path.name, MAX_LABEL_BYTES, pointer).strip() if tree.is_file(path) else None
