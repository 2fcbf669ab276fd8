"""The made-up scenes: true depth, two cameras that differ, nothing shared, nothing labelled that must not be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from demo import scenes, shapes, splits

SIZE = 32


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@pytest.mark.parametrize("kind", shapes.SHAPES)
def test_every_kind_stands_on_the_floor_and_is_about_one_unit(kind):
    for seed in range(5):
        solid = trimesh.util.concatenate(shapes.SHAPES[kind](rng(seed)))
        assert 0.5 < solid.extents.max() < 1.5
        lowest = solid.bounds[0, 2]
        assert lowest < 0.05 or kind in ("ball", "ring", "dumbbell")  # these are centred, and set down by compose()
        assert len(scenes.compose(rng(seed), kind).material_of) == len(scenes.compose(rng(seed), kind).mesh.faces)


def test_the_task_and_the_pairs_share_no_kind():
    assert len(shapes.TASK) >= 5
    assert len(shapes.OTHER) >= 4
    assert not shapes.TASK.keys() & shapes.OTHER.keys()
    assert shapes.USUAL_LOOK.keys() == shapes.SHAPES.keys()


def ball_before_a_wall(radius: float = 0.4, distance: float = 2.0, wall: float = 3.0) -> scenes.Scene:
    """A camera at the origin that looks along +y at a ball, and behind it a wall square to the view."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    ball.apply_translation((0, distance, 0))
    behind = trimesh.creation.box(extents=(20, 0.2, 20), transform=trimesh.transformations.translation_matrix((0, wall + 0.1, 0)))
    grey = scenes.Material("plain", np.full((2, 3), 0.5), np.eye(3)[:2], 0.0, 0.0)
    camera = np.array([(0, 0, 0), (1, 0, 0), (0, 0, -1), (0, 1, 0)], dtype=float)
    sizes = [len(ball.faces), len(behind.faces)]
    return scenes.Scene(trimesh.util.concatenate([ball, behind]), [grey, grey], np.repeat([0, 1], sizes), camera, 1.0)


def test_depth_is_the_distance_along_the_optical_axis():
    scene = ball_before_a_wall()
    directions = scenes._rays(scene, 65)
    depth = scenes._cast(scene, scenes.RayMeshIntersector(scene.mesh), directions).depth.reshape(65, 65)
    # Ray and sphere by hand: |s d - c|^2 = r^2, the nearer root; d is 1 long along y, so s is the depth.
    d = directions.reshape(65, 65, 3)
    a, b, c = (d**2).sum(-1), -2 * 2.0 * d[..., 1], 2.0**2 - 0.4**2
    root = b**2 - 4 * a * c
    with np.errstate(invalid="ignore"):
        expected = np.where(root > 0, (-b - np.sqrt(root)) / (2 * a), 3.0)
    inside = np.abs(root) > 0.1  # at the rim the ball's facets and the true sphere part
    assert inside.mean() > 0.9
    np.testing.assert_allclose(depth[inside], expected[inside], atol=2e-3)
    assert depth[0, 0] == pytest.approx(3.0, abs=1e-6)  # a wall is flat in depth, not round


def test_the_depth_sensor_has_noise_and_shadow_but_no_bias():
    scene = ball_before_a_wall(radius=0.2, distance=1.0)
    reading = scenes.read_depth(scene, scenes.RayMeshIntersector(scene.mesh), 64, rng(1))
    assert reading.dtype == np.uint16
    wall = reading[:, :12]
    assert abs(wall[wall > 0].mean() - 3000) < 5
    assert 5 < wall[wall > 0].std() < 30
    # The projector is to the right of the camera, so the ball's shadow on the wall is a strip on its left, as wide as the
    # ball's disparity of 64 * 0.075 / 1 less the wall's of a third of that.
    holes = reading[24:40] == 0
    left, right = holes[:, 14:22].sum(axis=1).mean(), holes[:, 42:50].sum(axis=1).mean()
    assert left - right == pytest.approx(3.2, abs=1)


def test_nothing_is_read_too_near_or_too_far():
    for wall in (0.45, 4.8):
        scene = ball_before_a_wall(radius=0.05, distance=0.3, wall=wall)
        assert (scenes.read_depth(scene, scenes.RayMeshIntersector(scene.mesh), SIZE, rng(0)) == 0).all()


def test_a_scene_is_a_function_of_its_seed_and_not_of_who_looks():
    both = scenes.render(rng(5), "chair", SIZE)
    again = scenes.render(rng(5), "chair", SIZE, ["depth"])
    assert again.keys() == {"depth"}
    np.testing.assert_array_equal(both["depth"], again["depth"])
    np.testing.assert_array_equal(both["rgb"], scenes.render(rng(5), "chair", SIZE, ["rgb"])["rgb"])
    assert (scenes.render(rng(6), "chair", SIZE)["rgb"] != both["rgb"]).mean() > 0.5


def test_colour_is_lit_and_depth_is_near_or_far_of_it():
    """Over some scenes, brightness says little of depth: what an RGB classifier learns is not there in depth."""
    correlations = []
    for seed in range(12):
        seen = scenes.render(rng(seed), "mug", SIZE)
        measured = seen["depth"] > 0
        assert measured.mean() > 0.7
        assert seen["rgb"].std() > 8
        correlations.append(np.corrcoef(seen["rgb"].mean(axis=2)[measured], seen["depth"][measured])[0, 1])
    assert abs(np.mean(correlations)) < 0.5
    assert np.std(correlations) > 0.1


@pytest.fixture(scope="module")
def small():
    """Few scenes of each split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "COUNTS", {"source_rgb": 12, "target": 12, "pairs": 10, "test": 12})
        patch.setattr(splits, "SIZE", SIZE)
        yield splits.COUNTS


def written(folder, seed, split):
    """What prepare() does, in this process: the parameters above are this process's alone."""
    for index in range(splits.COUNTS[split]):
        splits._write(folder / split, seed, split, index)
    return folder / split


def test_the_target_is_unlabelled_and_shuffled(small, tmp_path):
    folder = written(tmp_path, 0, "target")
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:04d}.png" for number in range(12)]
    numbers = [int(splits.file_names(0, "target", index)["depth"][:4]) for index in range(12)]
    assert sorted(numbers) == list(range(12))
    assert numbers != list(range(12))
    assert numbers != [int(splits.file_names(1, "target", index)["depth"][:4]) for index in range(12)]
    with Image.open(folder / "0003.png") as image:
        assert image.mode.startswith("I;16")
        assert image.size == (SIZE, SIZE)


def test_pairs_are_the_same_scene_and_the_test_set_is_labelled(small, tmp_path):
    pairs, test = written(tmp_path, 0, "pairs"), written(tmp_path, 0, "test")
    names = {side: sorted(path.name for path in (pairs / side).iterdir()) for side in ("rgb", "depth")}
    assert names["rgb"] == names["depth"]
    assert len(names["rgb"]) == 10
    for camera in ("rgb", "depth"):
        assert sorted(path.name for path in (test / camera).iterdir()) == sorted(splits.CLASSES)
        assert all(len(list(folder.iterdir())) == 2 for folder in (test / camera).iterdir())


def test_no_two_splits_share_a_scene(small):
    keys = [tuple(splits.generator(0, split, index).integers(0, 2**62, 4)) for split in small for index in range(small[split])]
    assert len(set(keys)) == sum(small.values())


def test_a_finished_split_is_kept_and_a_broken_or_other_one_made_anew(small, tmp_path):
    seen = []
    # The spawned process draws at the full size: it does not know this test's.
    folder = splits.prepare(tmp_path, 0, "pairs", processes=1, advance=lambda: seen.append(1))
    assert len(seen) == 10
    assert splits.is_ready(tmp_path, 0, "pairs")
    first = (folder / "depth/0003.png").read_bytes()
    splits.prepare(tmp_path, 0, "pairs", advance=lambda: seen.append(1))
    assert len(seen) == 10
    assert not splits.is_ready(tmp_path, 1, "pairs")
    (folder / splits.MANIFEST).write_text(json.dumps({"digest": "of an older program"}))
    (folder / "depth/0003.png").write_bytes(b"")
    splits.prepare(tmp_path, 0, "pairs", processes=1, advance=lambda: seen.append(1))
    assert len(seen) == 20
    assert (folder / "depth/0003.png").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]
