"""The names of what lies elsewhere, and its lists and CSV files: a tree that layouts are checked on before anything is
fetched."""

from __future__ import annotations

import gzip
import json
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath

from app import archives
from app.errors import Problem
from app.references import decoded, is_image, is_plain
from app.remote import parse


class Listing:
    """A Tree. texts: name -> content of each file, None of an image. A path is relative to the reference's own root. read:
    (name, bytes at most) -> content of a list or CSV file that is not in texts."""

    def __init__(self, texts: Mapping[str, bytes | None], read: Callable[[str, int], bytes] | None = None) -> None:
        self.texts, self._read = texts, read
        self._names = sorted(texts, key=lambda name: name.split("/"))
        self._keys = [name.split("/") for name in self._names]

    def find(self, uri: str, pointer: str) -> PurePosixPath:
        path = PurePosixPath(parse(uri, pointer).inner)
        if not self.is_file(path) and not self.is_folder(path):
            tops = sorted({name.partition("/")[0] for name in self._names})
            there = ", ".join(tops[:10]) + (" and more" if len(tops) > 10 else "")
            raise Problem("reference_missing", f"{uri!r} is not there; at its top are {there}", pointer=pointer)
        return path

    def is_file(self, path: PurePath) -> bool:
        return path.as_posix() in self.texts

    def is_folder(self, path: PurePath) -> bool:
        return next(iter(self._below(path)), None) is not None

    def subfolder(self, folder: PurePath, name: str, pointer: str) -> PurePath | None:
        return folder / name if self.is_folder(folder / name) else None

    def text(self, path: PurePath, name: str, limit: int, pointer: str) -> str:
        if (raw := self.texts[path.as_posix()]) is None and self._read is not None and archives.is_text(path.name):
            raw = self._read(path.as_posix(), limit + 1)
        if raw is None:
            raise Problem("layout_mismatch", f"{name} is an image, and this layout needs a text file", pointer=pointer)
        return decoded(raw, name, limit, pointer)

    def walk(self, folder: PurePath, pointer: str, passed_over: Collection[str] = ()) -> Iterator[tuple[str, PurePath]]:
        """Files of a folder before those of its folders, as a disk is walked."""
        found, skipped = [], frozenset(passed_over)
        for parts in self._below(folder):
            here = parts[len(folder.parts) :]
            if is_image(parts[-1]) and not any(part.startswith(".") for part in here) and skipped.isdisjoint(here[:-1]):
                found.append(here)
        for here in sorted(found, key=lambda here: [*((True, part) for part in here[:-1]), (False, here[-1])]):
            yield "/".join(here), folder.joinpath(*here)

    def below(self, base: PurePath, name: str, line: int, pointer: str) -> PurePath:
        path, said = base / name, f"line {line}: {name[:300]!r}"
        if not is_plain(name):
            raise Problem("reference_outside_roots", f"{said} must be relative, without '..'", pointer=pointer)
        if not self.is_file(path):
            raise Problem("reference_missing", f"{said} does not exist", pointer=pointer)
        return path

    def inside_only(self, path: PurePath, name: str, folder: PurePath, pointer: str) -> None:
        """No link is among them."""

    def _below(self, folder: PurePath) -> Iterator[list[str]]:
        prefix = list(folder.parts)
        for place in range(bisect_left(self._keys, prefix), len(self._keys)):
            parts = self._keys[place]
            if parts[: len(prefix)] != prefix:
                return
            if len(parts) > len(prefix):
                yield parts

    def packed(self) -> bytes:
        """As unpacked() reads it: one JSON line for each file, gzipped."""
        rows = ([name] if text is None else [name, text.decode("latin-1")] for name, text in self.texts.items())
        return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), compresslevel=6, mtime=0)


def unpacked(pieces: Iterable[bytes]) -> Listing:
    rows = (json.loads(line) for line in gzip.decompress(b"".join(pieces)).splitlines())
    return Listing({row[0]: row[1].encode("latin-1") if len(row) > 1 else None for row in rows})


def of_archive(path: Path, max_bytes: int, pointer: str) -> tuple[Listing, int]:
    """The listing of an archive that is read to its end, and how many bytes its files have unpacked. Raises Problem as
    app.archives.files does, and no_images."""
    texts: dict[str, bytes | None] = {}
    size = in_texts = 0
    for name, content in archives.files(path, max_bytes, pointer):
        kept = bytearray()
        while piece := content.read(archives.CHUNK):
            size += len(piece)
            if archives.is_text(name):
                kept += piece
                in_texts += len(piece)
                if in_texts > archives.MAX_TEXT_BYTES:
                    detail = f"its .txt and .csv files have more than {archives.MAX_TEXT_BYTES} bytes"
                    raise Problem("archive_bomb", detail, pointer=pointer)
        texts[name] = bytes(kept) if archives.is_text(name) else None
    if not any(is_image(name) for name in texts):
        raise Problem("no_images", "the archive holds no image", pointer=pointer)
    return Listing(texts), size
