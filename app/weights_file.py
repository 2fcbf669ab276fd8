"""What a file of weights is, told without torch and without running anything of it.

The front end looks so at an upload, which is refused at once and not by the job hours later; the engine, before it reads a file with
torch's own guard (weights_only). The work is bounded whatever the file claims: no read is longer than MAX_READ_BYTES.
"""

from __future__ import annotations

import errno
import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal

from app import pickle_scan
from app.archives import Frugal
from app.errors import Problem, few

POINTER = "/source_model"
MAX_READ_BYTES = 8 * 2**20
"""Of a header, directory or pickle: some fifty times what a classifier of a thousand tensors needs."""
MAX_ENTRIES = 20_000
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def inspect(path: Path) -> Literal["safetensors", "torch"]:
    """The file's format. Raises Problem empty_file, source_model_format, source_model_truncated, unsafe_pickle,
    archive_bomb."""
    size = path.stat().st_size
    if size == 0:
        raise Problem("empty_file", "the file of the source model has 0 bytes", pointer=POINTER)
    with Frugal(path, MAX_READ_BYTES, MAX_ENTRIES, POINTER) as file:
        head = file.read(9)
        file.seek(0)
        # First of all: the length of a safetensors header may have the bytes that a zip archive or a pickle begins with.
        if head[4:] == b"\0\0\0\0{":
            _safetensors(file, size)
            return "safetensors"
        if head.startswith(b"PK"):
            _archive(file, size)
            return "torch"
        if head.startswith(b"\x80"):
            pickle_scan.legacy_file(file.read(min(size, MAX_READ_BYTES)), whole=size <= MAX_READ_BYTES)
            return "torch"
        pickle_scan.refuse_ancient(file.read(min(size, 2**16)))
    raise _format(f"the file starts with {head!r}")


def _safetensors(file: io.FileIO, size: int) -> None:
    header_bytes = struct.unpack("<Q", file.read(8))[0]
    if header_bytes > MAX_READ_BYTES:
        raise _format(f"a safetensors header of {header_bytes} bytes; at most {MAX_READ_BYTES} are read")
    if size < 8 + header_bytes:
        raise _truncated(f"the header says {header_bytes} bytes; {size - 8} are there")
    try:
        header = json.loads(file.read(header_bytes), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise _format(f"the safetensors header cannot be read: {error!s:.200}") from error
    if not isinstance(header, dict):
        raise _format("the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _format("the safetensors header's __metadata__ is not an object of texts")
    if not header:
        raise _format("the safetensors file holds no tensors")
    end = 0
    for begin, stop, name in sorted(_extent(name, entry) for name, entry in header.items()):
        if begin != end:
            raise _format(f"tensor {name[:200]!r} begins at byte {begin} of the data, where {end} was expected")
        end = stop
    if size < 8 + header_bytes + end:
        raise _truncated(f"the tensors need {8 + header_bytes + end} bytes; the file has {size}")
    if size > 8 + header_bytes + end:
        raise _format(f"{size - 8 - header_bytes - end} bytes follow the last tensor")


def _no_name_twice(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(members)
    if len(made) < len(members):
        raise ValueError("a name is there twice")
    return made


def _extent(name: str, entry: Any) -> tuple[int, int, str]:
    """(begin, end, name) of a tensor, which fits its dtype and shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _format(f"tensor {name[:200]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise _format(f"tensor {name[:200]!r} has dtype {str(dtype)[:40]!r}; known: {', '.join(_DTYPE_BYTES)}")
    if not _counts(shape, 64) or not _counts(offsets, 2) or len(offsets) != 2:
        raise _format(f"tensor {name[:200]!r} has no valid shape and data_offsets")
    begin, end = offsets
    if end - begin != _DTYPE_BYTES[dtype] * math.prod(shape):
        raise _format(f"tensor {name[:200]!r} of {dtype} {shape[:8]} has {end - begin} bytes")
    return begin, end, name


def _counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(one) is int and 0 <= one < 2**63 for one in value)


def _archive(file: io.FileIO, size: int) -> None:
    """A zip as torch.save writes it: every entry stored as it is and once, below one folder, the pickle in data.pkl."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _count(entries)
            top = entries[0].filename.partition("/")[0]
            names = [entry.filename for entry in entries]
            # torch's reader matches names without their case: what differs by case alone is one name to it.
            if len({name.casefold() for name in names}) < len(names):
                raise _format("the archive names an entry twice")
            if f"{top}/data.pkl" not in names or any(not name.startswith(top + "/") for name in names):
                raise _format("a zip archive that torch.save did not write: it has no data.pkl")
            if f"{top}/constants.pkl" in names:
                raise Problem("unsafe_pickle", "the file is a TorchScript program", pointer=POINTER)
            _require_stored(entries, size)
            if (length := archive.getinfo(f"{top}/data.pkl").file_size) > MAX_READ_BYTES:
                raise _format(f"a pickle of {length} bytes; at most {MAX_READ_BYTES} are read")
            pickle_scan.state_dict(archive.read(f"{top}/data.pkl"))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OverflowError, struct.error) as error:
        raise _truncated(f"the archive cannot be read to its end: {error!s:.200}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _truncated("the archive names a place before its beginning") from error


def _count(entries: list[zipfile.ZipInfo]) -> None:
    if not entries:
        raise _format("the archive is empty")
    if len(entries) > MAX_ENTRIES:
        raise Problem("archive_bomb", f"{len(entries)} entries; at most {MAX_ENTRIES} are read", pointer=POINTER)


def _require_stored(entries: list[zipfile.ZipInfo], size: int) -> None:
    if (unpacked := sum(max(entry.file_size, entry.compress_size) for entry in entries)) > size:
        raise Problem("archive_bomb", f"{size} bytes that would unpack to {unpacked}", pointer=POINTER)
    if packed := [entry.filename[:200] for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        raise Problem("archive_bomb", f"compressed entries, which torch.save never writes: {few(packed)}", pointer=POINTER)
    if locked := [entry.filename[:200] for entry in entries if entry.flag_bits & 1]:
        raise _format(f"encrypted entries: {few(locked)}")


def _format(detail: str) -> Problem:
    return Problem("source_model_format", detail, pointer=POINTER)


def _truncated(detail: str) -> Problem:
    return Problem("source_model_truncated", detail, pointer=POINTER)
