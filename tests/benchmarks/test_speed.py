"""What benchmarks.speed compares, and how its figures come about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.spec import InputSpec
from benchmarks import camera_images, socket_loop, speed
from worker.adaptation import source_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return camera_images.make(tmp_path_factory.mktemp("files"), 8, 8, (80, 60))


def test_the_images_are_as_cameras_write_them_and_the_same_each_time(files, tmp_path):
    again = camera_images.make(tmp_path, 2, 1, (80, 60))
    for name in ("target/000000.png", "target/000001.png", "pairs/depth/000000.png", "pairs/rgb/000000.jpg"):
        assert (again / name).read_bytes() == (files / name).read_bytes()
    with Image.open(files / "target/000000.png") as image:
        assert (image.mode, image.size) == ("I;16", (80, 60))
        values = np.asarray(image)
    read = values[values > 0]
    assert read.min() > camera_images.NEAR * 0.9 and read.max() < camera_images.FAR * 1.1
    assert 0 < (values == 0).mean() < 0.5, "holes where nothing was measured"
    with Image.open(files / "pairs/rgb/000000.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 60))


def test_sockets_loader_divides_depth_by_65535_repeats_and_normalises_it(files):
    input = InputSpec(size=60, crop_ratio=1.0)
    x, index = socket_loop.TargetFiles([files / "target/000003.png"], socket_loop.testing(input, 1))[0]
    with Image.open(files / "target/000003.png") as image:
        centre = np.asarray(image, dtype=np.float64)[:, 10:70] / 65535
    expected = (centre[None] - np.array(input.mean)[:, None, None]) / np.array(input.std)[:, None, None]
    assert index == 0
    assert x.numpy() == pytest.approx(expected, abs=1e-5)


def test_sockets_labels_are_the_same_with_and_without_worker_processes(files):
    input = InputSpec(size=32)
    torch.manual_seed(0)
    classifier = source_model.build("timm/test_resnet", 10, input)
    target = socket_loop.TargetFiles(sorted((files / "target").iterdir()), socket_loop.testing(input, 1))
    alone, with_one = (socket_loop.label(classifier, target, 4, workers) for workers in (0, 1))
    assert alone.shape == (8,) and torch.equal(alone, with_one)


def test_ratios_by_hand():
    """Batches of 10; TGKT takes 0.3 s in bf16 and 0.5 s in fp32, SOCKET's loop 1.2 s at best."""
    steps = {
        "socket_loop, 0 workers": [1.5, 1.4, 1.6],
        "socket_loop, 2 workers": [1.2, 1.1, 9.0],
        "socket, fp32": [0.4, 0.4, 0.5],
        "tgmb_tgkt, fp32": [0.5, 0.5, 0.4],
        "bare, fp32": [0.5, 0.4, 0.5],
        "tgmb_tgkt, bf16": [0.3, 0.3, 0.2],
        "bare, bf16": [0.25, 0.25, 0.25],
    }
    labels = {"socket_loop, 0 workers": [0.05], "socket_loop, 2 workers": [0.03], "engine, fp32": [0.02], "engine, bf16": [0.01]}
    found = speed.compared(steps, labels, "bf16", 10, {"target": 0.1, "pairs": 0.12})
    assert found["ratios"] == {
        "tgkt_to_socket_loop": 4.0,
        "tgkt_fp32_to_socket_loop": 2.4,
        "same_terms": 3.0,
        "step_to_bare": 1.2,
        "step_to_bare_fp32": 1.0,
        "epoch": 3.75,  # (1.2 / 10 + 0.03) / (0.3 / 10 + 0.01)
        "epoch_fp32": 2.143,  # 0.15 / (0.5 / 10 + 0.02)
    }
    assert found["images_per_s"]["tgmb_tgkt, bf16"] == 66.67  # 10 target images and 10 pairs in 0.3 s
    assert found["step_s"]["socket_loop, 2 workers"] == {"median": 1.2, "least": 1.1, "most": 9.0, "steps": 3}
    assert found["socket_loop_best"] == "socket_loop, 2 workers"
    assert found["epochs_to_break_even"] == 2.0  # 0.22 s an image once, 0.15 - 0.04 s saved an epoch


def test_a_run_prints_every_contestant(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        given = ["--work", str(tmp_path), "--architecture", "timm/test_resnet", "--sizes", "32", "--batch-size", "2"]
        assert speed.main([*given, "--images", "8", "--steps", "2", "--rounds", "2"]) == 0
    finally:
        torch.set_num_threads(threads)
    document = json.loads(capsys.readouterr().out)
    (found,) = document["measured"]
    assert (found["size"], found["batch_size"]) == (32, 2)
    assert {"socket_loop, 0 workers", "socket_loop, 2 workers", "socket, fp32", "tgmb_tgkt, fp32", "bare, fp32"} <= found[
        "step_s"
    ].keys()
    for name, told in found["step_s"].items():
        assert told["steps"] == 4, name
        assert 0 < told["least"] <= told["median"] <= told["most"]
    assert document["environment"]["threads"] >= 1
    assert not list(tmp_path.glob("engine-*")), "the engine's cache is not left behind"


def test_too_few_images_for_the_steps_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        speed.main(["--work", str(tmp_path), "--images", "64"])
    assert "--images must be 192 at least" in capsys.readouterr().err
