"""Data sets as they are downloaded, as the engine reads them: the readings of every format, and a job on one tree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import layouts
from app.spec import DataSpec, InputSpec
from tests.datasets import diml_sample_view, nir_view, rgb, rotated, save, sun_view
from worker.adaptation import image_cache
from worker.adaptation.data import read_evaluation, read_pairs, read_target
from worker.adaptation.decoding import UnreadableError, decode

from .conftest import CLASSES, OTHERS, scene

INPUT = InputSpec(size=28)


def read(tree: Path, layout: str, modality: str, classes: tuple[str, ...], cache: str = "cache"):
    """(target, pairs, evaluation, what was said of each set), all three of one tree."""
    one = {"uri": str(tree), "layout": layout}
    data = DataSpec.model_validate({"target": one | {"modality": modality}, "pairs": one, "evaluation": one})
    said: list = []
    target = read_target(data, INPUT, tree.parent / cache, said.append, None, classes)
    pairs = read_pairs(data, INPUT, target, tree.parent / cache, said.append, None, classes)
    evaluation = read_evaluation(data, classes, INPUT, target, tree.parent / cache, said.append)
    return target, pairs, evaluation, {event.reference: event for event in said if event.type == "data"}


def test_the_rotated_bits_of_sun_rgb_d_are_undone_value_by_value(tmp_path):
    raw = np.array([[0, 8, 20_000, 0xFFF8, 1, 63_999 & 0xFFF8]], np.uint16)
    # As the toolbox has it: 20,000 = 2500 * 8; 0xFFF8 is 8191 mm and 1 is 8192 mm, both beyond its 8 m.
    path = save(tmp_path / "a.png", raw)
    assert decode(path, "rotated")[:, :, 0].tolist() == [[0, 1, 2500, 8000, 8000, 7999]]
    assert np.array_equal(decode(path)[:, :, 0], raw)
    every = np.arange(8001, dtype=np.uint16).reshape(1, -1)
    assert np.array_equal(decode(save(tmp_path / "b.png", rotated(every)), "rotated")[:, :, 0], every)


@pytest.mark.parametrize("array", [rgb(), np.full((4, 4), 90, np.uint8)], ids=["colours", "8 bit"])
def test_what_cannot_be_sun_depth_is_unreadable(array, tmp_path):
    with pytest.raises(UnreadableError, match="16-bit depth"):
        decode(save(tmp_path / "a.png", array), "rotated")


def test_sun_depth_is_stored_as_millimetres_and_a_hole_stays_a_hole(tmp_path):
    depth = np.full((48, 64), 2500, np.uint16)
    depth[10:20, 10:30] = 0
    far = np.full((48, 64), 60_000, np.uint16)
    for number in range(8):
        sun_view(tmp_path / "SUNRGBD", "kv1", number, "bedroom", far if number == 7 else depth, rgb(size=(48, 64)))
        sun_view(tmp_path / "SUNRGBD", "kv2", number, "lab", depth * 2, rgb(size=(48, 64)))
    target, pairs, evaluation, said = read(tmp_path / "SUNRGBD", "sunrgbd", "depth", ("office", "bedroom"))
    assert said["target"].scaling == "16-bit millimetres, 0 to 10000 becomes 0 to 1" == said["pairs/target"].scaling
    assert np.allclose(target.batch(np.arange(7)), 0.25) and np.allclose(target.batch(np.array([7])), 0.8)
    assert said["target"].no_reading_share == pytest.approx(7 / 8 * 200 / (48 * 64))
    source, other = pairs.batch(np.arange(8))
    assert np.allclose(other, 0.5) and source.shape[1] == 3 and abs(source[:, 0].mean() - 120 / 255) < 0.02
    assert evaluation.labels.tolist() == [1] * 8 and np.array_equal(evaluation.images.array, target.array)


def test_the_cache_tells_one_encoding_from_another(tmp_path):
    entry = layouts.Entry("a.png", save(tmp_path / "a.png", rotated(np.full((4, 4), 2500, np.uint16))))
    keys = {image_cache.key_of([[one]], {}) for one in (entry, replace(entry), replace(entry, encoding="rotated"))}
    assert len(keys) == 2


def test_diml_depth_is_read_as_millimetres(tmp_path):
    for number in range(8):
        diml_sample_view(tmp_path / "diml", "11. Bedroom", number)
        diml_sample_view(tmp_path / "diml", "02. Cafe", number)
    target, pairs, evaluation, said = read(tmp_path / "diml", "diml", "depth", ("Bedroom",))
    assert "16-bit millimetres" in said["target"].scaling
    assert np.allclose(target.batch(np.arange(8)), 0.25) and np.allclose(pairs.batch(np.arange(8))[1], 0.25)
    assert evaluation.labels.tolist() == [0] * 8


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16)])
def test_near_infrared_tiff_of_8_or_16_bits_is_read(dtype, bits, tmp_path):
    for number in range(8):
        for place in ("country", "urban"):
            nir_view(tmp_path / "nirscene1", place, number, dtype)
    target, pairs, evaluation, said = read(tmp_path / "nirscene1", "nirscene", "infrared", ("urban", "field"))
    assert (said["target"].bits, said["target"].channels, said["target"].no_reading_share) == (bits, 1, 0)
    assert said["pairs/source"].channels == 3 and len(pairs) == 8 == len(target)
    if bits == 8:
        assert np.allclose(target.batch(np.arange(8)), 90 / 255) and np.allclose(pairs.batch(np.arange(8))[1], 90 / 255)
    assert evaluation.labels.tolist() == [0] * 8


def test_a_job_runs_on_one_tree_that_is_target_pairs_and_evaluation(adapt, data):
    rng = np.random.default_rng(0)
    for number in range(48):
        kind = (*CLASSES, *OTHERS)[number % 5]
        colours, depth = scene(kind, rng)
        sun_view(data / "SUNRGBD", "kv1" if kind in CLASSES else "xtion", number, kind, depth, colours, number % 2)
    one = {"uri": "SUNRGBD", "layout": "sunrgbd", "scaling": {"kind": "millimetres", "high": 5000}}
    ran = adapt(
        data={
            "target": one | {"sensor": "kv1"},
            "pairs": one,
            "evaluation": {"uri": "SUNRGBD", "layout": "sunrgbd"},
        },
        settings={"transfer": {"epochs": 1}},
    )
    read = {event.reference: event for event in ran.events if event.type == "data"}
    assert (read["target"].images, read["pairs/target"].images, read["evaluation"].images) == (30, 18, 30)
    assert read["target"].scaling == "16-bit millimetres, 0 to 5000 becomes 0 to 1"
    assert np.sum(ran.report["evaluation"]["labelled"]["adapted"]["confusion"], axis=1).tolist() == [10, 10, 10]
