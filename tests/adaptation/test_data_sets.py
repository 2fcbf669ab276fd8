"""Sets of images as a job has them: broken files, pairs, and the cache that they are read into."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app import layouts
from app.errors import Problem
from app.spec import InputSpec
from tests.adaptation.folders import INPUT, Events, data_spec, depth_folder, ramp, read, save
from worker.adaptation import image_cache
from worker.adaptation.data import read_evaluation, read_pairs, read_target, shared

# Broken images


@pytest.mark.parametrize("layout", ["target", "pairs", "evaluation"])
def test_a_few_broken_images_are_left_out_counted_and_named(layout, tmp_path):
    everything(tmp_path, 40)
    place = {"target": "depth", "pairs": "ti/depth", "evaluation": "test/box"}[layout]
    broken = sorted((tmp_path / place).iterdir())[3:5]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    events, _, pairs, evaluation = read_everything(tmp_path)
    reference = "pairs/target" if layout == "pairs" else layout
    (event,) = [event for event in events.of("data") if event.reference == reference]
    assert event.images == 38 and event.broken == 2
    assert all(path.name in named for path, named in zip(broken, event.broken_names, strict=True))
    if layout == "pairs":
        assert pairs.source.names == [name.replace("png", "jpg") for name in pairs.target.names]
        assert len(pairs) == 38 and broken[0].name not in pairs.target.names
    if layout == "evaluation":
        assert [name.split("/")[0] for name in evaluation.images.names] == [["box", "mug"][label] for label in evaluation.labels]


@pytest.mark.parametrize("layout", ["target", "pairs", "evaluation"])
def test_too_many_broken_images_fail_the_job_with_the_first_names(layout, tmp_path):
    everything(tmp_path, 20)
    place = {"target": "depth", "pairs": "ti/rgb", "evaluation": "test"}[layout]
    broken = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())[:12]
    for path in broken:
        path.write_bytes(b"broken")
    with pytest.raises(Problem) as caught:
        read_everything(tmp_path)
    assert (caught.value.code, caught.value.pointer) == ("too_many_broken_images", f"/data/{layout}/uri")
    assert broken[0].name in caught.value.detail and len(caught.value.context["names"]) == 10
    assert "12 of 20 (60%)" in caught.value.detail


def test_all_broken_is_too_many_whatever_is_allowed(tmp_path):
    for i in range(9):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{i}.png").write_bytes(b"broken")
    with pytest.raises(Problem) as caught:
        read(tmp_path, data_spec(tmp_path / "data", broken_image_share=1.0))
    assert caught.value.code == "too_many_broken_images"
    assert "0.png: it is no PNG, JPEG or TIFF" in caught.value.detail


def test_too_few_that_can_be_read_are_told_apart(tmp_path):
    depth_folder(tmp_path / "data", 10)
    for i in range(3):
        (tmp_path / f"data/{i:03}.png").write_bytes(b"broken")
    with pytest.raises(Problem) as caught:
        read(tmp_path, data_spec(tmp_path / "data", broken_image_share=0.5))
    assert caught.value.code == "too_few_images" and "7" in caught.value.detail


# Pairs and evaluation


def everything(folder: Path, n: int, pair_size: tuple[int, int] = (48, 64)) -> None:
    """depth/, ti/rgb, ti/depth and test/{box,mug}, n images each."""
    depth_folder(folder / "depth", n)
    for i in range(n):
        colour = np.stack([ramp(*pair_size, v, np.uint8) for v in (250, 120, 60)], axis=2)
        save(folder / f"ti/rgb/{i:03}.jpg", colour)
        save(folder / f"ti/depth/{i:03}.png", ramp(*pair_size, 4000 + i))
        save(folder / f"test/{'box' if i % 4 == 0 else 'mug'}/{i:03}.png", ramp(48, 64, 2000 + 10 * i))


def read_everything(folder: Path, input: InputSpec = INPUT, cache: str = "cache"):
    data = data_spec(folder / "depth", pairs={"uri": str(folder / "ti")}, evaluation={"uri": str(folder / "test")})
    events = Events()
    target = read_target(data, input, folder / cache, events)
    pairs = read_pairs(data, input, target, folder / cache, events)
    return events, target, pairs, read_evaluation(data, ["box", "mug"], input, target, folder / cache, events)


def test_pairs_of_the_targets_size_are_stored_at_its_scale(tmp_path):
    everything(tmp_path, 12)
    events, target, pairs, evaluation = read_everything(tmp_path)
    source, other = pairs.batch(np.array([3, 0]))
    assert pairs.scale == 1 and source.shape == (2, 3, 32, 43) and other.shape == (2, 1, 32, 43)
    assert 0.9 < source[0, 0].max() <= 1 and source[0, 0].mean() > source[0, 2].mean()
    assert abs(other[0].max() - 0.4) < 0.01 and target.high == pairs.target.high == 10000
    assert evaluation.labels.tolist() == [0] * 3 + [1] * 9 and evaluation.images.high == 10000
    assert {event.reference for event in events.of("data")} == {"target", "pairs/source", "pairs/target", "evaluation"}


def test_larger_pairs_keep_their_scale_and_aspect(tmp_path):
    everything(tmp_path, 10, pair_size=(144, 216))
    _, _, pairs, _ = read_everything(tmp_path)
    assert pairs.scale == 3 and pairs.source.array.shape == (10, 3, 96, 144) == (10, 3, *pairs.target.array.shape[2:])
    _, _, pairs, _ = read_everything(tmp_path, InputSpec(size=28, resize="stretch"))
    assert pairs.source.array.shape == (10, 3, 96, 96)


def test_an_rgb_side_of_grey_or_16_bit_images_becomes_8_bit_rgb(tmp_path):
    everything(tmp_path, 10)
    for i in range(10):
        (tmp_path / f"ti/rgb/{i:03}.jpg").unlink()
        save(tmp_path / f"ti/rgb/{i:03}.png", np.full((48, 64), 128 * 257, np.uint16))
    _, _, pairs, _ = read_everything(tmp_path)
    assert pairs.source.array.dtype == np.uint8 and (pairs.source.array == 128).all() and pairs.source.array.shape[1] == 3


def test_pairs_whose_images_differ_in_shape_are_warned_of(tmp_path):
    everything(tmp_path, 10)
    save(tmp_path / "ti/depth/004.png", ramp(48, 90, 4000))
    events, _, pairs, _ = read_everything(tmp_path)
    assert "pairs_askew" in events.warned and len(pairs) == 10


def test_an_evaluation_on_target_images_is_warned_of(tmp_path):
    everything(tmp_path, 12)
    assert "evaluation_adapted_to" not in read_everything(tmp_path)[0].warned
    data = data_spec(tmp_path, evaluation={"uri": str(tmp_path / "test")})
    events, classes = Events(), ["box", "mug"]
    sorted((tmp_path / "test").rglob("*.png"))[0].write_bytes(b"broken")
    data = data.model_copy(update={"broken_image_share": 0.1})
    target = read_target(data, INPUT, tmp_path / "another", events)
    both = shared(data, layouts.labelled(data.evaluation, classes, None), None, classes)
    assert len(both) == 12
    found = read_evaluation(data, classes, INPUT, target, tmp_path / "another", events, adapted_to=both)
    (warning,) = [event for event in events.of("warning") if event.code == "evaluation_adapted_to"]
    assert warning.data == {"images": len(found.labels)} == {"images": 11} and "11 of 11" in warning.message


def test_pairs_the_wrong_way_round_are_warned_of(tmp_path):
    everything(tmp_path, 10)
    assert "pairs_differ" not in read_everything(tmp_path)[0].warned
    (tmp_path / "ti/rgb").rename(tmp_path / "ti/aside")
    (tmp_path / "ti/depth").rename(tmp_path / "ti/rgb")
    (tmp_path / "ti/aside").rename(tmp_path / "ti/depth")
    assert "pairs_differ" in read_everything(tmp_path, cache="another")[0].warned


# The cache


def test_a_second_run_decodes_nothing_and_a_changed_folder_is_read_again(tmp_path):
    folder = depth_folder(tmp_path / "data")
    data = data_spec(folder)
    first, events = read(tmp_path, data)
    written = (tmp_path / "cache/target.npy").stat().st_mtime_ns
    again, repeated = read(tmp_path, data)
    assert torch.equal(first, again) and (tmp_path / "cache/target.npy").stat().st_mtime_ns == written
    assert events.of("data") == repeated.of("data")

    path = save(folder / "003.png", ramp(48, 64, 9000))
    os.utime(path, ns=(1, 1))
    changed, _ = read(tmp_path, data)
    assert changed[3].max() > 2 * first[3].max() and torch.equal(changed[4], first[4])
    save(folder / "extra.png", ramp(48, 64, 3000))
    assert len(read(tmp_path, data)[0]) == 11
    assert read(tmp_path, data, InputSpec(size=21))[0].shape[2:] == (24, 24)
    assert read(tmp_path, data_spec(folder, scaling={"kind": "full_range"}))[0].max() < 0.2
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["target.json", "target.npy"]


@pytest.mark.parametrize("damage", ["target.json", "target.npy"])
def test_a_damaged_cache_is_made_anew(damage, tmp_path):
    data = data_spec(depth_folder(tmp_path / "data"))
    first, _ = read(tmp_path, data)
    path = tmp_path / "cache" / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert torch.equal(read(tmp_path, data)[0], first)


def test_a_disk_that_fills_is_a_problem_and_leaves_nothing_behind(tmp_path):
    """In a process that may write no more than a few blocks to a file: what a full disk does to a write."""
    depth_folder(tmp_path / "data", 60)
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from app.errors import Problem; from app.spec import DataSpec, InputSpec\n"
        "from worker.adaptation.data import read_target\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: read_target(DataSpec(target={'uri': sys.argv[1]}), InputSpec(size=28), Path(sys.argv[2]), lambda event: None)\n"
        "except Problem as problem: print(problem.code)\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "data"), str(tmp_path / "cache")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "disk_full", done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(ramp(480, 640, 200, np.uint8)).save(buffer, "PNG")
    (tmp_path / "data").mkdir()
    for i in range(400):
        (tmp_path / f"data/{i:04}.png").write_bytes(buffer.getvalue())
    tracemalloc.start()
    images = read_target(data_spec(tmp_path / "data"), InputSpec(size=448), tmp_path / "cache", Events())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert images.array.nbytes > 100e6 and peak < 50e6


def test_the_same_images_give_the_same_bytes_whatever_the_threads(tmp_path, monkeypatch):
    everything(tmp_path, 12)
    read_everything(tmp_path)
    monkeypatch.setattr(image_cache.os, "cpu_count", lambda: 7)
    read_everything(tmp_path, cache="other")
    for name in ("target.npy", "pairs-source.npy", "pairs-target.npy", "evaluation.npy"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
