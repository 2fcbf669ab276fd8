"""Reads the tensors of an untrusted file: safetensors, or a state_dict that torch reads with weights_only.

What kind of file it is, is told by its first bytes. Nothing is unpickled but by torch's weights_only reader, and an
archive is measured before torch sees it.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.errors import Problem, few

POINTER = "/source_model"
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")
PARTS = ("netF", "netB", "netC")
"""The three networks of SHOT, which may lie in one file as three dicts, by these names or as F, B and C."""
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by name, on the CPU, in the file's dtypes, memory-mapped where the format allows it.

    One level of {"state_dict": ...}, {"model": ...} or {"model_state_dict": ...} is unwrapped, and a prefix that every
    name has ("module." of DataParallel, "_orig_mod." of torch.compile) removed. {"netF": {...}, "netB": {...}, "netC": {...}}
    becomes names that begin with "netF.", "netB." and "netC.". Raises Problem empty_file, source_model_format,
    source_model_truncated, unsafe_pickle, archive_bomb, reference_missing, reference_unreadable.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError as error:
        raise Problem("reference_missing", f"{path.name!r} does not exist", pointer=POINTER) from error
    except OSError as error:
        raise Problem("reference_unreadable", f"{path.name!r}: {error.strerror}", pointer=POINTER) from error
    if size == 0:
        raise Problem("empty_file", "the file of the source model has 0 bytes", pointer=POINTER)
    # First of all: the length of a safetensors header may have the bytes that a zip archive or a pickle begins with.
    if len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER_BYTES:
        return _tensors(_safetensors(path, size, struct.unpack("<Q", head[:8])[0]))
    if head.startswith(b"PK"):
        _measure_archive(path, size)
        return _tensors(_torch_load(path, mmap=True))
    if head.startswith(b"\x80"):
        return _tensors(_torch_load(path, mmap=False))
    raise _other(path)


def _safetensors(path: Path, size: int, header_bytes: int) -> dict[str, Tensor]:
    if size < 8 + header_bytes:
        raise Problem("source_model_truncated", f"the header says {header_bytes} bytes; {size - 8} are there", pointer=POINTER)
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + header_bytes + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Problem("source_model_format", f"the safetensors header cannot be read: {error!r:.200}", pointer=POINTER) from error
    if size < needed:
        raise Problem("source_model_truncated", f"the tensors need {needed} bytes; the file has {size}", pointer=POINTER)
    try:
        return load_file(path, device="cpu")
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise Problem("source_model_format", f"not valid safetensors: {error!s:.200}", pointer=POINTER) from error


def _measure_archive(path: Path, size: int) -> None:
    """torch.save stores its entries uncompressed and each once, so they sum to less than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise Problem("source_model_truncated", f"the archive cannot be read to its end: {error}", pointer=POINTER) from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise Problem("archive_bomb", f"{size} bytes that would unpack to {unpacked}", pointer=POINTER)
    if packed := [entry.filename[:200] for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        raise Problem("archive_bomb", f"compressed entries, which torch.save never writes: {few(packed)}", pointer=POINTER)
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise Problem("source_model_format", "a zip archive that torch.save did not write: it has no data.pkl", pointer=POINTER)


def _torch_load(path: Path, mmap: bool) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols and TorchScript archives that it then refuses, or reads all the same.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise Problem("source_model_truncated", "the file ends inside its pickle", pointer=POINTER) from error
        asked = next((line.strip() for line in str(error).splitlines() if "Unsupported" in line), "more than tensors")
        raise Problem(
            "unsafe_pickle", f"the pickle asks for what a state_dict never needs: {asked[:300]}", pointer=POINTER
        ) from error
    except EOFError as error:
        raise Problem("source_model_truncated", "the file ends too early", pointer=POINTER) from error
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
        OSError,
        struct.error,
    ) as error:
        text = str(error)
        if "TorchScript" in text:
            raise Problem("unsafe_pickle", "the file is a TorchScript program", pointer=POINTER) from error
        if any(word in text for word in ("unexpected EOF", "PytorchStreamReader", "out of bounds", "unexpected pos")):
            raise Problem("source_model_truncated", f"the file is damaged: {text[:200]}", pointer=POINTER) from error
        raise Problem("source_model_format", f"torch cannot read it: {text[:200]}", pointer=POINTER) from error


def _other(path: Path) -> Problem:
    """Neither kind of file. Pickles of the oldest protocols have no magic number: tell them from noise without running them."""
    with path.open("rb") as file:
        start = file.read(2**16)
    seen = set()
    with suppress(ValueError, IndexError, OverflowError):
        for operation, _, _ in pickletools.genops(start):
            seen.add(operation.name)
    if {"GLOBAL", "REDUCE"} <= seen or "INST" in seen:
        return Problem("unsafe_pickle", "the file is a pickle that calls functions; it was not run", pointer=POINTER)
    return Problem("source_model_format", f"the file starts with {start[:16]!r}", pointer=POINTER)


def _tensors(loaded: object) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
        loaded = _joined(loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise Problem("source_model_format", f"the file holds {type(loaded).__name__}, not named tensors", pointer=POINTER)
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            detail = f"{str(name)[:200]!r} is {type(value).__name__}, not a tensor"
            raise Problem("source_model_format", detail, pointer=POINTER)
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_complex() or value.is_quantized:
            kind = f"{str(value.dtype).removeprefix('torch.')} {str(value.layout).removeprefix('torch.')} on {value.device.type}"
            raise Problem("source_model_format", f"tensor {name[:200]!r} is {kind}; plain real tensors are read", pointer=POINTER)
    return without_prefixes(dict(loaded))


def _joined(loaded: Mapping) -> Mapping:
    for keys in (PARTS, ("F", "B", "C")):
        if all(isinstance(loaded.get(key), Mapping) for key in keys):
            parts = [(part, name, value) for part, key in zip(PARTS, keys, strict=True) for name, value in loaded[key].items()]
            return {f"{part}.{name}" if isinstance(name, str) else name: value for part, name, value in parts}
    return loaded


def without_prefixes(tensors: dict[str, Tensor], part: str = "") -> dict[str, Tensor]:
    """A prefix that every name has is removed; of the names that begin with `part`, what every one has after it."""
    for prefix in PREFIXES:
        whole = part + prefix
        if all(name.startswith(whole) for name in tensors if name.startswith(part)):
            tensors = {part + name.removeprefix(whole) if name.startswith(whole) else name: t for name, t in tensors.items()}
    return tensors
