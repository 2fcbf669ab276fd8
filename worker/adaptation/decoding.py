"""One image file to one array of raw readings. The files are hostile: what cannot be read is one UnreadableError."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from app.references import Encoding

MAX_PIXELS = 89_478_485
"""Pillow's own limit, a quarter of a gigabyte of RGB. A larger image counts as unreadable."""
FORMATS = ("PNG", "JPEG", "TIFF")  # JPEG: MPO too, which many cameras write under its name

FARTHEST_ROTATED = 8000
"""Millimetres. SUN RGB-D's own toolbox (read3dPoints.m) takes what is farther for this far."""

# Pillow only warns up to twice its limit; its filter is the process's, and threads decode: set once, here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class UnreadableError(Exception):
    """An image that cannot be used; the message says why."""


def decode(path: Path, encoding: Encoding = "plain") -> np.ndarray:
    """The image as [H, W, C]: uint8, uint16, int32 where the file holds integers below 0, or float32 where it holds floats; C is 1
    or 3.

    Three equal channels become one; palettes become RGB; alpha is dropped, as is every frame of a TIFF but the first.
    32-bit integers are clipped to -65535..65535. Orientation tags are not applied: the other sensor's image has none. An
    encoding of "rotated" is undone: what is returned is millimetres, at most 8000. Raises UnreadableError.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for whoever writes into it
            raise UnreadableError("it is no plain file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            array = _readings(image)
            if encoding == "rotated":
                array = _millimetres(array)
    except UnreadableError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError("it is gone") from error
    except UnidentifiedImageError as error:
        raise UnreadableError("it is no PNG, JPEG or TIFF") from error
    except Exception as error:  # a damaged file makes Pillow raise almost any there is
        raise UnreadableError(f"{type(error).__name__}: {str(error)[:150]}") from error
    if array.ndim == 3 and (array == array[:, :, :1]).all():
        array = array[:, :, 0]
    return array[:, :, None] if array.ndim == 2 else array


def bits_of(array: np.ndarray) -> int:
    """Of what `decode` returns: 8, 16, or 32 for floats."""
    return 16 if array.dtype == np.int32 else array.dtype.itemsize * 8


def _readings(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode in ("L", "RGB"):
        return np.array(image)
    if mode == "F":
        return np.array(image, dtype=np.float32)
    if mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)
    if mode.startswith("I"):  # signed 16 bits too
        array = np.clip(np.array(image), -65535, 65535)
        return array.astype(np.int32 if array.size and array.min() < 0 else np.uint16)
    if mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    if mode in ("P", "PA"):
        return np.array(image.convert("RGBA"))[:, :, :3]
    return np.array(image.convert("RGB"))


def _millimetres(array: np.ndarray) -> np.ndarray:
    """uint16 [H, W], the bits rotated left by 3 -> uint16 [H, W]."""
    if array.dtype != np.uint16 or array.ndim != 2:
        raise UnreadableError(f"{array.dtype} of shape {array.shape} is not 16-bit depth of one channel")
    return np.minimum((array >> 3) | (array << 13), np.uint16(FARTHEST_ROTATED))
