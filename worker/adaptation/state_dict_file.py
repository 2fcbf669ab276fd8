"""Reads the tensors of an untrusted file: safetensors, or a state_dict that torch reads with weights_only.

What it is, and that it asks for tensors alone, is told without torch first (app/weights_file.py). Then nothing is unpickled but by
torch's weights_only reader.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.errors import Problem
from app.weights_file import POINTER, inspect

WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.", "_orig_mod.")
AVERAGED = "n_averaged"
"""How many updates torch's AveragedModel, an EMA, was made of: beside the network's own tensors, which are below `module.`."""
PARTS = ("netF", "netB", "netC")
"""The three networks of SHOT, which may lie in one file as three dicts, by these names or as F, B and C."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by name, on the CPU, in the file's dtypes, memory-mapped where the format allows it.

    One level of {"state_dict": ...}, {"model": ...} or {"model_state_dict": ...} is unwrapped, and a prefix that every
    name has ("module." of DataParallel, "model." of most LightningModules, "_orig_mod." of torch.compile) removed, and the count of
    torch's AveragedModel. {"netF": {...}, "netB": {...}, "netC": {...}} becomes names that begin with "netF.", "netB." and "netC.".
    Raises Problem empty_file, source_model_format, source_model_truncated, unsafe_pickle, archive_bomb, reference_missing,
    reference_unreadable.
    """
    try:
        if inspect(path) == "safetensors":
            return _tensors(_safetensors(path))
        return _tensors(_torch_load(path))
    except FileNotFoundError as error:
        raise Problem("reference_missing", f"{path.name!r} does not exist", pointer=POINTER) from error
    except OSError as error:
        raise Problem("reference_unreadable", f"{path.name!r}: {error.strerror}", pointer=POINTER) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise Problem("source_model_format", f"not valid safetensors: {error!s:.200}", pointer=POINTER) from error


def _torch_load(path: Path) -> object:
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols and TorchScript archives that it then refuses, or reads all the same.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
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
        OverflowError,
        struct.error,
    ) as error:
        text = str(error)
        if "TorchScript" in text:
            raise Problem("unsafe_pickle", "the file is a TorchScript program", pointer=POINTER) from error
        if any(word in text for word in ("unexpected EOF", "PytorchStreamReader", "out of bounds", "unexpected pos")):
            raise Problem("source_model_truncated", f"the file is damaged: {text[:200]}", pointer=POINTER) from error
        raise Problem("source_model_format", f"torch cannot read it: {text[:200]}", pointer=POINTER) from error


def _tensors(loaded: object) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
        loaded = _joined(loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise Problem("source_model_format", f"the file holds {type(loaded).__name__}, not named tensors", pointer=POINTER)
    for name, value in loaded.items():
        if not isinstance(name, str):
            detail = f"the file holds something by the key {str(name)[:200]!r}, which is {type(name).__name__} and no name"
            raise Problem("source_model_format", detail, pointer=POINTER)
        if not isinstance(value, Tensor):
            detail = f"{str(name)[:200]!r} is {type(value).__name__}, not a tensor"
            raise Problem("source_model_format", detail, pointer=POINTER)
        if value.is_nested:  # of which not even the shape can be asked
            raise Problem("source_model_format", f"tensor {name[:200]!r} is nested; plain real tensors are read", pointer=POINTER)
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_complex() or value.is_quantized:
            kind = f"{str(value.dtype).removeprefix('torch.')} {str(value.layout).removeprefix('torch.')} on {value.device.type}"
            raise Problem("source_model_format", f"tensor {name[:200]!r} is {kind}; plain real tensors are read", pointer=POINTER)
    return without_prefixes({name: value for name, value in loaded.items() if name != AVERAGED})


def _joined(loaded: Mapping) -> Mapping:
    for keys in (PARTS, ("F", "B", "C")):
        if all(isinstance(loaded.get(key), Mapping) for key in keys):
            parts = [(part, name, value) for part, key in zip(PARTS, keys, strict=True) for name, value in loaded[key].items()]
            return {f"{part}.{name}" if isinstance(name, str) else name: value for part, name, value in parts}
    return loaded


def without_prefixes(tensors: dict[str, Tensor], part: str = "") -> dict[str, Tensor]:
    """Prefixes that every name has are removed; of the names that begin with `part`, what every one has after it."""
    while ours := [name for name in tensors if name.startswith(part)]:
        whole = next((part + one for one in PREFIXES if all(name.startswith(part + one) for name in ours)), None)
        if whole is None:
            break
        tensors = {part + name.removeprefix(whole) if name.startswith(whole) else name: t for name, t in tensors.items()}
    return tensors
