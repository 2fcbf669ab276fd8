"""What a reference leads to: the files and folders below it, and no others.

Everything is hostile here: a link is followed only to where the reader may read, a list can name only what lies below its
own folder, and the listings are bounded. Nothing is decoded. Layouts ask a Tree: Disk is this machine's, and a
app.listing.Listing stands for what lies elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal, Protocol
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
    """name: path below the reference, with slashes. path: of the tree that was listed. label: class name in a labelled set,
    else None."""

    name: str
    path: Any
    label: str | None = None
    encoding: Encoding = "plain"


class Tree(Protocol):
    """What layouts may ask of the place that references lead to. A path is one that the tree has given, or one below it."""

    def find(self, uri: str, pointer: str) -> PurePath:
        """Where it leads. Raises Problem reference_scheme, reference_outside_roots, reference_missing, reference_unreadable."""

    def is_file(self, path: PurePath) -> bool: ...

    def is_folder(self, path: PurePath) -> bool: ...

    def subfolder(self, folder: PurePath, name: str, pointer: str) -> PurePath | None:
        """The folder of that name in it. None: there is none. Raises Problem reference_outside_roots."""

    def text(self, path: PurePath, name: str, limit: int, pointer: str) -> str:
        """What a UTF-8 file of at most `limit` bytes holds. name: as the problem is to call it. Raises Problem
        layout_mismatch, reference_unreadable."""

    def walk(self, folder: PurePath, pointer: str, passed_over: Collection[str] = ()) -> Iterator[tuple[str, PurePath]]:
        """Every image below the folder, as (name, path), by name. Names that begin with a dot, and folders whose name is
        passed over, are left out. Raises Problem layout_mismatch, reference_outside_roots, reference_unreadable."""

    def below(self, base: PurePath, name: str, line: int, pointer: str) -> PurePath:
        """A file that a list names: below the list's folder. Raises Problem reference_outside_roots, reference_missing."""

    def inside_only(self, path: PurePath, name: str, folder: PurePath, pointer: str) -> None:
        """Raises Problem reference_outside_roots if a link below the folder leads to where the reader may not read."""


Roots = Sequence[Path] | None
"""Folders that what is read must lie below after links are resolved; None: anywhere."""


def tree(where: Roots | Tree) -> Tree:
    """This machine's disk below the roots, unless it is a tree already."""
    return Disk(where) if where is None or isinstance(where, Sequence) else where


def folder(tree: Tree, uri: str, pointer: str) -> PurePath:
    """tree.find, if it is a folder. Raises also Problem layout_mismatch."""
    path = tree.find(uri, pointer)
    if not tree.is_folder(path):
        raise Problem("layout_mismatch", f"{uri!r} is a file, and this layout needs a folder", pointer=pointer)
    return path


def text_file(tree: Tree, uri: str, pointer: str) -> tuple[PurePath, str]:
    """tree.find, if it is a text file, and what it holds. Raises also Problem layout_mismatch."""
    path = tree.find(uri, pointer)
    if not tree.is_file(path):
        raise Problem("layout_mismatch", f"{uri!r} is a folder, and this layout needs a text file", pointer=pointer)
    return path, tree.text(path, repr(uri), MAX_LIST_BYTES, pointer)


def decoded(raw: bytes, name: str, limit: int, pointer: str) -> str:
    """Of what Tree.text has read, one byte more than the limit at most."""
    if len(raw) > limit:
        raise Problem("layout_mismatch", f"{name} is larger than {limit} bytes", pointer=pointer)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem("layout_mismatch", f"{name} is not UTF-8 text", pointer=pointer) from error


class Disk:
    """This machine's, below the roots: what file:// URIs and plain paths name. A Tree."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots

    def find(self, uri: str, pointer: str) -> Path:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise Problem("reference_scheme", f"{uri!r} is not a URI: {error}", pointer=pointer) from error
        if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost") or "\0" in uri:
            raise Problem("reference_scheme", f"{uri!r} is not a file:// URI of this machine", pointer=pointer)
        raw = unquote(parts.path) if parts.scheme else uri
        if "\0" in raw:
            raise Problem("reference_scheme", f"{uri!r} holds a null byte", pointer=pointer)
        if self.roots is not None and (not raw.startswith("/") or ".." in PurePosixPath(raw).parts):
            raise Problem("reference_outside_roots", f"{uri!r} must be an absolute path without '..'", pointer=pointer)
        try:
            # Before anything else is said of it: whether a path outside the roots exists is nobody's business.
            real = Path(raw).resolve(strict=False)
            if self.roots is not None and not _within(real, self.roots):
                raise Problem("reference_outside_roots", f"{uri!r} does not lie below a folder that may be read", pointer=pointer)
            if not real.exists():
                raise Problem("reference_missing", f"{uri!r} does not exist", pointer=pointer)
        except (OSError, RuntimeError) as error:
            raise Problem("reference_unreadable", f"{uri!r}: {error}", pointer=pointer) from error
        return real

    def is_file(self, path: Path) -> bool:
        return path.is_file()

    def is_folder(self, path: Path) -> bool:
        return path.is_dir()

    def subfolder(self, folder: Path, name: str, pointer: str) -> Path | None:
        real = (folder / name).resolve()
        if self.roots is not None and not _within(real, self.roots):
            raise Problem("reference_outside_roots", f"{name!r} is a link that leads out of the data", pointer=pointer)
        return real if real.is_dir() else None

    def text(self, path: Path, name: str, limit: int, pointer: str) -> str:
        try:
            with path.open("rb") as file:
                raw = file.read(limit + 1)
        except OSError as error:
            raise Problem("reference_unreadable", f"{name}: {error.strerror}", pointer=pointer) from error
        return decoded(raw, name, limit, pointer)

    def walk(self, folder: Path, pointer: str, passed_over: Collection[str] = ()) -> Iterator[tuple[str, Path]]:
        """Linked folders are not entered; a linked file is taken if it leads to where the reader may read."""
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
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in passed_over:
                        deeper.append((Path(entry.path), name + "/"))
                elif is_image(entry.name):
                    path = Path(entry.path)
                    if entry.is_symlink():
                        self.inside_only(path, name, folder, pointer)
                    images += 1
                    yield name, path
            folders += len(deeper)
            if max(images, folders) > MAX_IMAGES:
                raise Problem("layout_mismatch", f"more than {MAX_IMAGES} images or folders", pointer=pointer)
            stack.extend(reversed(deeper))

    def inside_only(self, path: Path, name: str, folder: Path, pointer: str) -> None:
        if path.is_symlink() and not _within(path.resolve(), self.roots if self.roots is not None else [folder]):
            raise Problem("reference_outside_roots", f"{name!r} is a link that leads out of the data", pointer=pointer)

    def below(self, base: Path, name: str, line: int, pointer: str) -> Path:
        path, said = base / name, f"line {line}: {name[:300]!r}"
        if self.roots is not None and not is_plain(name):
            raise Problem("reference_outside_roots", f"{said} must be relative, without '..'", pointer=pointer)
        try:
            if self.roots is not None and not _within(path.resolve(), self.roots):
                raise Problem("reference_outside_roots", f"{said} leads out of the folders that may be read", pointer=pointer)
            if not path.is_file():
                raise Problem("reference_missing", f"{said} does not exist", pointer=pointer)
        except ValueError as error:  # a null character: no file has one in its name
            raise Problem("reference_missing", f"{said} does not exist", pointer=pointer) from error
        except (OSError, RuntimeError) as error:  # such as a name that is too long, or links in a circle
            raise Problem(
                "reference_unreadable", f"{said}: {getattr(error, 'strerror', None) or error}", pointer=pointer
            ) from error
        return path


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS


def is_hidden(name: str) -> bool:
    """Whether it, or a folder on its way, has a name that begins with a dot: no folder's images are those."""
    return any(part.startswith(".") for part in name.split("/"))


def is_plain(name: str) -> bool:
    """Relative, and without `..`."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _within(real: Path, roots: Sequence[Path]) -> bool:
    """Whether a resolved path is one of the roots or lies below one."""
    return any(real.is_relative_to(root.resolve()) for root in roots)


def shown(uri: str) -> str:
    """For reports and logs, which are passed on: without the query of an https URI, in which a signature may be."""
    return re.sub(r"\?[^#]*", "?...", uri, count=1) if uri.lower().startswith("https://") else uri
