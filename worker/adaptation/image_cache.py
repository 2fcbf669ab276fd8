"""Sets of images, decoded once, in one .npy file a column: what later steps map into memory.

A set has one column, or, for pairs, two whose rows belong together: a row is dropped from all if one image of it cannot
be read. Beside the arrays lies a .json with the key of what was read; it is written last, so that it vouches for them.
Decoding is streamed: memory does not grow with the number of images.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.errors import Problem
from app.references import Entry
from worker.adaptation.decoding import UnreadableError, bits_of, decode
from worker.adaptation.resampling import fit, fit_readings
from worker.adaptation.scaling import Range, Readings, measured

VERSION = 4
BROKEN_NAMED = 10
ASPECT_TOLERANCE = 0.02
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's convert("L")


@dataclass(frozen=True)
class Stored:
    """How a column is stored: [channels, height, width] of uint8 or uint16, as `range` says, holes filled."""

    height: int
    width: int
    channels: int
    stretch: bool
    range: Range
    readings: Readings

    @property
    def nbytes(self) -> int:
        """Of one image."""
        return self.height * self.width * self.channels * self.range.bits // 8


@dataclass(frozen=True)
class Prepared:
    """One image as stored; size: its own (width, height); holes: how many of its own pixels had no reading; converted:
    whether bit depth or channels had to be changed; sha256: of the file."""

    array: np.ndarray
    size: tuple[int, int]
    holes: int
    converted: bool
    sha256: bytes


def prepare(entry: Entry, stored: Stored) -> Prepared:
    """Decode, convert, fill and resize one image. Raises UnreadableError."""
    raw = decode(entry.path, entry.encoding)
    h, w, channels = raw.shape
    valid = measured(raw, stored.readings)
    whole = bool(valid.all())
    bits = bits_of(raw)
    if channels == 3 and stored.channels == 1:
        planes = [(raw.astype(np.float32) @ LUMINANCE)]
    else:
        planes = [raw[:, :, c] for c in range(channels)]
    out = []
    for plane in planes:
        if whole and plane.dtype == np.uint8 and stored.range.bits == 8:
            out.append(fit(plane, stored.height, stored.width, stored.stretch))
            continue
        value = _value(np.where(valid, plane, 0).astype(np.float32), bits, stored.range)
        if whole:
            value = fit(value, stored.height, stored.width, stored.stretch)
        else:
            value = fit_readings(value, valid, stored.height, stored.width, stored.stretch)
        out.append(np.clip(np.rint(value), 0, 2**stored.range.bits - 1).astype(np.uint8 if stored.range.bits == 8 else np.uint16))
    array = np.stack(out * (stored.channels // len(out)))
    converted = min(bits, 16) != stored.range.bits or channels != stored.channels
    return Prepared(array, (w, h), int(h * w - valid.sum()), converted, _digest(entry.path))


def _digest(path: Path) -> bytes:
    """Of the file and not of what is stored, whose last bits may differ between machines that take over from each other. Read anew, out
    of the system's cache: a file has no largest size, and Pillow maps plain TIFFs into memory by their names alone."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UnreadableError("it is gone") from error


def _value(plane: np.ndarray, bits: int, range: Range) -> np.ndarray:
    """Readings, float32 [H, W], of so many bits, as they are stored but for the rounding."""
    if range.offset == 0:
        return plane * _factor(bits, range)
    with np.errstate(over="ignore"):  # of readings far outside, which are cut off
        value = (plane * (257 if bits == 8 else 1) - np.float32(range.offset)) * np.float32(range.gain)
    return np.clip(value, 0, 65535)


def _factor(bits: int, range: Range) -> np.float32:
    """Of a reading of so many bits among images stored in others."""
    if bits == 32 or range.gain != 1:
        return np.float32(range.gain / (257 if range.bits == 8 else 1))
    return np.float32({(8, 16): 257.0, (16, 8): 1 / 257}.get((bits, range.bits), 1.0))


def key_of(columns: Sequence[Sequence[Entry]], settings: Any) -> str:
    """A digest of everything that decides what is stored: names, encodings, sizes and times of the files, and the settings
    (JSON)."""
    digest = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True).encode())
    for entries in columns:
        for entry in entries:
            try:
                stat = entry.path.stat()
                state = (entry.name, str(entry.path), entry.encoding, stat.st_size, stat.st_mtime_ns)
            except OSError:
                state = (entry.name, str(entry.path), entry.encoding, -1, -1)
            digest.update(json.dumps(state).encode() + b"\n")
        digest.update(b"--\n")
    return digest.hexdigest()


def recall(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """The record of a set that was stored under this key and is still whole, else None."""
    try:
        record = json.loads((folder / f"{name}.json").read_bytes())
        if record["key"] != key:
            return None
        for column, facts in record["columns"].items():
            if list(open_column(folder, column).shape) != facts["shape"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return record


def open_column(folder: Path, column: str) -> np.memmap:
    """[N, C, H, W] uint8 or uint16, read-only, mapped."""
    return np.load(folder / f"{column}.npy", mmap_mode="r", allow_pickle=False)


def store(
    folder: Path, name: str, key: str, columns: Mapping[str, tuple[Sequence[Entry], Stored]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Decode the columns into `<column>.npy` and write `<name>.json`: the record, which is returned.

    The record has key, facts (as given), dropped (row numbers), askew (rows whose images differ in aspect ratio) and for
    each column names, sha256 (over those of the files), shape, broken, broken_names ("name: why"), smallest and largest (width,
    height), holes, pixels and converted. Raises Problem disk_full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    asides = {column: folder / f".{column}.{os.getpid()}.aside" for column in columns}
    try:
        with ExitStack() as stack:
            files = {column: stack.enter_context(aside.open("w+b")) for column, aside in asides.items()}
            record = {"key": key, "facts": dict(facts), **_fill(files, columns)}
            for column, file in files.items():
                _write_header(file, columns[column][1], len(record["columns"][column]["names"]))
                file.flush()
                os.fsync(file.fileno())
        for column, aside in asides.items():
            aside.replace(folder / f"{column}.npy")
        aside = folder / f".{name}.json.{os.getpid()}.aside"
        asides[""] = aside
        aside.write_text(json.dumps(record), encoding="utf-8")
        aside.replace(folder / f"{name}.json")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = sum(len(entries) * stored.nbytes for entries, stored in columns.values())
            raise Problem("disk_full", f"decoding {name} needs {needed / 1e6:.0f} MB in the cache: {error.strerror}") from error
        raise
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
    return record


def _write_header(file: BinaryIO, stored: Stored, count: int) -> int:
    """The .npy header for so many images; NumPy pads it so that it is as long for any count. Returns its length."""
    file.seek(0)
    dtype = np.dtype(np.uint8 if stored.range.bits == 8 else np.uint16)
    shape = (count, stored.channels, stored.height, stored.width)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _fill(files: Mapping[str, BinaryIO], columns: Mapping[str, tuple[Sequence[Entry], Stored]]) -> dict[str, Any]:
    tallies: dict[str, dict[str, Any]] = {
        column: {
            "names": [], "shape": [0, stored.channels, stored.height, stored.width], "broken": 0, "broken_names": [],
            "smallest": None, "largest": None, "holes": 0, "pixels": 0, "converted": 0, "sha256": "",
        }
        for column, (_, stored) in columns.items()
    }  # fmt: skip
    for column, (_, stored) in columns.items():
        _write_header(files[column], stored, 0)
    dropped, askew = [], 0
    for row, prepared in enumerate(_rows([*columns.values()])):
        for (column, (entries, _)), one in zip(columns.items(), prepared, strict=True):
            if isinstance(one, UnreadableError):
                tally = tallies[column]
                tally["broken"] += 1
                if len(tally["broken_names"]) < BROKEN_NAMED:
                    tally["broken_names"].append(f"{entries[row].name}: {one}")
        good = [one for one in prepared if isinstance(one, Prepared)]
        if len(good) < len(prepared):
            dropped.append(row)
            continue
        for (column, (entries, _)), one in zip(columns.items(), good, strict=True):
            files[column].write(one.array.data)
            _count(tallies[column], entries[row].name, one)
        aspects = [one.size[0] / one.size[1] for one in good]
        askew += max(aspects) > min(aspects) * (1 + ASPECT_TOLERANCE)
    return {"dropped": dropped, "askew": askew, "columns": tallies}


def _count(tally: dict[str, Any], name: str, one: Prepared) -> None:
    tally["names"].append(name)
    tally["sha256"] = hashlib.sha256(tally["sha256"].encode() + one.sha256).hexdigest()
    tally["shape"][0] += 1
    tally["holes"] += one.holes
    tally["pixels"] += one.size[0] * one.size[1]
    tally["converted"] += one.converted
    tally["smallest"] = min(tally["smallest"] or one.size, one.size, key=lambda size: size[0] * size[1])
    tally["largest"] = max(tally["largest"] or one.size, one.size, key=lambda size: size[0] * size[1])


def _rows(columns: Sequence[tuple[Sequence[Entry], Stored]]) -> Iterator[list[Prepared | UnreadableError]]:
    """Every row in order, decoded by a few threads that run a little ahead (Pillow lets them run side by side)."""

    def row(i: int) -> list[Prepared | UnreadableError]:
        found: list[Prepared | UnreadableError] = []
        for entries, stored in columns:
            try:
                found.append(prepare(entries[i], stored))
            except UnreadableError as error:
                found.append(error)
        return found

    workers = min(8, os.cpu_count() or 1)
    ahead: deque[Future[list[Prepared | UnreadableError]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for i in range(len(columns[0][0])):
                ahead.append(pool.submit(row, i))
                if len(ahead) >= 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
