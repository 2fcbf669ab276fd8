"""Archives of images (zip, tar, tar.gz), read as if their makers meant harm.

A name leads nowhere but below the folder that an archive is unpacked into; nothing but plain files and folders comes out;
what comes out is counted as it comes, whatever the archive says of itself. What no layout reads is passed over.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from app.errors import Problem
from app.references import is_image

Format = Literal["zip", "tar", "tar.gz"]
MAX_ENTRIES = 300_000
"""Some more than SUN RGB-D's own archive has. Python takes about half a gigabyte to list so many."""
MAX_DIRECTORY_BYTES = 64 * 2**20
"""Of a zip archive: 200 bytes for each of so many."""
MAX_HEADER_BYTES = 64 * 2**10
"""Of one entry of a tar archive, extended attributes included."""
MAX_HEADERS_BYTES = 4 * MAX_HEADER_BYTES
"""Of all headers before one entry: tarfile reads maps of sparse files, too, which may be as large as the archive."""
MAX_GLOBAL = 100
MAX_RATIO, SLACK = 200, 64 * 2**20
"""Images do not shrink; text, and images of one colour, may shrink a hundredfold."""
MAX_NAME_BYTES, MAX_PART_BYTES, MAX_DEPTH = 1024, 255, 32
TEXTS = frozenset({".txt", ".csv", ".cls"})
MAX_TEXT_BYTES = 64 * 2**20
"""Of all lists, CSV files, labels and scene names of an archive."""
CHUNK = 1 << 18
MOST_DIGITS = 1024
"""In a row, in an extended header; or more rows whose squares are as much. A path of 255 is one that the disk takes."""
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) [^=\n]{1,512}=")
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ZIP_HEADER = 30
"""Bytes before an entry's name and content, at least."""
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, struct.error, ValueError, OverflowError,
    NotImplementedError, RecursionError,
)  # fmt: skip


def is_read(name: str) -> bool:
    """Whether a layout may read a file of this name."""
    return is_image(name) or is_text(name)


def is_shard(name: str) -> bool:
    """Whether it is a tar file of samples, where it lies among others."""
    return name.lower().endswith(".tar")


def is_text(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in TEXTS


@dataclass
class Names:
    """The names of one set of files: each is checked as it is added. what: of what they are, for a problem."""

    what: str
    pointer: str
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    count: int = 0

    def add(self, name: str, *, folder: bool = False) -> str:
        """The name with single slashes, without `.`. Raises Problem archive_unsafe, archive_bomb."""
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise Problem("archive_bomb", f"{self.what} has more than {MAX_ENTRIES} entries", pointer=self.pointer)
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if (why := _wrong(name, parts)) is not None:
            raise self.unsafe(name, why)
        plain = "/".join(parts)
        if not plain:
            if folder:
                return plain
            raise self.unsafe(name, "it has no name")
        parents = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        if plain in self.files or (plain in self.folders and not folder):
            raise self.unsafe(name, "it is there twice")
        if twice := [parent for parent in parents if parent in self.files]:
            raise self.unsafe(name, f"{twice[0]!r} is a file and a folder")
        self.folders.update(parents)
        if len(self.folders) > MAX_ENTRIES:
            raise Problem("archive_bomb", f"{self.what} has more than {MAX_ENTRIES} folders", pointer=self.pointer)
        (self.folders if folder else self.files).add(plain)
        return plain

    def unsafe(self, name: str, why: str) -> Problem:
        shown = name.encode("utf-8", "backslashreplace").decode()[:200]
        return Problem("archive_unsafe", f"entry {shown!r} of {self.what}: {why}", pointer=self.pointer, entry=shown)


def _wrong(name: str, parts: list[str]) -> str | None:
    if _SURROGATE.search(name):
        return "its name is not UTF-8"
    if _ODD.search(name):
        return "its name holds a backslash or a control character"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "its name is absolute"
    if ".." in parts:
        return "its name leads out of the archive by `..`"
    if (
        len(name.encode()) > MAX_NAME_BYTES
        or len(parts) > MAX_DEPTH
        or any(len(part.encode()) > MAX_PART_BYTES for part in parts)
    ):
        return f"its name is longer than {MAX_NAME_BYTES} bytes, or deeper than {MAX_DEPTH} folders"
    return None


@dataclass
class _Meter:
    """What has come out, against what may."""

    packed: int
    most: int
    pointer: str
    unpacked: int = 0

    def count(self, number: int) -> None:
        """Raises Problem archive_bomb."""
        self.announce(number)
        self.unpacked += number

    def announce(self, number: int) -> None:
        """So many bytes are to come."""
        if self.unpacked + number > self.most:
            raise Problem("archive_bomb", f"it unpacks to more than {self.most} bytes", pointer=self.pointer, limit=self.most)
        if self.unpacked + number > SLACK + MAX_RATIO * self.packed:
            detail = f"{self.packed} bytes that unpack to more than {MAX_RATIO} times as much"
            raise Problem("archive_bomb", detail, pointer=self.pointer)


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Content:
    """The bytes of one entry, a piece at a time."""

    def __init__(self, entry: _Bytes, pointer: str) -> None:
        self._entry, self._pointer = entry, pointer

    def read(self, size: int) -> bytes:
        """At most so many; none: it is at its end. Raises Problem archive_bomb, archive_damaged."""
        with _damage_told(self._pointer):
            return self._entry.read(size)


def format_of(path: Path, pointer: str) -> Format:
    """By its first bytes, whatever its name. Raises Problem empty_file, archive_format."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise Problem("empty_file", "the archive has 0 bytes", pointer=pointer)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head[257:262] == b"ustar":
        return "tar"
    raise Problem("archive_format", f"it begins with {head[:8]!r}, as no zip, tar or tar.gz archive does", pointer=pointer)


def files(path: Path, max_bytes: int, pointer: str) -> Iterator[tuple[str, Content]]:
    """(name, content) of each file that a layout may read, in the archive's order; the content is to be read before the next
    is asked for. To the end, every entry has been checked, and every sum that the archive has of what was read. Raises Problem
    empty_file, archive_format, archive_unsafe, archive_bomb, archive_damaged."""
    format = format_of(path, pointer)
    meter, names = _Meter(path.stat().st_size, max_bytes, pointer), Names("the archive", pointer)
    with _damage_told(pointer):
        for name, content in _zipped(path, meter, names) if format == "zip" else _taped(path, meter, names, format == "tar.gz"):
            yield name, Content(content, pointer)


@contextmanager
def _damage_told(pointer: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise Problem("archive_damaged", f"it cannot be read to its end: {error!s:.200}", pointer=pointer) from error


class Frugal(io.FileIO):
    """A file that refuses to be read in one large piece, or one that is a zip's directory of more than so many entries: zipfile reads
    a directory as large as the archive claims, and makes some 400 bytes of an entry's 46."""

    def __init__(self, path: Path, most: int, entries: int, pointer: str) -> None:
        super().__init__(path)
        self.most, self.entries, self.pointer = most, entries, pointer

    def read(self, size: int | None = -1) -> bytes:
        wanted = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if wanted > self.most:
            detail = f"a directory of {wanted} bytes; at most {self.most} are read"
            raise Problem("archive_bomb", detail, pointer=self.pointer)
        piece = super().read(size)
        if piece.count(b"PK\x01\x02") > self.entries:
            raise Problem("archive_bomb", f"a directory of more than {self.entries} entries", pointer=self.pointer)
        return piece


def _zipped(path: Path, meter: _Meter, names: Names) -> Iterator[tuple[str, _Bytes]]:
    with Frugal(path, MAX_DIRECTORY_BYTES, MAX_ENTRIES, meter.pointer) as raw, zipfile.ZipFile(raw) as archive:
        entries = archive.infolist()
        plain = [names.add(entry.orig_filename, folder=entry.is_dir()) for entry in entries]
        end = 0
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if (why := _wrong_in_zip(entry)) is not None:
                raise names.unsafe(entry.filename, why)
            if entry.header_offset < end:
                raise Problem("archive_bomb", f"entry {entry.filename[:200]!r} lies in another", pointer=meter.pointer)
            end = entry.header_offset + _ZIP_HEADER + entry.compress_size
        read = [(name, entry) for name, entry in zip(plain, entries, strict=True) if not entry.is_dir() and is_read(name)]
        meter.announce(sum(entry.file_size for _, entry in read))
        for name, entry in read:
            with archive.open(entry) as file:
                content = _InZip(file, meter)
                yield name, content
                while content.read(CHUNK):  # to its end, where its checksum is looked at
                    continue


class _InZip:
    def __init__(self, file: IO[bytes], meter: _Meter) -> None:
        self._file, self._meter = file, meter

    def read(self, size: int) -> bytes:
        piece = self._file.read(size)
        self._meter.count(len(piece))
        return piece


def _wrong_in_zip(entry: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is a link" if kind == stat.S_IFLNK else "it is neither a file nor a folder"
    if entry.flag_bits & 1:
        return "it is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is compressed by method {entry.compress_type}; only deflate is read"
    return None


def _taped(path: Path, meter: _Meter, names: Names, zipped: bool) -> Iterator[tuple[str, _Bytes]]:
    # Only what is decompressed can be more than is there.
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if zipped else raw as stream:
        forward = _Forward(stream, meter)
        with tarfile.open(fileobj=forward, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
            while (entry := archive.next()) is not None:
                forward.header_left = MAX_HEADERS_BYTES
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if len(archive.pax_headers) > MAX_GLOBAL:  # each entry takes a copy of them
                    raise Problem("archive_bomb", f"more than {MAX_GLOBAL} attributes of all entries", pointer=meter.pointer)
                name = names.add(entry.name, folder=entry.isdir())
                if (why := _wrong_in_tar(entry)) is not None:
                    raise names.unsafe(entry.name, why)
                meter.announce(entry.size)
                if not entry.isdir() and is_read(name):
                    content = _InTar(forward, entry.size)
                    yield name, content
                    while content.read(CHUNK):
                        continue
        if forward.last != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the mark of its end is missing")
        while forward.content(_Forward.MOST):  # to the end, where gzip's checksum is looked at
            continue


def _wrong_in_tar(entry: tarfile.TarInfo) -> str | None:
    if entry.issym() or entry.islnk():
        return "it is a link"
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or entry.issparse():
        return "it is neither a plain file nor a folder"
    return "its size is negative" if entry.size < 0 else None


class _Header(tarfile.TarInfo):
    """Has the attributes of an extended header looked at before tarfile reads them."""

    def _proc_pax(self, archive: Any) -> Any:
        archive.fileobj.attributes_next = True
        return super()._proc_pax(archive)  # type: ignore[misc]


def _require_records(attributes: bytes, pointer: str) -> None:
    """That they are `length name=value` lines of just that length, up to the padding. tarfile goes by the length and the `=` apart, so
    that 64 KiB become names of 600 MB, and takes seconds, in which no other thread runs, over digits by the thousand (CVE-2024-6232).
    Raises Problem archive_damaged, archive_bomb."""
    at = 0
    while at < len(attributes) and attributes[at]:
        record = _RECORD.match(attributes, at)
        end = at + int(record[1]) if record else 0
        if attributes[end - 1 : end] != b"\n" or not record:
            raise Problem("archive_damaged", f"byte {at} of an extended header is no attribute", pointer=pointer)
        at = end
    if sum(len(digits) ** 2 for digits in re.findall(rb"[0-9]+", attributes)) > MOST_DIGITS**2:
        raise Problem("archive_bomb", "an extended header with very many digits in a row", pointer=pointer)


class _InTar:
    """The bytes after a header."""

    def __init__(self, forward: _Forward, size: int) -> None:
        self._forward, self._left = forward, size

    def read(self, size: int) -> bytes:
        piece = self._forward.content(min(size, self._left, _Forward.MOST))
        if self._left and not piece:
            raise EOFError("an entry is cut off")
        self._left -= len(piece)
        return piece


class _Forward:
    """What tarfile needs of a file: one that is read once, from its beginning to its end, in small pieces."""

    MOST = MAX_HEADER_BYTES

    def __init__(self, stream: IO[bytes], meter: _Meter) -> None:
        self._stream, self._meter, self._at, self.last = stream, meter, 0, b""
        self.header_left = MAX_HEADERS_BYTES
        self.attributes_next = False

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.MOST:
            detail = f"a header of {size} bytes; at most {self.MOST} are read"
            raise Problem("archive_bomb", detail, pointer=self._meter.pointer)
        self.header_left -= size
        if self.header_left < 0:
            raise Problem("archive_bomb", f"headers of more than {MAX_HEADERS_BYTES} bytes", pointer=self._meter.pointer)
        piece = self.content(size)
        if self.attributes_next:
            self.attributes_next = False
            _require_records(piece, self._meter.pointer)
        return piece

    def content(self, size: int) -> bytes:
        """The same, of what is no header."""
        piece = self._stream.read(size)
        self._meter.count(len(piece))
        self._at += len(piece)
        self.last = piece
        return piece

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            raise tarfile.ReadError(f"it leads back from byte {self._at} to byte {position}")
        while self._at < position and self.content(min(position - self._at, self.MOST)):
            continue
        return self._at


def unpack(path: Path, folder: Path, max_bytes: int, pointer: str, going_on: Callable[[int], Any]) -> int:
    """Every file that a layout may read, below the folder, which is new and empty; how many bytes they have. going_on: is told
    of the bytes of each piece before it is written, and raises to end it. Raises Problem as files() does, OSError."""
    written = 0
    for name, content in files(path, max_bytes, pointer):
        place = folder / name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            while piece := content.read(CHUNK):
                going_on(len(piece))
                file.write(piece)
                written += len(piece)
    return written
