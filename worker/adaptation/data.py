"""Reads the images of a job into arrays on disk, once, and opens them.

    x_tr_t        read_target       Images
    x_ti_s/x_ti_t read_pairs        Pairs
    evaluation    read_evaluation   LabelledImages

Each says what it read, and how it was scaled, by `emit(event)`; each uses `cache` (a folder of the job) again where the
files and the settings are still the same. roots: see app.layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from app import layouts
from app.errors import Problem, few
from app.references import Entry
from app.spec import DataSpec, InputSpec, Scaling
from worker.adaptation import image_cache
from worker.adaptation.decoding import UnreadableError
from worker.adaptation.events import DataRead, Logged, Warned
from worker.adaptation.image_cache import Stored
from worker.adaptation.image_sets import Images, LabelledImages, Pairs
from worker.adaptation.scaling import Range, Readings, Survey, readings_of, resolve, survey

Emit = Callable[[BaseModel], None]
Plan = Callable[[], tuple[dict[str, Stored], dict[str, Any]]]
RGB = Range(8, 1.0, 0.0, 255.0, "8-bit RGB, 0 to 255 becomes 0 to 1")
LARGEST_SCALE = 4.0
NARROW = 0.05
SMALL = 4
"""Times that images may be enlarged before it is said."""


def read_target(
    data: DataSpec,
    input: InputSpec,
    cache: Path,
    emit: Emit,
    roots: Sequence[Path] | None = None,
    classes: Sequence[str] | None = None,
) -> Images:
    """x_tr_t, stored as squares of size / crop_ratio. classes: the model's, see app.layouts. Raises Problem as
    app.layouts.images does, and too_many_broken_images, too_few_images, disk_full."""
    entries = layouts.images(data.target, roots, classes=classes)
    scaling, modality = data.target.scaling, data.target.modality
    readings = readings_of(scaling, modality)

    def plan() -> tuple[dict[str, Stored], dict[str, Any]]:
        seen = _survey(entries, readings, "/data/target/uri")
        range = resolve(scaling, modality, seen)
        stretch = input.resize == "stretch"
        stored = Stored(*_square(input), seen.channels, stretch, range, readings)
        return {"target": stored}, {
            "ranges": {"target": asdict(range)},
            "side": seen.side,
            "warnings": _doubts(seen, range, scaling, input),
        }

    settings = [input.model_dump(mode="json"), modality, scaling.model_dump(mode="json")]
    record = _read("target", {"target": entries}, settings, plan, data, cache, emit, "/data/target/uri")
    _enough(len(record["columns"]["target"]["names"]), layouts.MIN_TARGET_IMAGES, "target images", "/data/target/uri")
    return _images(cache, record, "target", "target", emit)


def read_pairs(
    data: DataSpec,
    input: InputSpec,
    target: Images,
    cache: Path,
    emit: Emit,
    roots: Sequence[Path] | None = None,
    classes: Sequence[str] | None = None,
) -> Pairs:
    """The pairs, both images of a pair at one size: shorter side = size / crop_ratio * scale at the set's median aspect
    ratio. scale: the median shorter side of their target images over that of `target`'s, within 1 and 4. Depth of the
    same bit depth as `target`'s is scaled as that was, unless the pairs have a scaling of their own. classes: the model's,
    see app.layouts. Raises Problem as app.layouts.pairs does, and too_many_broken_images, too_few_images, disk_full."""
    if data.pairs is None:
        raise ValueError("the specification has no pairs")
    rows = layouts.pairs(data.pairs, roots, classes=classes)
    columns = {"pairs-source": [source for source, _ in rows], "pairs-target": [other for _, other in rows]}
    scaling, modality = data.pairs.scaling, data.target.modality
    readings = readings_of(scaling, modality)
    stretch = input.resize == "stretch"

    def plan() -> tuple[dict[str, Stored], dict[str, Any]]:
        seen = _survey(columns["pairs-target"], readings, "/data/pairs/uri")
        range = resolve(scaling, modality, seen)
        same = (range.bits, range.gain) == (target.range.bits, target.range.gain)
        if scaling.kind == "auto" and modality == "depth" and same:
            range = target.range
        scale = float(np.clip(seen.side / target.side, 1.0, LARGEST_SCALE))
        height, width = _rectangle(input, scale, 1.0 if stretch else float(np.clip(seen.aspect, 1 / 3, 3)))
        stored = {
            "pairs-source": Stored(height, width, 3, stretch, RGB, Readings()),
            "pairs-target": Stored(height, width, target.array.shape[1], stretch, range, readings),
        }
        ranges = {"pairs-source": asdict(RGB), "pairs-target": asdict(range)}
        doubts = _doubts(seen, range, scaling, input)
        if seen.channels != (own := target.array.shape[1]):
            message = f"{seen.channels} channels of the sensor's images, unlike the target images' {own}: converted"
            doubts.append(["pairs_differ", f"{message}; are `source` and `target` of data.pairs the right way round?"])
        return stored, {"ranges": ranges, "side": seen.side, "scale": scale, "warnings": doubts}

    settings = [
        input.model_dump(mode="json"),
        [modality, scaling.model_dump(mode="json")],
        [asdict(target.range), target.side, target.array.shape[1]],
    ]
    record = _read("pairs", columns, settings, plan, data, cache, emit, "/data/pairs/uri")
    _enough(len(record["columns"]["pairs-source"]["names"]), layouts.MIN_PAIRS, "pairs", "/data/pairs/uri")
    if record["askew"]:
        message = f"{record['askew']} pairs whose two images differ in aspect ratio: their centres were taken to match"
        emit(Warned(code="pairs_askew", message=message, data={"pairs": record["askew"]}))
    source = _images(cache, record, "pairs-source", "pairs/source", emit)
    return Pairs(source, _images(cache, record, "pairs-target", "pairs/target", emit), record["facts"]["scale"])


def read_evaluation(
    data: DataSpec,
    classes: Sequence[str],
    input: InputSpec,
    target: Images,
    cache: Path,
    emit: Emit,
    roots: Sequence[Path] | None = None,
    adapted_to: frozenset[Path] = frozenset(),
) -> LabelledImages:
    """The labelled images, stored and scaled as `target` was. adapted_to: of `shared`. Raises Problem as app.layouts.labelled does, and
    too_many_broken_images, disk_full."""
    if data.evaluation is None:
        raise ValueError("the specification has no evaluation set")
    entries = layouts.labelled(data.evaluation, classes, roots)
    readings = readings_of(data.target.scaling, data.target.modality)
    range, channels = target.range, target.array.shape[1]

    def plan() -> tuple[dict[str, Stored], dict[str, Any]]:
        seen = _survey(entries, readings, "/data/evaluation/uri")
        stretch = input.resize == "stretch"
        stored = Stored(*_square(input), channels, stretch, range, readings)
        doubts = []
        if (min(seen.bits, 16), seen.channels) != (range.bits, channels):
            message = (
                f"{seen.bits} bits and {seen.channels} channels, unlike the target images' {range.bits} and {channels}: converted"
            )
            doubts = [["evaluation_differs", message]]
        return {"evaluation": stored}, {"ranges": {"evaluation": asdict(range)}, "side": seen.side, "warnings": doubts}

    settings = [input.model_dump(mode="json"), *astuple(readings), asdict(range), channels]
    record = _read("evaluation", {"evaluation": entries}, settings, plan, data, cache, emit, "/data/evaluation/uri")
    dropped = set(record["dropped"])
    read = [entry for i, entry in enumerate(entries) if i not in dropped]
    if both := sum(entry.path in adapted_to for entry in read):
        message = f"{both} of {len(read)} evaluation images are target images too: they were adapted to, if without their labels"
        emit(Warned(code="evaluation_adapted_to", message=message, data={"images": both}))
    index = {name: i for i, name in enumerate(classes)}
    labels = [index[entry.label or ""] for entry in read]
    return LabelledImages(_images(cache, record, "evaluation", "evaluation", emit), np.array(labels, dtype=np.int64))


def shared(
    data: DataSpec, evaluation: Sequence[Entry], roots: Sequence[Path] | None, classes: Sequence[str] | None
) -> frozenset[Path]:
    """The files that are target images, too. Raises Problem as app.layouts.images does."""
    files = {entry.path for entry in evaluation}
    return frozenset(entry.path for entry in layouts.images(data.target, roots, classes=classes) if entry.path in files)


def _read(
    name: str,
    columns: Mapping[str, Sequence[Entry]],
    settings: Any,
    plan: Plan,
    data: DataSpec,
    cache: Path,
    emit: Emit,
    pointer: str,
) -> dict[str, Any]:
    """The record of a set out of the cache, or decoded into it. Raises Problem too_many_broken_images, disk_full."""
    rows = list(zip(*columns.values(), strict=True))
    key = image_cache.key_of([*columns.values()], settings)
    record = image_cache.recall(cache, name, key)
    if record is None:
        stored, facts = plan()
        megabytes = len(rows) * sum(one.nbytes for one in stored.values()) / 1e6
        emit(
            Logged(
                message=f"{name}: decoding {len(rows)} {'pairs' if name == 'pairs' else 'images'} into {megabytes:.1f} MB of cache"
            )
        )
        both = {column: (entries, stored[column]) for column, entries in columns.items()}
        record = image_cache.store(cache, name, key, both, facts)
    else:
        emit(Logged(message=f"{name}: decoded before, used again"))
    _not_too_broken(record, len(rows), data.broken_image_share, pointer)
    if again := len(rows) - len({tuple(entry.path for entry in row) for row in rows}):
        message = f"{name}: {again} of {len(rows)} are repetitions of another: what is in a list twice counts twice"
        emit(Warned(code="repeated_images", message=message, data={"reference": name, "images": again}))
    for code, message in record["facts"]["warnings"]:
        emit(Warned(code=code, message=f"{name}: {message}", data={"reference": name}))
    return record


def _survey(entries: Sequence[Entry], readings: Readings, pointer: str) -> Survey:
    try:
        return survey(entries, readings)
    except UnreadableError as error:
        names = [entry.name for entry in entries]
        detail = f"not one of {len(names)} images can be read; {error}; {few(names)}"
        raise Problem("too_many_broken_images", detail, pointer=pointer, names=names[:10]) from error


def _not_too_broken(record: dict[str, Any], rows: int, share: float, pointer: str) -> None:
    dropped = len(record["dropped"])
    if dropped <= share * rows and dropped < rows:
        return
    names = [name for column in record["columns"].values() for name in column["broken_names"]]
    detail = f"{dropped} of {rows} ({dropped / rows:.0%}) cannot be read, and {share:.0%} may be broken: {few(names)}"
    raise Problem(
        "too_many_broken_images", detail, pointer=pointer, names=names[: image_cache.BROKEN_NAMED], broken=dropped, of=rows
    )


def _enough(count: int, needed: int, what: str, pointer: str) -> None:
    if count < needed:
        raise Problem("too_few_images", f"{count} readable {what}; at least {needed} are needed", pointer=pointer)


def _images(cache: Path, record: dict[str, Any], column: str, reference: Any, emit: Emit) -> Images:
    """The column as Images, announced by its DataRead and, where images were bent to the set's kind, a warning."""
    facts = record["columns"][column]
    array = image_cache.open_column(cache, column)
    range = Range(**record["facts"]["ranges"][column])
    emit(
        DataRead(
            reference=reference,
            images=len(array),
            broken=facts["broken"],
            broken_names=facts["broken_names"],
            bits=range.bits,
            channels=array.shape[1],
            smallest=facts["smallest"],
            largest=facts["largest"],
            scaling=range.words,
            no_reading_share=facts["holes"] / facts["pixels"],
        )
    )
    if reference == "target" and facts["converted"]:
        message = f"{facts['converted']} of {len(array)} images were converted to {range.bits} bits and {array.shape[1]} channels"
        emit(Warned(code="images_converted", message=message, data={"reference": reference, "images": facts["converted"]}))
    return Images(array, facts["names"], range, record["facts"]["side"], facts["sha256"])


def _doubts(seen: Survey, range: Range, scaling: Scaling, input: InputSpec) -> list[list[str]]:
    """What the user should look at, as [code, message]."""
    doubts = []
    if SMALL * seen.side < input.size:
        message = f"the shorter side of half of the images has {seen.side:g} pixels or less, and the model takes {input.size}"
        doubts.append(["small_images", f"{message}: are they the images themselves?"])
    if seen.mixed:
        doubts.append(["mixed_images", f"the images differ in {seen.mixed}"])
    if not seen.any:
        doubts.append(["no_readings", "not one pixel of the images that were looked at is a reading; see `scaling.no_reading`"])
    elif (seen.p99 - seen.p1) * range.gain < NARROW * (range.high - range.low):
        message = (
            f"98% of the readings lie in {seen.p1:g} to {seen.p99:g}, under {NARROW:.0%} of what becomes 0 to 1 ({range.words})"
        )
        doubts.append(["narrow_scaling", f"{message}; set `scaling`"])
    if scaling.no_reading is None and seen.bits != 8:
        for value, message in seen.alone.items():
            remedy = "set `scaling.no_reading`" if value.is_integer() and abs(value) <= 65535 else "write NaN there"
            doubts.append(["no_reading_unset", f"{message}; if it means that nothing was measured, {remedy}"])
    return doubts


def _square(input: InputSpec) -> tuple[int, int]:
    side = round(input.size / input.crop_ratio)
    return side, side


def _rectangle(input: InputSpec, scale: float, aspect: float) -> tuple[int, int]:
    """(height, width) with the shorter side size / crop_ratio * scale. aspect: width / height."""
    shorter = round(input.size / input.crop_ratio * scale)
    return (shorter, round(shorter * aspect)) if aspect >= 1 else (round(shorter / aspect), shorter)
