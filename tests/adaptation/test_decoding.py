"""One file of an image: every usual kind is read value by value, and what is none is told as what it is."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.adaptation.folders import ramp, save, signed_tiff
from worker.adaptation.decoding import UnreadableError, decode


@pytest.mark.parametrize(
    ("name", "array", "options"),
    [
        ("a.png", ramp(5, 7, 250, np.uint8), {}),
        ("a.png", ramp(5, 7, 60000), {}),
        ("a.tif", ramp(5, 7, 60000), {}),
        ("a.tif", ramp(5, 7, 7.5, np.float32), {}),
        ("a.tiff", ramp(5, 7, 250, np.uint8), {"compression": "tiff_lzw"}),
        ("a.png", np.stack([ramp(5, 7, v, np.uint8) for v in (10, 90, 200)], axis=2), {}),
    ],
    ids=["8-bit png", "16-bit png", "16-bit tiff", "float tiff", "lzw tiff", "rgb png"],
)
def test_a_lossless_file_is_read_value_by_value(name, array, options, tmp_path):
    out = decode(save(tmp_path / name, array, **options))
    assert out.dtype == array.dtype and out.ndim == 3
    assert np.array_equal(out, array if array.ndim == 3 else array[:, :, None])


def test_other_kinds_of_pixels_are_read_too(tmp_path):
    colours = np.stack([ramp(6, 8, v, np.uint8) for v in (10, 90, 200)], axis=2)
    grey = ramp(6, 8, 200, np.uint8)
    alpha = np.full((6, 8, 1), 7, np.uint8)
    image = Image.fromarray(colours)
    image.quantize(256).save(tmp_path / "palette.png")
    assert np.abs(decode(tmp_path / "palette.png").astype(int) - colours).max() <= 8
    assert np.array_equal(decode(save(tmp_path / "rgba.png", np.concatenate([colours, alpha], 2))), colours)
    assert np.array_equal(decode(save(tmp_path / "la.png", np.concatenate([grey[:, :, None], alpha], 2)))[:, :, 0], grey)
    assert decode(save(tmp_path / "three_equal.png", np.stack([grey] * 3, 2))).shape == (6, 8, 1)
    assert decode(save(tmp_path / "jpeg.jpg", colours)).shape == (6, 8, 3)
    Image.fromarray(grey > 100).save(tmp_path / "one_bit.png")
    assert set(np.unique(decode(tmp_path / "one_bit.png"))) == {0, 255}
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert decode(tmp_path / "cmyk.jpg").shape == (6, 8, 3)
    big_endian = Image.frombytes("I;16B", (8, 6), ramp(6, 8, 60000).astype(">u2").tobytes())
    big_endian.save(tmp_path / "big_endian.tif")
    assert np.array_equal(decode(tmp_path / "big_endian.tif")[:, :, 0], ramp(6, 8, 60000))
    Image.fromarray(np.array([[-5, 70000], [3, 65535]], np.int32)).save(tmp_path / "int32.tif")
    assert decode(tmp_path / "int32.tif")[:, :, 0].tolist() == [[-5, 65535], [3, 65535]]


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        png_that_claims(100_000, 100_000),
        png_that_claims(10_000, 10_000),
        png_that_claims(64, 64)[:60],
        png_that_claims(0, 64),
    ],
    ids=["empty", "text", "bomb", "half a bomb", "cut off", "no pixels"],
)
def test_a_file_that_is_no_image_is_unreadable_and_nothing_else(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableError):
        decode(tmp_path / "a.png")


def test_a_pipe_is_told_as_one_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for name in ("a.png", "b.png"):
        with pytest.raises(UnreadableError, match=r"^it is no plain file$"):
            decode(tmp_path / name)


def test_a_file_of_another_kind_is_told_as_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a, or whatever it is")
    with pytest.raises(UnreadableError, match=r"^it is no PNG, JPEG or TIFF$"):
        decode(tmp_path / "a.png")


def test_a_jpeg_of_several_images_is_read_as_its_first(tmp_path):
    """MPO, which many cameras write under the name of JPEG."""
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert decode(tmp_path / "a.jpg")[0, 0].argmax() == 0


def test_a_signed_file_without_a_reading_below_0_is_read_as_before(tmp_path):
    signed_tiff(tmp_path / "a.tif", ramp(5, 7, 30000, np.int16))
    out = decode(tmp_path / "a.tif")
    assert out.dtype == np.uint16 and np.array_equal(out[:, :, 0], ramp(5, 7, 30000))
