"""A folder whose images are of several sizes, kinds and names is one set."""

from __future__ import annotations

import os

import numpy as np
import torch

from app.spec import DataSpec
from tests.adaptation.folders import data_spec, depth_folder, ramp, read, save


def test_images_of_many_sizes_make_one_set(tmp_path):
    for i, size in enumerate([(20, 30), (64, 48), (32, 32), (100, 300)] * 2):
        save(tmp_path / f"data/{i}.png", ramp(*size, 3000))
    batch, events = read(tmp_path, data_spec(tmp_path / "data"))
    assert batch.shape == (8, 1, 32, 32)
    assert (events.of("data")[0].smallest, events.of("data")[0].largest) == ((30, 20), (300, 100))


def test_a_mixed_set_is_brought_to_one_kind_with_a_warning(tmp_path):
    for i in range(6):
        save(tmp_path / f"data/{i}.png", np.full((32, 32), 128 * 257, np.uint16))
    save(tmp_path / "data/6.png", np.full((32, 32), 128, np.uint8))
    save(tmp_path / "data/7.png", np.full((32, 32, 3), (128, 130, 126), np.uint8))
    batch, events = read(tmp_path, data_spec(tmp_path / "data", scaling={"kind": "full_range"}))
    assert batch.shape == (8, 1, 32, 32)
    assert torch.allclose(batch, torch.full_like(batch, 128 / 255), atol=0.01)
    assert {"mixed_images", "images_converted"} <= events.warned


def test_images_far_smaller_than_the_model_takes_are_warned_of(tmp_path):
    """Such as thumbnails, taken for the images themselves."""
    _, events = read(tmp_path, data_spec(depth_folder(tmp_path / "data", size=(6, 9))))
    (warning,) = (event for event in events.of("warning") if event.code == "small_images")
    assert "6 pixels" in warning.message and "28" in warning.message
    _, events = read(tmp_path, data_spec(depth_folder(tmp_path / "data", size=(7, 9))))
    assert "small_images" not in events.warned


def test_images_that_a_list_has_again_are_warned_of(tmp_path):
    depth_folder(tmp_path, n=8)
    lines = [f"{i % 8:03}.png" for i in range(11)]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    data = DataSpec.model_validate({"target": {"uri": str(tmp_path / "all.txt"), "layout": "list", "modality": "depth"}})
    (warning,) = (event for event in read(tmp_path, data)[1].of("warning") if event.code == "repeated_images")
    assert warning.message.startswith("target: 3 of 11")
    (tmp_path / "all.txt").write_text("\n".join(lines[:8]))
    assert "repeated_images" not in read(tmp_path, data)[1].warned


def test_names_that_are_not_utf8_are_told_as_far_as_they_can_be(adapt, data):
    """Files of an archive from elsewhere, or of an old disk: one that is read and shown, one that is broken."""
    for image, name in (("000", b"000\xff.png"), ("001", b"two\xff.png")):
        (data / f"target/{image}.png").rename(data / "target" / os.fsdecode(name))
    (data / "target" / os.fsdecode(b"two\xff.png")).write_bytes(b"no image")
    ran = adapt(method="source_only", pictures=16)
    (target,) = (event for event in ran.events if event.type == "data" and event.reference == "target")
    assert target.broken_names == ["two\\udcff.png: it is no PNG, JPEG or TIFF"]
    assert r"000\\udcff.png" in (ran.out / "artifacts/pictures.json").read_text(encoding="utf-8")
