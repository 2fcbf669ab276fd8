"""Data sets as they are downloaded: which views are targets, which are pairs, and what a damaged or hostile tree gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from app import dataset_layouts, layouts, references
from app.errors import Problem
from app.spec import DATA_SETS, DataSet, DataSpec, ImagesReference, PairsReference
from tests.datasets import SUN_VIEWS, diml_sample_view, diml_view, nir_view, sun_view

CLASSES = ["bedroom", "Living room"]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def sun(root: Path) -> Path:
    """By each of the four sensors: two bedrooms, a living room, an office, a view of nobody knows what."""
    for sensor in SUN_VIEWS:
        for number, scene in enumerate(("bedroom", "living_room", "office", "idk", "bedroom\n")):
            sun_view(root / "SUNRGBD", sensor, number, scene, nesting=number % 2)
    return root / "SUNRGBD"


def target(path: Path, layout: str = "sunrgbd", **more: str) -> list[layouts.Entry]:
    return layouts.images(ImagesReference(uri=str(path), layout=layout, **more), [path], classes=CLASSES)


def labelled(path: Path, layout: str = "sunrgbd", **more: str) -> list[tuple[str, str | None]]:
    found = layouts.labelled(ImagesReference(uri=str(path), layout=layout, **more), CLASSES, [path])
    return [(entry.name, entry.label) for entry in found]


def pairs(path: Path, layout: str = "sunrgbd", **more: str) -> list[tuple[str, str]]:
    found = layouts.pairs(PairsReference(uri=str(path), layout=layout, **more), [path], classes=CLASSES)
    return [(source.name, other.name) for source, other in found]


def refusal(call, *arguments, **more) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*arguments, **more)
    return caught.value


def test_every_data_set_says_what_it_measures_and_has_its_reader():
    assert get_args(DataSet) == tuple(DATA_SETS) == tuple(dataset_layouts.READERS)


# SUN RGB-D


def test_sun_views_of_the_models_classes_are_targets_and_no_label_is_kept(sun):
    found = target(sun, sensor="kv2")
    assert [entry.name for entry in found] == [
        "kv2/align_kv2/2014-12-18_15-16-45_000000000001_rgbf000121-resize/depth_bfx/0000121.png",
        "kv2/kinect2data/000000_2014-05-26_14-23-37_260595134347_rgbf000103-resize/depth_bfx/0000103.png",
        "kv2/kinect2data/000004_2014-05-26_14-23-37_260595134347_rgbf000103-resize/depth_bfx/0000103.png",
    ]
    assert {(entry.label, entry.encoding) for entry in found} == {(None, "rotated")}
    assert len(target(sun)) == 12


def test_sun_labels_are_the_models_spelling_of_the_class(sun):
    assert labelled(sun, sensor="xtion") == [
        ("xtion/sun3ddata/brown_bm_1/brown_bm_1/0000000-000000000000/depth_bfx/0000000-000000000000.png", "bedroom"),
        ("xtion/sun3ddata/brown_bm_1/brown_bm_1/0000004-000000000000/depth_bfx/0000004-000000000000.png", "bedroom"),
        ("xtion/xtion_align_data/2014_12_16_14_50_29_0000000001/depth_bfx/0000009.png", "Living room"),
    ]


def test_sun_pairs_are_the_other_scenes_of_all_sensors_unless_one_is_named(sun):
    found = pairs(sun)
    assert [source.split("/")[0] for source, _ in found] == ["kv1", "kv2", "realsense", "xtion"]
    assert found[0] == ("kv1/NYUdata/NYU0002/image/NYU0002.jpg", "kv1/NYUdata/NYU0002/depth_bfx/NYU0002.png")
    assert pairs(sun, sensor="kv1") == found[:1]
    assert pairs(sun, sensor="kv1", depth_folder="depth")[0][1] == "kv1/NYUdata/NYU0002/depth/NYU0002.png"


def test_sun_targets_and_pairs_share_no_view_whatever_the_classes(sun):
    for classes in (["office"], ["Bed-Room", "office"], ["LIVINGROOM"]):
        mine = {e.path.parent.parent for e in layouts.images(ImagesReference(uri=str(sun), layout="sunrgbd"), classes=classes)}
        rows = layouts.pairs(PairsReference(uri=str(sun), layout="sunrgbd"), classes=classes)
        assert mine and rows and mine.isdisjoint(other.path.parent.parent for _, other in rows)
        assert len(mine) + len(rows) == 16  # of 20 views, those of a known scene


def test_sun_may_be_named_at_any_depth_but_not_as_another_sensors(sun):
    assert len(target(sun / "kv1")) == len(target(sun / "kv1", sensor="kv1")) == 3
    assert len(target(sun.parent, sensor="kv1")) == 3
    assert len(target(sun / "kv1/NYUdata/NYU0000")) == 1
    assert refusal(target, sun / "kv1", sensor="kv2").code == "no_images"


def test_sun_without_a_view_of_the_models_classes_says_what_it_has(sun):
    reference = ImagesReference(uri=str(sun), layout="sunrgbd")
    problem = refusal(layouts.images, reference, [sun], classes=["lounge"])
    assert problem.code == "no_images" and "living_room" in problem.detail and problem.pointer == "/data/target/uri"
    other = PairsReference(uri=str(sun), layout="sunrgbd")
    assert refusal(layouts.pairs, other, [sun], classes=["bedroom", "office", "living_room"]).code == "no_images"
    assert refusal(target, sun, depth_folder="depth_fbx").code == "no_images"


def test_sun_view_that_lacks_an_image_is_named(sun):
    (sun / "kv1/NYUdata/NYU0002/depth_bfx/NYU0002.png").unlink()
    problem = refusal(pairs, sun)
    assert (problem.code, problem.pointer) == ("pairs_unmatched", "/data/pairs/uri")
    assert problem.context["names"] == ["kv1/NYUdata/NYU0002"]
    (sun / "realsense/shr/2014_10_28-16_26_59-0000000001/depth_bfx/0000051.png").unlink()
    assert len(target(sun)) == 11


def huge(file: Path) -> None:
    file.write_bytes(b"bedroom" * 1000)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda file: file.unlink(), "layout_mismatch"),
        (huge, "layout_mismatch"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "layout_mismatch"),
        (lambda file: file.write_text("bedroom\noffice"), "layout_mismatch"),
        (lambda file: file.write_text("bed\0room"), "layout_mismatch"),
        (fifo, "layout_mismatch"),
        (lambda file: (file.unlink(), file.mkdir()), "layout_mismatch"),
        (lambda file: (file.unlink(), file.symlink_to("/etc/hostname")), "reference_outside_roots"),
        (lambda file: (file.unlink(), file.symlink_to("/nowhere")), "reference_outside_roots"),
    ],
    ids=["missing", "huge", "not UTF-8", "two lines", "null", "fifo", "folder", "link out", "dangling"],
)
def test_a_scene_txt_that_is_not_one_is_named(spoil, code, sun):
    spoil(sun / "kv1/NYUdata/NYU0004/scene.txt")
    for call in (target, labelled, pairs):
        problem = refusal(call, sun)
        assert problem.code == code and "NYU0004" in problem.detail
    assert len(target(sun, sensor="kv2")) == 3


def test_links_and_second_images_in_a_tree_are_refused(sun, tmp_path):
    outside = sun_view(tmp_path / "secret", "kv1", 7, "bedroom")
    (sun / "kv1/NYUdata/NYU0007").symlink_to(outside)
    assert len(target(sun, sensor="kv1")) == 3
    link = sun / "kv1/NYUdata/NYU0000/depth_bfx/NYU0000.png"
    link.unlink()
    link.symlink_to(outside / "depth_bfx/NYU0007.png")
    assert refusal(target, sun).code == "reference_outside_roots"
    link.unlink()
    link.with_name("a.png").touch()
    link.with_name("b.png").touch()
    assert refusal(target, sun).code == "layout_mismatch"


def test_a_tree_of_too_many_folders_is_refused(sun, monkeypatch):
    monkeypatch.setattr(references, "MAX_IMAGES", 30)
    assert refusal(target, sun).code == "layout_mismatch"


def test_classes_that_differ_in_spelling_alone_cannot_be_told_apart(sun):
    reference = ImagesReference(uri=str(sun), layout="sunrgbd")
    problem = refusal(layouts.images, reference, [sun], classes=["living room", "livingroom"])
    assert problem.code == "layout_mismatch" and "'livingroom'" in problem.detail


def test_a_data_set_cannot_be_split_without_the_models_classes(sun):
    with pytest.raises(ValueError, match="classes"):
        layouts.pairs(PairsReference(uri=str(sun), layout="sunrgbd"))


def test_the_scenes_that_every_sensor_saw_are_counted_from_a_shell(sun):
    sun_view(sun, "kv1", 9, "lab")
    run = [sys.executable, "-W", "error", "-m", "app.dataset_layouts", "sunrgbd"]
    done = subprocess.run([*run, str(sun)], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert found["shared"] == ["bedroom", "living_room", "office"]
    assert found["images"]["lab"] == {"kv1": 1} and found["images"]["bedroom"]["xtion"] == 2
    failed = subprocess.run([*run, str(sun / "nothing")], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert failed.returncode == 1 and failed.stderr.startswith("reference_missing")


# DIML RGB+D


def test_diml_sample_is_split_by_its_numbered_scene_folders(root):
    for number in range(2):
        diml_sample_view(root, "11. Bedroom", number)
        diml_sample_view(root, "12. Livingroom", 10 + number)
        diml_sample_view(root, "02. Cafe", 20 + number)
    assert labelled(root / "train/HR", "diml") == [
        ("11. Bedroom/depth_filled/in_01_160217_000000_depth_filled.png", "bedroom"),
        ("11. Bedroom/depth_filled/in_01_160217_000001_depth_filled.png", "bedroom"),
        ("12. Livingroom/depth_filled/in_01_160217_000010_depth_filled.png", "Living room"),
        ("12. Livingroom/depth_filled/in_01_160217_000011_depth_filled.png", "Living room"),
    ]
    assert {entry.encoding for entry in target(root, "diml")} == {"plain"}
    assert pairs(root, "diml", depth_folder="depth_raw")[1] == (
        "train/HR/02. Cafe/color/in_01_160217_000021_c.png",
        "train/HR/02. Cafe/depth_raw/in_01_160217_000021_depth_raw.png",
    )
    diml_sample_view(root, "11. Bedroom", 5, "train/LR")
    assert len(target(root, "diml")) == 4 and len(target(root / "train/LR", "diml")) == 1
    diml_sample_view(root, "02. Cafe", 22)[1].unlink()
    problem = refusal(pairs, root, "diml")
    assert problem.code == "pairs_unmatched" and problem.context["names"] == ["train/HR/02. Cafe/in_01_160217_000022"]


def test_diml_full_set_names_its_scene_further_up(root):
    for number in range(2):
        diml_view(root, "08_bedroom_1", number)
        diml_view(root, "03_classroom_1", number)
    prefix = "1/16.01.20/1"
    assert labelled(root, "diml") == [
        (f"08_bedroom_1/{prefix}/up_png/in_k_00_160120_00000{n}_ud.png", "bedroom") for n in range(2)
    ]
    assert pairs(root, "diml")[0] == (
        f"03_classroom_1/{prefix}/col/in_k_00_160120_000000_c.png",
        f"03_classroom_1/{prefix}/up_png/in_k_00_160120_000000_ud.png",
    )
    assert len(labelled(root / "08_bedroom_1", "diml")) == 2
    assert refusal(pairs, root / "03_classroom_1/1", "diml").code == "layout_mismatch"


# RGB-NIR Scene


def test_nirscene_pairs_its_tiff_files_by_number(root):
    for number in range(2):
        for scene in ("bedroom", "country", "urban"):
            nir_view(root, scene, number)
    (root / "readme.txt").write_text("")
    (root / "country/thumbnail.png").touch()
    assert labelled(root, "nirscene") == [(f"bedroom/000{n}_nir.tiff", "bedroom") for n in range(2)]
    assert pairs(root, "nirscene")[:2] == [(f"country/000{n}_rgb.tiff", f"country/000{n}_nir.tiff") for n in range(2)]
    (root / "urban/0001_rgb.tiff").unlink()
    assert refusal(pairs, root, "nirscene").context["names"] == ["urban/0001"]
    assert refusal(target, root, "diml").code == "no_images"


# What a specification may say of them


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"target": {"uri": "x", "layout": "nirscene"}}, "/data/target/modality"),
        ({"target": {"uri": "x", "modality": "infrared"}, "pairs": {"uri": "x", "layout": "diml"}}, "/data/target/modality"),
        ({"target": {"uri": "x", "sensor": "kv1"}}, "/data/target/sensor"),
        ({"target": {"uri": "x"}, "pairs": {"uri": "x", "layout": "diml", "sensor": "kv1"}}, "/data/pairs/sensor"),
        ({"target": {"uri": "x"}, "evaluation": {"uri": "x", "depth_folder": "depth"}}, "/data/evaluation/depth_folder"),
    ],
)
def test_a_field_that_the_layout_has_no_use_for_is_refused(data, pointer):
    with pytest.raises(ValidationError) as caught:
        DataSpec.model_validate(data)
    assert caught.value.errors()[0]["ctx"]["pointer"] == pointer


def test_a_job_counts_what_each_set_would_hold(sun):
    for number in range(10, 18):
        sun_view(sun, "xtion", number, "office")
        sun_view(sun, "kv1", number, "bedroom")
    one = {"uri": str(sun), "layout": "sunrgbd"}
    data = DataSpec.model_validate({"target": one | {"sensor": "kv1"}, "pairs": one, "evaluation": one | {"sensor": "kv2"}})
    assert layouts.check(data, CLASSES, [sun]) == {"target": 11, "pairs": 12, "evaluation": 3}
