"""What a reference leads to on this machine: the files and folders below it, and no others.

Everything is hostile here: a link is followed only to where the reader may read, a list can name only what lies below its
own folder, and the listings are bounded. Nothing is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from app.errors import Problem

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
MAX_IMAGES = 2_000_000
"""Of images and, apart, of folders."""
MAX_LIST_BYTES = 256 * 2**20

Encoding = Literal["plain", "rotated"]
"""How a file holds its readings. rotated: 16-bit millimetres whose bits are rotated left by 3, as SUN3D and SUN RGB-D
write depth."""


@dataclass(frozen=True, slots=True)
class Entry:
    """name: path below the reference, with slashes. label: class name in a labelled set, else None."""

    name: str
    path: Path
    label: str | None = None
    encoding: Encoding = "plain"


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


def folder(uri: str, roots: Sequence[Path] | None, pointer: str) -> Path:
    """local_path, if it is a folder. Raises also Problem layout_mismatch."""
    path = local_path(uri, roots, pointer)
    if not path.is_dir():
        raise Problem("layout_mismatch", f"{uri!r} is a file, and this layout needs a folder", pointer=pointer)
    return path


def text_file(uri: str, roots: Sequence[Path] | None, pointer: str) -> tuple[Path, str]:
    """local_path, if it is a text file, and what it holds. Raises also Problem layout_mismatch."""
    path = local_path(uri, roots, pointer)
    if not path.is_file():
        raise Problem("layout_mismatch", f"{uri!r} is a folder, and this layout needs a text file", pointer=pointer)
    return path, text(path, repr(uri), MAX_LIST_BYTES, pointer)


def text(path: Path, name: str, limit: int, pointer: str) -> str:
    """What a UTF-8 file of at most `limit` bytes holds. name: as the problem is to call it. Raises Problem
    layout_mismatch, reference_unreadable."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise Problem("layout_mismatch", f"{name} is larger than {limit} bytes", pointer=pointer)
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise Problem("reference_unreadable", f"{name}: {error.strerror}", pointer=pointer) from error
    except UnicodeDecodeError as error:
        raise Problem("layout_mismatch", f"{name} is not UTF-8 text", pointer=pointer) from error


def walk(
    folder: Path, roots: Sequence[Path] | None, pointer: str, passed_over: Collection[str] = ()
) -> Iterator[tuple[str, Path]]:
    """Every image below the folder, as (name, path), by name. Linked folders are not entered, nor those whose name is
    passed over; a linked file is taken if it leads to where the reader may read. Raises Problem layout_mismatch,
    reference_outside_roots, reference_unreadable."""
    images = folders = 0
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
                if entry.name not in passed_over:
                    deeper.append((Path(entry.path), name + "/"))
            elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
                path = Path(entry.path)
                if entry.is_symlink():
                    inside_only(path, name, folder, roots, pointer)
                images += 1
                yield name, path
        folders += len(deeper)
        if max(images, folders) > MAX_IMAGES:
            raise Problem("layout_mismatch", f"more than {MAX_IMAGES} images or folders", pointer=pointer)
        stack.extend(reversed(deeper))


def inside_only(path: Path, name: str, folder: Path, roots: Sequence[Path] | None, pointer: str) -> None:
    """Raises Problem reference_outside_roots if a link below the folder leads to where the reader may not read."""
    if not within(path.resolve(), roots if roots is not None else [folder]):
        raise Problem("reference_outside_roots", f"{name!r} is a link that leads out of the data", pointer=pointer)


def below(base: Path, name: str, roots: Sequence[Path] | None, line: int, pointer: str) -> Path:
    """A file that a list names: below the list's folder, or, with roots None, anywhere. Raises Problem
    reference_outside_roots, reference_missing."""
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
