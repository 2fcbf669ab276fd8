"""Archives as their makers might mean harm: what is refused, and that nothing of it reaches the disk."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from app import archives, listing
from app.errors import Problem
from tests.archives import FORMATS, made, tar_entry, tar_of, zip_info

GIB = 2**30
IMAGE = os.urandom(3000)
each_format = pytest.mark.parametrize("format", FORMATS)


def at(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(content)
    return path


def unpacked(tmp_path: Path, content: bytes, most: int = GIB) -> dict[str, bytes]:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    archives.unpack(at(tmp_path, content), folder, most, "/dataset", lambda _: None)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(tmp_path: Path, content: bytes, most: int = GIB) -> Problem:
    """By a listing, and by unpacking, which leaves nothing outside its folder."""
    path = at(tmp_path, content)
    with pytest.raises(Problem) as caught:
        listing.of_archive(path, most, "/dataset")
    folder = tmp_path / "inside" / "unpacked"
    folder.mkdir(parents=True)
    with pytest.raises(Problem) as again:
        archives.unpack(path, folder, most, "/dataset", lambda _: None)
    assert again.value.code == caught.value.code
    assert sorted(one.name for one in tmp_path.iterdir()) == ["archive", "inside"]
    assert [one.name for one in folder.parent.iterdir()] == ["unpacked"]
    assert caught.value.pointer == "/dataset"
    return caught.value


@each_format
def test_images_lists_and_csv_files_come_out_and_nothing_else(tmp_path: Path, format: str):
    content = {"hall/depth/1.png": IMAGE, "hall/./x//2.JPG": b"", "lists/a.txt": b"1 2\n", "p.CSV": b"rgb", "setup.exe": b"MZ"}
    got = unpacked(tmp_path, made(format, content))
    assert got == {"hall/depth/1.png": IMAGE, "hall/x/2.JPG": b"", "lists/a.txt": b"1 2\n", "p.CSV": b"rgb"}
    found, size = listing.of_archive(tmp_path / "archive", GIB, "/dataset")
    assert size == sum(map(len, got.values()))
    assert dict(found.texts) == {name: data if data in (b"1 2\n", b"rgb") else None for name, data in got.items()}
    assert dict(listing.unpacked([found.packed()]).texts) == dict(found.texts)


@each_format
@pytest.mark.parametrize(
    "name",
    [
        "../up.png",
        "a/../../up.png",
        "/etc/x.png",
        "C:/x.png",
        "a\\..\\up.png",
        "a\nb.png",
        "d/" * 40 + "x.png",
        "x" * 300 + ".png",
    ],
)
@pytest.mark.parametrize("tail", ["", ".bin"])
def test_a_name_that_leads_elsewhere_is_refused_and_named(tmp_path: Path, format: str, name: str, tail: str):
    """Also of an entry that would be passed over."""
    problem = refused(tmp_path, made(format, {"a.png": IMAGE, name + tail: IMAGE}))
    assert problem.code == "archive_unsafe" and problem.context["entry"] == (name + tail)[:200]


@each_format
def test_a_name_that_is_there_twice_or_both_file_and_folder_is_refused(tmp_path: Path, format: str):
    with pytest.warns(UserWarning) if format == "zip" else nullcontext():
        twice = made(format, [("a.png", IMAGE), ("a.png", b"other")])
    assert "twice" in refused(tmp_path, twice).detail
    for number, both in enumerate(([("a.png", IMAGE), ("a.png/b.png", IMAGE)], [("a.png/b.png", IMAGE), ("a.png", IMAGE)])):
        (tmp_path / str(number)).mkdir()
        assert refused(tmp_path / str(number), made(format, both)).code == "archive_unsafe"


@pytest.mark.parametrize(
    "entry",
    [
        tar_entry("a.png", tarfile.SYMTYPE, "/etc/passwd"),
        tar_entry("a.png", tarfile.LNKTYPE, "b.png"),
        tar_entry("folder", tarfile.SYMTYPE, "/etc"),
        tar_entry("a.png", tarfile.CHRTYPE),
        tar_entry("a.png", tarfile.BLKTYPE),
        tar_entry("a.png", tarfile.FIFOTYPE),
        tar_entry("a.png", tarfile.GNUTYPE_SPARSE),
        tar_entry("a.png", b"Z"),
    ],
    ids=lambda entry: entry.type.decode() + entry.name,
)
@pytest.mark.parametrize("gz", [False, True])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, entry: tarfile.TarInfo, gz: bool):
    problem = refused(tmp_path, tar_of((tar_entry("b.png", size=3), b"abc"), (entry, b""), gz=gz))
    assert problem.code == "archive_unsafe" and problem.context["entry"] == entry.name


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140777])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zip_info("b.png"), IMAGE)
        archive.writestr(zip_info("a.png", mode), b"/etc/passwd")
    assert refused(tmp_path, out.getvalue()).context["entry"] == "a.png"


def test_encrypted_and_oddly_compressed_entries_are_refused(tmp_path: Path):
    content = bytearray(made("zip", {"a.png": IMAGE}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(tmp_path, bytes(content)).detail
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", IMAGE)
    (tmp_path / "2").mkdir()
    assert "deflate" in refused(tmp_path / "2", out.getvalue()).detail


@each_format
def test_what_unpacks_to_more_than_is_allowed_is_refused(tmp_path: Path, format: str):
    problem = refused(tmp_path, made(format, {"a.png": IMAGE, "b.png": IMAGE}), most=5000)
    assert problem.code == "archive_bomb" and problem.context["limit"] == 5000


@pytest.mark.parametrize("format", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_has_unpacked(tmp_path: Path, format: str):
    bomb = made(format, {"a.png": bytes(200 * 2**20)})
    assert len(bomb) < 2**20
    tracemalloc.start()
    assert refused(tmp_path, bomb).code == "archive_bomb"
    assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*.png")) <= 66 * 2**20


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says(tmp_path: Path):
    """Both headers say 10 bytes; 200 MiB would come out."""
    content = bytearray(made("zip", {"a.png": bytes(200 * 2**20)}))
    struct.pack_into("<I", content, 22, 10)
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)
    assert refused(tmp_path, bytes(content)).code == "archive_damaged"
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*.png")) <= 10


def test_a_zip_whose_entries_overlap_is_refused(tmp_path: Path):
    """Many names for one piece of data: small as a file, without end unpacked."""
    content = bytearray(made("zip", {"a.png": bytes(50_000), "b.png": bytes(50_000)}))
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    struct.pack_into("<I", content, second + 42, 0)
    assert refused(tmp_path, bytes(content)).code == "archive_bomb"


@pytest.mark.parametrize("gz", [False, True])
def test_a_header_as_large_as_it_likes_is_refused_unread(tmp_path: Path, gz: bool):
    """An extended header of 200 MiB, which tarfile alone would read into memory."""
    entry = tar_entry("x", tarfile.XHDTYPE, size=200 * 2**20)
    out = io.BytesIO(entry.tobuf() + bytes(200 * 2**20) + bytes(1024))
    content = gzip.compress(out.getvalue(), 1) if gz else out.getvalue()
    tracemalloc.start()
    assert refused(tmp_path, content).code == "archive_bomb"
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def extended(kind: bytes, attributes: dict[str, str], *following: bytes) -> bytes:
    """A tar of one extended header, of one entry or of all that follow, and of what follows it."""

    def record(name: str, value: str) -> bytes:
        rest = f" {name}={value}\n".encode()
        length = len(rest) + len(str(len(rest)))
        length += len(str(length)) - len(str(len(rest)))
        return str(length).encode() + rest

    def padded(content: bytes) -> bytes:
        return content + bytes(-len(content) % tarfile.BLOCKSIZE)

    records = b"".join(record(name, value) for name, value in attributes.items())
    header = tar_entry("header", kind, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    return header + padded(records) + b"".join(map(padded, following)) + bytes(tarfile.RECORDSIZE)


def test_attributes_for_all_entries_do_not_pile_up(tmp_path: Path):
    """tarfile copies them for each entry."""
    entry = tar_entry("1.png").tobuf(tarfile.USTAR_FORMAT)
    few_of_them = extended(tarfile.XGLTYPE, {f"key{n}": "x" for n in range(5)}, entry)
    assert unpacked(tmp_path, few_of_them) == {"1.png": b""}
    (tmp_path / "many").mkdir()
    assert (
        refused(tmp_path / "many", extended(tarfile.XGLTYPE, {f"key{n}": "x" for n in range(500)}, entry)).code == "archive_bomb"
    )


def with_raw_attributes(records: bytes) -> bytes:
    header = tar_entry("header", tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    entry = tar_entry("1.png").tobuf(tarfile.USTAR_FORMAT)
    return gzip.compress(header + records + bytes(-len(records) % tarfile.BLOCKSIZE) + entry + bytes(tarfile.RECORDSIZE))


def test_attributes_whose_lengths_lie_are_not_read(tmp_path: Path):
    """200 bytes of gzip of which tarfile makes twenty thousand names, 600 MB together."""
    tracemalloc.start()
    try:
        assert refused(tmp_path, with_raw_attributes(b"3 a" * 20_000 + b"=\n")).code == "archive_damaged"
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_attributes_of_very_many_digits_hold_nothing_up_either(tmp_path: Path):
    """None of their runs is long, and each costs its square."""
    records = b"".join(b"257 a=" + b"1" * 250 + b"\n" for _ in range(200))
    assert refused(tmp_path, with_raw_attributes(records)).code == "archive_bomb"


@pytest.mark.parametrize("before, after", [(b"", b""), (b"60009 a=", b"\n")])
def test_an_attribute_of_digits_holds_nothing_up(tmp_path: Path, before: bytes, after: bytes):
    """200 bytes of gzip over which tarfile's pattern goes for seconds, in which no other thread runs."""
    began = time.process_time()
    refusal = refused(tmp_path, with_raw_attributes(before + b"1" * 60_000 + after))
    assert refusal.code == ("archive_bomb" if before else "archive_damaged")
    assert time.process_time() - began < 0.5


def test_attributes_of_several_lines_and_a_long_name_of_digits_are_read(tmp_path: Path):
    name = "/".join(["1" * 255] * 3) + "/1.png"
    attributes = {"SCHILY.xattr.user.note": "a=1\n2 b=\n", "path": name, "comment": ""}
    content = extended(tarfile.XHDTYPE, attributes, tar_entry("short.png").tobuf(tarfile.USTAR_FORMAT))
    assert unpacked(tmp_path, content) == {name: b""}


def test_the_map_of_a_sparse_file_is_not_read_whatever_its_length(tmp_path: Path):
    """A few kilobytes of gzip that tarfile would make a list of two million numbers of."""
    size = 4 * 2**20
    entry = tar_entry("1.png", size=size).tobuf(tarfile.USTAR_FORMAT)
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    content = extended(tarfile.XHDTYPE, sparse, entry, b"999999999\n" + b"0\n" * (size // 2 - 5))
    tracemalloc.start()
    assert refused(tmp_path, gzip.compress(content)).code == "archive_bomb"
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@each_format
def test_names_do_not_make_more_folders_than_entries_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str):
    monkeypatch.setattr(archives, "MAX_ENTRIES", 40)
    assert refused(tmp_path, made(format, {f"{n}/a/b/c/d/e/f/g/h/i/1.png": b"" for n in range(5)})).code == "archive_bomb"


def test_more_entries_than_are_listed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MAX_ENTRIES", 10)
    for number, format in enumerate(FORMATS):
        (tmp_path / str(number)).mkdir()
        content = made(format, {f"{n}.bin": b"" for n in range(11)})
        assert refused(tmp_path / str(number), content).code == "archive_bomb"


def test_a_zip_directory_that_claims_to_be_huge_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 1000)
    assert refused(tmp_path, made("zip", {f"{n}.png": b"" for n in range(50)})).code == "archive_bomb"


def test_a_zip_directory_of_too_many_entries_is_not_made_objects_of(tmp_path: Path):
    """A million of the smallest fit into the directory's bytes. zipfile goes by its length, whatever number the archive names."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * (archives.MAX_ENTRIES + 1)
    content = b"PK\x03\x04" + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 4, 0)
    began = time.process_time()
    assert refused(tmp_path, content).code == "archive_bomb"
    assert time.process_time() - began < 1.5


@each_format
def test_an_archive_cut_off_anywhere_or_damaged_is_refused(tmp_path: Path, format: str):
    content = made(format, {"a.png": IMAGE, "b.png": IMAGE})
    end = 7168 if format == "tar" else len(content) - 1  # of the last entry; a tar is filled up with zeros
    for number, kept in enumerate((end, len(content) // 2, 700)):
        (tmp_path / str(number)).mkdir()
        assert refused(tmp_path / str(number), content[:kept]).code == "archive_damaged", kept
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 1
    (tmp_path / "flipped").mkdir()
    if format == "tar":  # has no checksum of content: the byte is somebody's pixel
        assert len(unpacked(tmp_path / "flipped", bytes(flipped))) == 2
    else:
        assert refused(tmp_path / "flipped", bytes(flipped)).code == "archive_damaged"


@pytest.mark.parametrize("content", [b"not an archive", b"\x7fELF" + bytes(600), bytes(2000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes):
    assert refused(tmp_path, content).code == "archive_format"


def test_an_empty_file_and_an_archive_without_images_are_refused(tmp_path: Path):
    assert refused(tmp_path, b"").code == "empty_file"
    with pytest.raises(Problem, match="no_images"):
        listing.of_archive(at(tmp_path, made("zip", {"a.txt": b"x"})), GIB, "/dataset")


def test_a_gzip_that_is_no_tar_is_refused(tmp_path: Path):
    assert refused(tmp_path, gzip.compress(b"hello" * 1000)).code == "archive_damaged"


def test_names_that_are_not_utf8_are_refused(tmp_path: Path):
    content = bytearray(made("tar", {"aaaa.png": IMAGE}))
    content[0] = 0xFF
    total = sum(content[:148]) + 8 * 32 + sum(content[156:512])
    content[148:156] = b"%06o\0 " % total
    assert "UTF-8" in refused(tmp_path, bytes(content)).detail
