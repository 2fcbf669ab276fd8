"""Raw values become 0 to 1: by which scaling, what below 0 and what no reading become, and what is warned of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.spec import InputSpec
from tests.adaptation.folders import Events, data_spec, depth_folder, ramp, read, save, signed_tiff
from worker.adaptation import preprocessing
from worker.adaptation.data import read_target
from worker.adaptation.decoding import decode

WHOLE = InputSpec(size=32, crop_ratio=1.0)


def stored_of(tmp_path, arrays: np.ndarray, scaling: dict | None = None, modality: str = "infrared"):
    for i, array in enumerate(arrays):
        save(tmp_path / f"data/{i}.tif", array)
    events = Events()
    return read_target(data_spec(tmp_path / "data", modality, scaling), WHOLE, tmp_path / "cache", events), events


@pytest.mark.parametrize(
    ("array", "modality", "scaling", "brightest", "words"),
    [
        (ramp(48, 64, 204, np.uint8), "depth", {}, 0.8, "8-bit, 0 to 255"),
        (ramp(48, 64, 8000), "depth", {}, 0.8, "16-bit millimetres, 0 to 10000"),
        (ramp(48, 64, 52428), "depth", {}, 0.8, "16-bit, 0 to 65535"),
        (ramp(48, 64, 4000), "depth", {"kind": "millimetres", "high": 5000}, 0.8, "millimetres, 0 to 5000"),
        (ramp(48, 64, 4000), "depth", {"kind": "full_range"}, 4000 / 65535, "0 to 65535"),
        (ramp(48, 64, 800), "depth", {"kind": "range", "low": 0, "high": 1000}, 0.8, "0 to 1000"),
        (ramp(48, 64, 8, np.float32), "depth", {}, 0.8, "float millimetres, 0 to 10000"),
        (ramp(48, 64, 8000, np.float32), "depth", {}, 0.8, "float millimetres, 0 to 10000"),
        (ramp(48, 64, 204, np.uint8), "infrared", {}, 0.8, "8-bit, 0 to 255"),
        (ramp(48, 64, 40, np.float32), "infrared", {"kind": "range", "low": 0, "high": 50}, 0.8, "float, 0 to 50"),
    ],
)
def test_raw_values_become_0_to_1_and_the_words_say_how(array, modality, scaling, brightest, words, tmp_path):
    ending = "tif" if array.dtype == np.float32 else "png"
    for i in range(8):
        save(tmp_path / f"data/{i}.{ending}", array)
    batch, events = read(tmp_path, data_spec(tmp_path / "data", modality, scaling), InputSpec(size=28, resize="stretch"))
    assert batch.shape == (8, 1, 32, 32) and batch.dtype == torch.float32
    # The last column of the resized ramp is the mean of its last few, a little below the brightest.
    assert brightest * 0.96 < batch.max() <= brightest * 1.001
    (event,) = events.of("data")
    assert words in event.scaling and event.bits == (8 if array.dtype == np.uint8 else 16)


def test_floats_from_0_to_1_are_spread_and_not_taken_for_metres(tmp_path):
    for i in range(8):
        save(tmp_path / f"data/{i}.tif", ramp(48, 64, 1, np.float32) * np.linspace(0.1, 0.8, 64, dtype=np.float32))
    batch, _ = read(tmp_path, data_spec(tmp_path / "data"))
    assert 0.6 < batch.max() < 0.801


def test_16_bit_infrared_is_scaled_by_its_percentiles(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        array = rng.integers(7000, 8000, (64, 64)).astype(np.uint16)
        array[0, 0] = 65535  # one hot pixel must not darken the rest
        save(tmp_path / f"data/{i}.png", array)
    batch, events = read(tmp_path, data_spec(tmp_path / "data", "infrared"), InputSpec(size=64, crop_ratio=1.0))
    assert batch.min() == 0 and batch.max() == 1 and abs(batch.median() - 0.5) < 0.05
    assert "percentile" in events.of("data")[0].scaling


def test_a_scaling_that_leaves_almost_nothing_is_warned_of(tmp_path):
    depth_folder(tmp_path / "data", largest=100)
    _, events = read(tmp_path, data_spec(tmp_path / "data"))
    assert "narrow_scaling" in events.warned


def test_a_set_without_any_reading_is_warned_of_as_that(tmp_path):
    for i in range(8):
        save(tmp_path / f"data/{i}.tif", np.full((48, 64), np.nan, np.float32))
    _, events = read(tmp_path, data_spec(tmp_path / "data"))
    assert events.warned == {"no_readings"}


# A value that may mean that nothing was measured


def with_a_patch(value: float, share: float = 0.05, dtype: type = np.uint16, n: int = 8) -> np.ndarray:
    """n images [32, 32] of 20000 to 24000, so large a share of each at the value."""
    arrays = np.linspace(20000, 24000, n * 32 * 32).reshape(n, 32, 32).astype(dtype)
    arrays.reshape(n, -1)[:, : round(share * 1024)] = value
    return arrays


LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("modality", "value", "dtype", "remedy"),
    [
        ("infrared", 0, np.uint16, "set `scaling.no_reading`"),
        ("infrared", 65535, np.uint16, "set `scaling.no_reading`"),
        ("infrared", -9999, np.float32, "set `scaling.no_reading`"),
        ("infrared", LOWEST, np.float32, "NaN"),
        ("depth", 65535, np.uint16, "set `scaling.no_reading`"),
    ],
)
def test_many_pixels_of_one_value_far_from_all_others_are_warned_of(modality, value, dtype, remedy, tmp_path):
    _, events = stored_of(tmp_path, with_a_patch(value, dtype=dtype), modality=modality)
    (message,) = [one.message for one in events.of("warning") if one.code == "no_reading_unset"]
    assert f"5.0% of the readings are exactly {value:g}" in message and remedy in message


def test_both_ends_may_mean_that_nothing_was_measured(tmp_path):
    arrays = with_a_patch(0)
    arrays[:, -2:] = 65535
    _, events = stored_of(tmp_path, arrays)
    first, second = [one.message for one in events.of("warning") if one.code == "no_reading_unset"]
    assert "exactly 0" in first and "exactly 65535" in second


def test_a_set_that_says_what_means_no_reading_is_not_warned_of(tmp_path):
    _, events = stored_of(tmp_path, with_a_patch(0), {"no_reading": 0})
    assert not events.of("warning")


@pytest.mark.parametrize(
    "arrays",
    [
        np.clip(np.linspace(0, 80000, 8 * 1024), 0, 65535).reshape(8, 32, 32).astype(np.uint16),
        np.clip(np.linspace(-3000, 9000, 8 * 1024), 0, None).reshape(8, 32, 32).astype(np.uint16),
        with_a_patch(0, share=0.005),
        with_a_patch(18000),
        np.full((8, 32, 32), 500, np.uint16),
        np.where(np.arange(8 * 1024) % 2, 40000, 0).reshape(8, 32, 32).astype(np.uint16),
    ],
    ids=["too bright for the sensor", "too dark", "a few pixels", "not far", "one value", "two values"],
)
def test_readings_that_are_cut_off_or_few_are_not_taken_for_none(arrays, tmp_path):
    _, events = stored_of(tmp_path, arrays)
    assert "no_reading_unset" not in events.warned


# Readings below 0


def celsius(coldest: float, warmest: float, dtype: type = np.float32, n: int = 8) -> np.ndarray:
    """n images [32, 32] that rise evenly from one to the other, all in one: no reading is there twice."""
    return np.linspace(coldest, warmest, n * 32 * 32).reshape(n, 32, 32).astype(dtype)


@pytest.mark.parametrize(("coldest", "warmest"), [(-20, 30), (-40, -5), (-0.75, 0.25), (-1000.02, -1000)])
@pytest.mark.parametrize("kind", ["auto", "full_range"])
def test_floats_below_0_keep_their_order(coldest, warmest, kind, tmp_path):
    """Thermal images in degrees: what was below 0 became one value."""
    arrays = celsius(coldest, warmest)
    images, events = stored_of(tmp_path, arrays, {"kind": kind})
    stored = images.array[:, 0].astype(int).ravel()
    assert (np.diff(stored) >= 0).all() and len(np.unique(stored)) >= min(8000, len(np.unique(arrays)))
    assert "narrow_scaling" not in events.warned
    x = images.batch(np.arange(8)).numpy().ravel()
    low, high = np.percentile(arrays, [1, 99]) if kind == "auto" else (arrays.min(), arrays.max())
    expected = np.clip((arrays.ravel().astype(np.float64) - low) / (high - low), 0, 1)
    assert np.abs(x - expected).max() < 0.005
    assert f"{low:g} to {high:g}" in events.of("data")[0].scaling or kind == "auto"


def test_signed_16_bit_files_are_read_with_their_signs(tmp_path):
    """Hundredths of a degree, as thermal cameras write them."""
    arrays = celsius(-2000, 3000, np.int16)
    for i, array in enumerate(arrays):
        signed_tiff(tmp_path / f"data/{i}.tif", array)
    assert np.array_equal(decode(tmp_path / "data/0.tif")[:, :, 0], arrays[0])
    events = Events()
    images = read_target(data_spec(tmp_path / "data", "infrared"), WHOLE, tmp_path / "cache", events)
    assert np.array_equal(images.array[:, 0] + images.range.offset, arrays), "one step of the file is one of what is stored"
    x = images.batch(np.arange(8))
    assert x.min() == 0 and x.max() == 1 and abs(x.median() - 0.5) < 0.01
    assert not events.of("warning")
    assert "signed 16-bit" in events.of("data")[0].scaling


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_range_may_begin_below_0(dtype, tmp_path):
    arrays = celsius(-40, 60, dtype)
    for i, array in enumerate(arrays):
        (signed_tiff if dtype == np.int16 else save)(tmp_path / f"data/{i}.tif", array)
    scaling = {"kind": "range", "low": -20, "high": 0}
    images = read_target(data_spec(tmp_path / "data", "infrared", scaling), WHOLE, tmp_path / "cache", Events())
    x = images.batch(np.arange(8))[:, 0].numpy()
    assert np.abs(x - np.clip((arrays.astype(np.float64) + 20) / 20, 0, 1)).max() < 1e-4


def test_a_few_pixels_far_below_all_others_do_not_darken_them(tmp_path):
    """The lowest float, which many programs write where they have nothing."""
    arrays = celsius(-20, 30)
    arrays[:, 0, 0] = np.finfo(np.float32).min
    images, _ = stored_of(tmp_path, arrays)
    x = images.batch(np.arange(8))[:, 0].numpy()
    assert (x[:, 0, 0] == 0).all() and np.abs(x - np.clip((arrays + 19.5) / 49, 0, 1)).max() < 0.01


@pytest.mark.parametrize(("dtype", "reading"), [(np.float32, 5.0), (np.int16, 5000)])
def test_depth_below_0_is_no_reading(dtype, reading, tmp_path):
    array = np.full((32, 32), reading, dtype)
    array[8:24, 8:24] = -1
    for i in range(8):
        (signed_tiff if dtype == np.int16 else save)(tmp_path / f"data/{i}.tif", array)
    batch, events = read(tmp_path, data_spec(tmp_path / "data"))
    assert torch.allclose(batch, torch.full_like(batch, 0.5), atol=1e-3)
    assert events.of("data")[0].no_reading_share == 0.25


def test_what_means_no_reading_may_be_below_0(tmp_path):
    arrays = celsius(-20, 30)
    arrays[:, 8:16, 8:16] = -999
    images, events = stored_of(tmp_path, arrays, {"no_reading": -999})
    assert events.of("data")[0].no_reading_share == 64 / 1024
    x = images.batch(np.arange(8))[:, 0].numpy()
    assert abs(x[4, 12, 12] - (arrays[4, 7, 12] + 19.5) / 49) < 0.02, "filled from its neighbours"


def test_preprocessing_says_what_is_taken_off(tmp_path):
    images, _ = stored_of(tmp_path, celsius(-20, 30))
    reference = data_spec(tmp_path / "data", "infrared").target
    steps = {step["step"]: step for step in preprocessing.steps_of(images, reference, WHOLE, 1, translated=False)}
    read_, rescale = steps["read"], steps["rescale"]
    raw = decode(tmp_path / "data/3.tif")[:, :, 0]
    x = np.rint(np.clip((raw - read_["offset"]) * read_["gain"], 0, 65535))
    x = np.clip((x - rescale["low"]) / (rescale["high"] - rescale["low"]), 0, 1)
    assert np.abs(x - images.batch(np.array([3]))[0, 0].numpy()).max() < 1e-4
    assert "minus -20" in read_["words"]
