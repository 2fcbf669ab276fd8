"""What a set of images holds, looked at before any is stored, and how its raw values become [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.references import Entry
from app.spec import Modality, Scaling
from worker.adaptation.decoding import UnreadableError, bits_of, decode

SAMPLE = 200
"""Images of a set that are looked at: enough for the percentiles to settle, and seconds to decode."""
READINGS_AN_IMAGE = 4096
ALONE_SHARE = 0.01
"""Of readings that are one value: from here on it decides the percentiles."""
FARTHEST_MILLIMETRES = 20_000
MILLIMETRES_SHOWN = 10_000
FARTHEST_METRES = 100


@dataclass(frozen=True)
class Readings:
    """Which raw values of a sensor are readings. no_reading: the one that means "nothing was measured", if there is one. below_zero:
    whether a value below 0 is a reading: of a temperature it is; of depth it says that there is none."""

    no_reading: int | None = None
    below_zero: bool = True


@dataclass(frozen=True)
class Survey:
    """Of a sample. bits: 8, 16, or 32 for floats. channels: 1 or 3, the more frequent. mixed: in words, if the images
    differ in either. any: there is a reading. least, largest, p1, p99: of the raw readings, 0 where there is none. alone: what `_alone` finds. side, aspect: medians of the shorter
    side and of width / height."""

    bits: int
    channels: int
    mixed: str
    any: bool
    least: float
    largest: float
    p1: float
    p99: float
    alone: Mapping[float, str]
    side: float
    aspect: float


@dataclass(frozen=True)
class Range:
    """stored = (raw - offset) * gain, as 8- or 16-bit integers; [0, 1] = (stored - low) / (high - low), clamped. gain differs
    from 1 for files of floats, offset from 0 where there are readings below 0; then gain may differ for any."""

    bits: int
    gain: float
    low: float
    high: float
    words: str
    offset: float = 0.0


def survey(entries: Sequence[Entry], readings: Readings) -> Survey:
    """A look at up to SAMPLE of the images, evenly spaced. Raises UnreadableError, `name: why` of the first, if not one of them can be
    read."""
    picked = np.unique(np.linspace(0, len(entries) - 1, min(SAMPLE, len(entries))).astype(int))
    kinds: list[tuple[int, int]] = []
    shapes: list[tuple[int, int]] = []
    raw: list[np.ndarray] = []
    least, largest, unreadable = [], [], []
    for entry in (entries[i] for i in picked):
        try:
            array = decode(entry.path, entry.encoding)
        except UnreadableError as error:
            unreadable.append(f"{entry.name}: {error}")
            continue
        kinds.append((bits_of(array), array.shape[2]))
        shapes.append(array.shape[:2])
        found = array[measured(array, readings)].ravel()
        if found.size:
            least.append(float(found.min()))
            largest.append(float(found.max()))
            raw.append(found[:: max(1, found.size // READINGS_AN_IMAGE)].copy())  # a view would keep the image
    if not kinds:
        raise UnreadableError(unreadable[0])
    bits = max(b for b, _ in kinds)
    channels = 3 if 2 * sum(c == 3 for _, c in kinds) > len(kinds) else 1
    differ = [
        f"{name} {' and '.join(str(v) for v in sorted(values))}"
        for name, values in (("bits", {b for b, _ in kinds}), ("channels", {c for _, c in kinds}))
        if len(values) > 1
    ]
    sample = np.concatenate(raw) if raw else np.zeros(1)
    p1, p99 = np.percentile(sample, [1, 99])
    side = float(np.median([min(shape) for shape in shapes]))
    aspect = float(np.median([w / h for h, w in shapes]))
    return Survey(
        bits,
        channels,
        "; ".join(differ),
        bool(raw),
        min(least, default=0.0),
        max(largest, default=0.0),
        float(p1),
        float(p99),
        _alone(sample),
        side,
        aspect,
    )


def _alone(sample: np.ndarray) -> dict[float, str]:
    """The least and the largest value of the sample, each if ALONE_SHARE of it or more is exactly that, and it is farther from the
    others than these are apart. Readings seldom lie so, though those of a small object that is cut off, before an even background, do.
    In words by value."""
    ends = [float(sample.min()), float(sample.max())]
    between = sample[(sample > ends[0]) & (sample < ends[1])]
    if not between.size:
        return {}
    p1, p99 = (float(value) for value in np.percentile(between, [1, 99]))
    found = {}
    for value, nearest in zip(ends, (p1, p99), strict=True):
        share = float((sample == value).mean())
        if share >= ALONE_SHARE and abs(value - nearest) > p99 - p1:
            found[value] = f"{share:.1%} of the readings are exactly {value:g}, and of the others 98% lie in {p1:g} to {p99:g}"
    return found


def measured(array: np.ndarray, readings: Readings) -> np.ndarray:
    """bool [H, W]: where array [H, W, C] holds a reading, that is a finite value other than no_reading in any channel, and one that
    is not below 0 unless below_zero."""
    valid = np.ones(array.shape[:2], dtype=bool) if array.dtype != np.float32 else np.isfinite(array).all(axis=2)
    if not readings.below_zero and array.dtype in (np.float32, np.int32):
        valid &= (array >= 0).all(axis=2)
    return valid if readings.no_reading is None else valid & (array != readings.no_reading).any(axis=2)


def readings_of(scaling: Scaling, modality: Modality) -> Readings:
    if modality == "depth":
        return Readings(scaling.no_reading or 0, below_zero=False)
    return Readings(scaling.no_reading)


def resolve(scaling: Scaling, modality: Modality, seen: Survey) -> Range:
    """app.spec.Scaling on the images that were seen, with what it leaves open decided.

    Files of floats are stored as 16 bit: depth up to 100 is metres and becomes millimetres, anything up to 1 is
    spread over 65535, and the rest is spread so that the largest value, or `high`, becomes 65535.
    """
    full = 255.0 if seen.bits == 8 else 65535.0
    gain, kind, unit = 1.0, scaling.kind, f"{seen.bits}-bit"
    if seen.bits == 32:
        gain, unit = _gain(scaling, modality, seen), "float"
        if kind == "auto" and modality == "depth" and gain not in (1, 1000):
            kind = "full_range"
    if kind == "auto" and seen.bits == 8:
        kind = "full_range"
    elif kind == "auto" and modality == "infrared":
        kind = "percentiles"
    elif kind == "auto":
        kind = "millimetres" if seen.largest * gain <= FARTHEST_MILLIMETRES else "full_range"
    if seen.bits != 8 and ((kind in ("percentiles", "full_range") and seen.p1 < 0) or (kind == "range" and scaling.low < 0)):
        return _from_below_zero(kind, scaling, seen)
    bits = 8 if seen.bits == 8 else 16
    if kind == "percentiles":
        low, high = seen.p1 * gain, max(seen.p99 * gain, seen.p1 * gain + 1)
        return Range(bits, gain, low, high, f"{unit}, the 1st to the 99th percentile, {low:g} to {high:g}, becomes 0 to 1")
    if kind == "millimetres":
        low, high = scaling.low or 0.0, scaling.high or float(MILLIMETRES_SHOWN)
        high = high if high > low else low + MILLIMETRES_SHOWN
        return Range(bits, gain, low, high, f"{unit} millimetres, {low:g} to {high:g} becomes 0 to 1")
    if kind == "range":
        low, high = float(scaling.low), float(scaling.high)
        return Range(bits, gain, low * gain, high * gain, f"{unit}, {low:g} to {high:g} becomes 0 to 1")
    return Range(bits, gain, 0.0, full, f"{unit}, 0 to {full / gain:g} becomes 0 to 1")


def _from_below_zero(kind: str, scaling: Scaling, seen: Survey) -> Range:
    """What is stored begins where the readings or `low` do. Further out than the percentiles are apart it is cut off: one lowest float,
    written where there is nothing, would leave no room for the others. Integers keep their steps where 65535 are enough."""
    apart = seen.p99 - seen.p1
    bottom, top = max(seen.least, seen.p1 - apart), min(seen.largest, seen.p99 + apart)
    if kind == "range":
        bottom, top = float(scaling.low), float(scaling.high)
    low, high = (seen.p1, seen.p99) if kind == "percentiles" else (bottom, top)
    unit = "float" if seen.bits == 32 else "signed 16-bit"
    words = f"{unit}, {'the 1st to the 99th percentile, ' if kind == 'percentiles' else ''}{low:g} to {high:g}, becomes 0 to 1"
    if seen.bits == 16:
        bottom = float(math.floor(bottom))
    gain = 65535 / ((top - bottom) or 1.0)
    if seen.bits == 16:
        gain = min(1.0, gain)
    low, high = (low - bottom) * gain, (high - bottom) * gain
    return Range(16, gain, low, max(high, low + 1), words, bottom)


def _gain(scaling: Scaling, modality: Modality, seen: Survey) -> float:
    if scaling.kind == "range":
        return 65535 / float(scaling.high or 1.0)
    if scaling.kind == "millimetres":
        return 1.0 if seen.largest > FARTHEST_METRES else 1000.0
    if seen.largest <= 1:
        return 65535.0
    if modality == "depth" and scaling.kind == "auto":
        if seen.largest <= FARTHEST_METRES:
            return 1000.0
        if seen.largest <= FARTHEST_MILLIMETRES:
            return 1.0
    return 65535 / seen.largest
