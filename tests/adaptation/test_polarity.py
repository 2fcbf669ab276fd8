"""Which side T starts from. The made shapes are bright in RGB, and near: dark in depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.torch import load_file

from worker.adaptation.events import Logged


def said(ran) -> list[str]:
    return [event.message for event in ran.events if isinstance(event, Logged) and "brightness" in event.message]


def negatives(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            ImageOps.invert(image).save(path)


def correlation(folder: Path, held_out: set[str]) -> float:
    """As torchvision's users would: brightness at centre crops, here of 32 in 37 pixels, and depth by 5 m."""
    x, y = [], []
    for path in sorted((folder / "depth").iterdir()):
        if path.name not in held_out:
            x.append(np.asarray(Image.open(path), dtype=np.float64)[2:34, 2:34] / 5000)
            y.append(np.asarray(Image.open(folder / "rgb" / path.name), dtype=np.float64).mean(2)[2:34, 2:34])
    return float(np.corrcoef(np.ravel(x), np.ravel(y))[0, 1])


def test_dark_for_bright_starts_from_the_negative_and_says_by_how_much(adapt, data):
    ran = adapt(method="tgmb", settings={"bridging": {"steps": 1, "held_out": 0.01}})
    every = correlation(data / "pairs", set())
    (message,) = said(ran)
    found = float(message.split("correlates by ")[1].split(",")[0])
    assert every < -0.5 and found == pytest.approx(every, abs=0.03)  # all but one pair
    assert "its negative" in message
    assert ran.report["stages"]["bridging"]["inverted"] is True
    assert load_file(ran.out / "artifacts/translator.safetensors")["inverted"].item() is True


def test_bright_for_bright_starts_from_the_image(adapt, data):
    negatives(data / "pairs/rgb")
    ran = adapt(method="tgmb", settings={"bridging": {"steps": 1}})
    (message,) = said(ran)
    assert "correlates by +" in message and "as it is" in message
    assert ran.report["stages"]["bridging"]["inverted"] is False


@pytest.mark.parametrize("wanted", ["keep", "invert"])
def test_the_settings_overrule_the_pairs(adapt, wanted):
    ran = adapt(method="tgmb", settings={"bridging": {"steps": 1, "polarity": wanted}})
    assert ran.report["stages"]["bridging"]["inverted"] is (wanted == "invert")
    assert not said(ran)


def test_pairs_that_show_nothing_tell_nothing(adapt, data):
    for path in (data / "pairs/rgb").iterdir():
        Image.new("RGB", (37, 37), "gray").save(path)
    ran = adapt(method="tgmb", settings={"bridging": {"steps": 1}})
    assert "correlates by +0.00" in said(ran)[0]
    assert ran.report["stages"]["bridging"]["inverted"] is False


def test_the_papers_translator_has_no_side(adapt):
    ran = adapt(method="tgmb", settings={"bridging": {"steps": 1, "translator": "paper", "polarity": "invert"}})
    assert "inverted" not in ran.report["stages"]["bridging"]
