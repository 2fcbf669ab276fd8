"""Which images a reference names, in which order: listing alone, nothing is decoded.

The front end checks a request with it and the engine reads with it, so both see the same files. Entries are sorted by
name. Everything is hostile here: a link is followed only to where the reader may read, a list can name only what lies
below its own folder, and the listings are bounded.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from app.errors import Problem, few
from app.spec import DataSpec, ImagesReference, PairsReference

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
MAX_IMAGES = 2_000_000
MAX_LIST_BYTES = 256 * 2**20
MIN_TARGET_IMAGES = 8
MIN_PAIRS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """name: path below the reference, with slashes. label: class name in a labelled set, else None."""

    name: str
    path: Path
    label: str | None = None


def local_path(uri: str, roots: Sequence[Path] | None, pointer: str) -> Path:
    """The real path of a file:// URI or a plain path. roots: folders that it must lie below after links are resolved;
    None: anywhere. Raises Problem reference_scheme, reference_outside_roots, reference_missing, reference_unreadable."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost") or "\0" in uri:
        raise Problem("reference_scheme", f"{uri!r} is not a file:// URI of this machine", pointer=pointer)
    raw = unquote(parts.path) if parts.scheme else uri
    if "\0" in raw:
        raise Problem("reference_scheme", f"{uri!r} holds a null byte", pointer=pointer)
    if roots is not None and (not raw.startswith("/") or ".." in PurePosixPath(raw).parts):
        raise Problem("reference_outside_roots", f"{uri!r} must be an absolute path without '..'", pointer=pointer)
    try:
        # Before anything else is said of it: whether a path outside the roots exists is nobody's business.
        real = Path(raw).resolve(strict=False)
        if roots is not None and not within(real, roots):
            raise Problem("reference_outside_roots", f"{uri!r} does not lie below a folder that may be read", pointer=pointer)
        if not real.exists():
            raise Problem("reference_missing", f"{uri!r} does not exist", pointer=pointer)
    except (OSError, RuntimeError) as error:
        raise Problem("reference_unreadable", f"{uri!r}: {error}", pointer=pointer) from error
    return real


def within(real: Path, roots: Sequence[Path]) -> bool:
    """Whether a resolved path is one of the roots or lies below one."""
    return any(real.is_relative_to(root.resolve()) for root in roots)


def _walk(folder: Path, roots: Sequence[Path] | None, pointer: str) -> Iterator[tuple[str, Path]]:
    """Every image below the folder, as (name, path), by name. Linked folders are not entered; a linked file is taken if
    it leads to where the reader may read."""
    found = 0
    stack = [(folder, "")]
    while stack:
        place, prefix = stack.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise Problem("reference_unreadable", f"{prefix or place.name}: {error.strerror}", pointer=pointer) from error
        deeper = []
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                deeper.append((Path(entry.path), name + "/"))
            elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
                path = Path(entry.path)
                if entry.is_symlink() and not within(path.resolve(), roots if roots is not None else [folder]):
                    raise Problem("reference_outside_roots", f"{name!r} is a link that leads out of the data", pointer=pointer)
                found += 1
                if found > MAX_IMAGES:
                    raise Problem("layout_mismatch", f"more than {MAX_IMAGES} images", pointer=pointer)
                yield name, path
        stack.extend(reversed(deeper))


def _folder(uri: str, roots: Sequence[Path] | None, pointer: str) -> Path:
    path = local_path(uri, roots, pointer)
    if not path.is_dir():
        raise Problem("layout_mismatch", f"{uri!r} is a file, and this layout needs a folder", pointer=pointer)
    return path


def _text_file(uri: str, roots: Sequence[Path] | None, pointer: str) -> tuple[Path, str]:
    path = local_path(uri, roots, pointer)
    if not path.is_file():
        raise Problem("layout_mismatch", f"{uri!r} is a folder, and this layout needs a text file", pointer=pointer)
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise Problem("layout_mismatch", f"{uri!r} is larger than {MAX_LIST_BYTES} bytes", pointer=pointer)
        return path, path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Problem("reference_unreadable", f"{uri!r}: {error.strerror}", pointer=pointer) from error
    except UnicodeDecodeError as error:
        raise Problem("layout_mismatch", f"{uri!r} is not UTF-8 text", pointer=pointer) from error


def _below(base: Path, name: str, roots: Sequence[Path] | None, line: int, pointer: str) -> Path:
    """A file that a list names: below the list's folder, or, with roots None, anywhere."""
    path = base / name
    if roots is not None and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
        raise Problem("reference_outside_roots", f"line {line}: {name!r} must be relative, without '..'", pointer=pointer)
    if roots is not None and not within(path.resolve(), roots):
        raise Problem(
            "reference_outside_roots", f"line {line}: {name!r} leads out of the folders that may be read", pointer=pointer
        )
    if not path.is_file():
        raise Problem("reference_missing", f"line {line}: {name!r} does not exist", pointer=pointer)
    return path


def _listed(uri: str, roots: Sequence[Path] | None, pointer: str) -> list[Entry]:
    """The lines of a SHOT/SOCKET list, `path label`; the label, a class name or number, is the last word if the whole
    line is not itself a file."""
    path, text = _text_file(uri, roots, pointer)
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, label = line, None
        if os.path.splitext(line)[1].lower() not in ENDINGS:
            name, _, label = line.rpartition(" ")
        if not name.strip():
            raise Problem("layout_mismatch", f"line {number}: {line[:80]!r} is not `path` or `path label`", pointer=pointer)
        name = name.strip()
        entries.append(Entry(name, _below(path.parent, name, roots, number, pointer), label))
        if len(entries) > MAX_IMAGES:
            raise Problem("layout_mismatch", f"more than {MAX_IMAGES} images", pointer=pointer)
    return entries


def images(reference: ImagesReference, roots: Sequence[Path] | None = None, pointer: str = "/data/target/uri") -> list[Entry]:
    """The images of an unlabelled set; labels and class folders, if there are any, are dropped here, so that nothing
    behind can look at them. Raises Problem, also no_images."""
    if reference.layout == "list":
        found = [Entry(entry.name, entry.path) for entry in _listed(reference.uri, roots, pointer)]
    else:
        found = [Entry(name, path) for name, path in _walk(_folder(reference.uri, roots, pointer), roots, pointer)]
    if not found:
        raise Problem("no_images", f"{reference.uri!r} holds no file that ends in {', '.join(sorted(ENDINGS))}", pointer=pointer)
    return found


def labelled(
    reference: ImagesReference, classes: Sequence[str], roots: Sequence[Path] | None = None, pointer: str = "/data/evaluation/uri"
) -> list[Entry]:
    """The images of a labelled set, each with a class name of `classes`. A class without images is fine; a class that
    the model does not know is Problem unknown_class."""
    if reference.layout == "list":
        found = [
            Entry(entry.name, entry.path, classes[int(entry.label)] if _is_index(entry.label, classes) else entry.label)
            for entry in _listed(reference.uri, roots, pointer)
        ]
    else:
        folder = _folder(reference.uri, roots, pointer)
        found = [
            Entry(name, path, name.split("/", 1)[0] if "/" in name else None) for name, path in _walk(folder, roots, pointer)
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
            classes=unknown[:20],
        )
    return found


def _is_index(label: str | None, classes: Sequence[str]) -> bool:
    return label is not None and label not in classes and label.isascii() and label.isdigit() and int(label) < len(classes)


def pairs(
    reference: PairsReference, roots: Sequence[Path] | None = None, pointer: str = "/data/pairs/uri"
) -> list[tuple[Entry, Entry]]:
    """(source, target) entries. Every image must have its partner: Problem pairs_unmatched names those without."""
    path = local_path(reference.uri, roots, pointer)
    if path.is_file():
        found = list(_manifest(reference, roots, pointer))
    else:
        sides = []
        for side in (reference.source, reference.target):
            if not (path / side).is_dir():
                raise Problem("layout_mismatch", f"{reference.uri!r} has no folder {side!r}", pointer=pointer)
            folder = _folder(str(path / side), roots, pointer)
            by_stem: dict[str, Entry] = {}
            for name, file in _walk(folder, roots, pointer):
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


def _manifest(reference: PairsReference, roots: Sequence[Path] | None, pointer: str) -> Iterator[tuple[Entry, Entry]]:
    path, text = _text_file(reference.uri, roots, pointer)
    try:
        rows = csv.DictReader(text.splitlines(), strict=True)
        if missing := [side for side in (reference.source, reference.target) if side not in (rows.fieldnames or [])]:
            raise Problem(
                "layout_mismatch", f"the CSV has no column {', '.join(missing)}; it has {rows.fieldnames}", pointer=pointer
            )
        for row in rows:
            names = [(row[side] or "").strip() for side in (reference.source, reference.target)]
            if not all(names):
                raise Problem("pairs_unmatched", f"line {rows.line_num}: one of the two paths is empty", pointer=pointer)
            source, target = (Entry(name, _below(path.parent, name, roots, rows.line_num, pointer)) for name in names)
            yield source, target
    except csv.Error as error:
        raise Problem("layout_mismatch", f"{reference.uri!r} is not CSV: {error}", pointer=pointer) from error


def check(data: DataSpec, classes: Sequence[str], roots: Sequence[Path] | None) -> dict[str, int]:
    """All that can be said of a job's data without decoding an image: counts by set. Raises Problem."""
    counts = {"target": len(images(data.target, roots))}
    if counts["target"] < MIN_TARGET_IMAGES:
        raise Problem(
            "too_few_images",
            f"{counts['target']} target images; at least {MIN_TARGET_IMAGES} are needed",
            pointer="/data/target/uri",
        )
    if data.pairs is not None:
        counts["pairs"] = len(pairs(data.pairs, roots))
        if counts["pairs"] < MIN_PAIRS:
            raise Problem(
                "too_few_images", f"{counts['pairs']} pairs; at least {MIN_PAIRS} are needed", pointer="/data/pairs/uri"
            )
    if data.evaluation is not None:
        counts["evaluation"] = len(labelled(data.evaluation, classes, roots))
    return counts
