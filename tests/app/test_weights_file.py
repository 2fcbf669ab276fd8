"""What is said of an uploaded file of weights, without torch and without running anything of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors_of
from torch import nn

from app import weights_file
from app.errors import Problem

TENSORS = {
    "conv.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
    "bn.num_batches_tracked": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False]),
}


def torch_file(content: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def header_file(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return file.getvalue()


class RunsACommand:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['EVIDENCE']}",)


@pytest.fixture
def told(tmp_path: Path) -> Callable[[bytes], str]:
    """The format, or the problem's code; the detail must not be empty."""

    def tell(content: bytes) -> str:
        path = tmp_path / "upload"
        path.write_bytes(content)
        try:
            return weights_file.inspect(path)
        except Problem as problem:
            assert problem.detail and problem.pointer == "/source_model"
            return problem.code

    return tell


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (safetensors_of(TENSORS), "safetensors"),
        (safetensors_of(TENSORS, metadata={"format": "pt"}), "safetensors"),
        (torch_file(TENSORS), "torch"),
        (torch_file(TENSORS, _use_new_zipfile_serialization=False), "torch"),
        (torch_file(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict()), "torch"),
        (torch_file(dict(nn.Linear(2, 2).named_parameters())), "torch"),
        (torch_file({"state_dict": TENSORS, "epoch": 3, "lr": 0.1}), "torch"),
    ],
    ids=["safetensors", "with metadata", "torch", "torch before 1.6", "a module's", "parameters", "a checkpoint"],
)
def test_files_of_tensors_pass(told: Callable[[bytes], str], content: bytes, format: str) -> None:
    assert told(content) == format


@pytest.mark.parametrize("header_bytes", [0x80, 0x4B50], ids=["as a pickle", "as a zip archive"])
def test_a_safetensors_header_may_begin_as_another_format_does(told: Callable[[bytes], str], header_bytes: int) -> None:
    header = json.dumps(GOOD).encode().ljust(header_bytes)
    content = header_file(header, bytes(8))
    assert content[:2] in (b"\x80\0", b"PK")
    assert told(content) == "safetensors"


def test_every_dtype_that_weights_only_reads_passes(told: Callable[[bytes], str]) -> None:
    for dtype in (torch.float64, torch.float16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int16, torch.uint16):
        for how in ({}, {"_use_new_zipfile_serialization": False}):
            assert told(torch_file({"w": torch.ones(3).to(dtype)}, **how)) == "torch", dtype


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    told: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    evidence = tmp_path / "evidence"
    monkeypatch.setenv("EVIDENCE", str(evidence))
    raw = pickle.dumps(RunsACommand(), protocol)
    wrapped = [raw, archive({"m/data.pkl": raw, "m/version": b"3\n"})]
    if protocol >= 2:
        wrapped.append(torch_file({"w": RunsACommand()}, pickle_protocol=protocol))
        wrapped.append(torch_file({"w": RunsACommand()}, pickle_protocol=protocol, _use_new_zipfile_serialization=False))
    assert [told(content) for content in wrapped] == ["unsafe_pickle"] * len(wrapped)
    assert not evidence.exists()
    pickle.loads(raw)
    assert evidence.exists(), "the pickle is a real one: it runs where it is loaded"


def test_the_name_that_was_asked_for_is_told(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    for protocol in (2, 4):
        path.write_bytes(torch_file(nn.Linear(2, 2), pickle_protocol=protocol))
        with pytest.raises(Problem, match=r"unsafe_pickle.*'torch\.nn\.modules\.linear\.Linear'"):
            weights_file.inspect(path)


def test_a_call_behind_the_stop_of_the_first_pickle_is_found(told: Callable[[bytes], str]) -> None:
    good = torch_file(TENSORS, _use_new_zipfile_serialization=False)
    assert told(good) == "torch"
    magic_and_version = good[: good.index(b".", good.index(b".") + 1) + 1]
    assert told(magic_and_version + b"\x80\x02cposix\nsystem\n(X\x02\x00\x00\x00idtR.") == "unsafe_pickle"


def test_a_torchscript_program_is_refused(told: Callable[[bytes], str]) -> None:
    entries = {"m/data.pkl": pickle.dumps({}, 2), "m/constants.pkl": b"", "m/code/x.py": b"print()" * 100}
    assert told(archive(entries, zipfile.ZIP_DEFLATED)) == "unsafe_pickle"
    assert told(archive(entries)) == "unsafe_pickle"
    raw = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have TorchScript forgotten
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(200, 200), nn.ReLU())), raw)
    assert told(raw.getvalue()) == "unsafe_pickle"


GOOD = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"x", "source_model_format"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "source_model_format"),
        (os.urandom(4096).replace(b"{", b"x"), "source_model_format"),
        (b"\x80", "source_model_truncated"),
        (pickle.dumps({"w": 1}, 2), "source_model_format"),
        (pickle.dumps({"w": 1}, 4), "source_model_format"),
        (torch_file(TENSORS, pickle_protocol=4), "source_model_format"),
        (torch_file(TENSORS)[:-200], "source_model_truncated"),
        (torch_file(TENSORS)[:30], "source_model_truncated"),
        (torch_file(TENSORS, _use_new_zipfile_serialization=False)[:200], "source_model_truncated"),
        (safetensors_of(TENSORS)[:-1], "source_model_truncated"),
        (safetensors_of(TENSORS)[:40], "source_model_truncated"),
        (safetensors_of(TENSORS) + b"\0", "source_model_format"),
        (header_file({}), "source_model_format"),
        (header_file({"__metadata__": {"a": 1}} | GOOD, bytes(8)), "source_model_format"),
        (header_file(b'{"w": ' + b"[" * 100_000), "source_model_format"),
        (header_file(b'{"w": {"dtype": "F32"'), "source_model_format"),
        (header_file(b'{"w": 1, "w": 2}'), "source_model_format"),
        (struct.pack("<Q", 2**62) + b"{" + bytes(100), "source_model_format"),
        (header_file({"w": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "source_model_format"),
        (header_file({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "source_model_format"),
        (header_file({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)), "source_model_format"),
        (header_file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)), "source_model_format"),
        (header_file({"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, bytes(8)), "source_model_format"),
        (header_file(GOOD | {"v": GOOD["w"]}, bytes(8)), "source_model_format"),
        (archive({"readme.txt": b"hello"}), "source_model_format"),
        (archive({}), "source_model_format"),
        (archive({"m/data.pkl": pickle.dumps({}, 2), "other/x": b""}), "source_model_format"),
        (archive({"m/data.pkl": pickle.dumps({}, 2), "m/DATA.pkl": pickle.dumps({}, 2)}), "source_model_format"),
        (archive({"m/data.pkl": pickle.dumps({}, 2)}, zipfile.ZIP_DEFLATED), "archive_bomb"),
        (archive({"m/data.pkl": pickle.dumps({}, 2), "m/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED), "archive_bomb"),
        (archive({"m/data.pkl": b"\x80\x02" + b"N0" * 1_100_000 + b"N."}), "source_model_format"),
        (archive({"m/data.pkl": bytes(9 * 2**20)}), "source_model_format"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_tensors_is_refused(told: Callable[[bytes], str], content: bytes, code: str) -> None:
    assert told(content) == code


def test_sizes_that_overlap_are_a_bomb(told: Callable[[bytes], str]) -> None:
    """Many directory entries over the same bytes: stored, and yet far more than the file."""
    raw = bytearray(archive({"m/data.pkl": pickle.dumps({}, 2), "m/data/0": bytes(5000), "m/data/1": b""}))
    start = raw.rindex(b"PK\x01\x02")
    raw[start + 20 : start + 28] = struct.pack("<II", 5000, 5000)
    assert told(bytes(raw)) == "archive_bomb"


def test_an_encrypted_entry_is_refused(told: Callable[[bytes], str]) -> None:
    raw = bytearray(archive({"m/data.pkl": pickle.dumps({}, 2)}))
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    assert told(bytes(raw)) == "source_model_format"


@pytest.mark.parametrize("field", [16, 42], ids=["of the directory", "of an entry"])
def test_a_place_before_the_file_begins_is_damage(told: Callable[[bytes], str], field: int) -> None:
    """zipfile then asks for a negative place, of which the system says EINVAL."""
    raw = bytearray(archive({"m/data.pkl": pickle.dumps({}, 2)}))
    record = raw.rindex(b"PK\x05\x06") if field == 16 else raw.rindex(b"PK\x01\x02")
    (place,) = struct.unpack("<I", raw[record + field : record + field + 4])
    raw[record + field : record + field + 4] = struct.pack("<I", place + 5 if field == 16 else 2**32 - 2)
    assert told(bytes(raw)) == "source_model_truncated"


def test_a_place_beyond_all_files_is_damage(told: Callable[[bytes], str]) -> None:
    """By the fields of 64 bits: Python then has no number for the system."""
    raw = archive({"m/data.pkl": pickle.dumps({}, 2)})
    end = raw.rindex(b"PK\x05\x06")
    entries, size = struct.unpack("<HI", raw[end + 10 : end + 16])
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, 2**64 - 1)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    old = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    assert told(raw[:end] + record + locator + old) == "source_model_truncated"


def test_too_many_entries_are_a_bomb(told: Callable[[bytes], str]) -> None:
    many = {"m/data.pkl": pickle.dumps({}, 2)} | {f"m/data/{n}": b"" for n in range(weights_file.MAX_ENTRIES)}
    assert told(archive(many)) == "archive_bomb"


def test_a_directory_is_not_read_as_large_as_it_claims(tmp_path: Path) -> None:
    """A sparse file whose end record claims a directory of a gibibyte."""
    path = tmp_path / "upload"
    claimed = 2**30
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(claimed)
        file.seek(claimed)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, claimed, 0, 0))
    with pytest.raises(Problem, match="archive_bomb"):
        weights_file.inspect(path)


def test_a_pickle_of_a_huge_text_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    with path.open("wb") as file:
        file.write(b"\x80\x02X\xff\xff\xff\x7f")
        file.truncate(2**31)
    with pytest.raises(Problem, match="source_model_format"):
        weights_file.inspect(path)


def test_torch_is_not_needed() -> None:
    code = "import sys, app.source_models.service, app.uploads; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
