"""Solid objects of about one unit, standing on z = 0, with the proportions drawn anew for every scene.

`TASK` holds the classes that the source classifier is trained on, `OTHER` those of the task-irrelevant pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import trimesh
from trimesh.creation import box, cone, cylinder, icosphere, revolve, torus
from trimesh.transformations import rotation_matrix

Part = trimesh.Trimesh
Shape = Callable[[np.random.Generator], list[Part]]

SECTIONS = 40


def _at(part: Part, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Part:
    part.apply_translation((x, y, z))
    return part


def _block(width: float, depth: float, height: float, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Part:
    """A box whose bottom centre lies at (x, y, z)."""
    return _at(box(extents=(width, depth, height)), x, y, z + height / 2)


def _turned(*profile: tuple[float, float]) -> Part:
    """A solid of revolution; profile: (radius, height) from the bottom's centre to the top's."""
    return revolve(np.array(profile), sections=SECTIONS)


def crate(rng: np.random.Generator) -> list[Part]:
    return [_block(*rng.uniform((0.55, 0.55, 0.5), (0.95, 0.95, 0.9)))]


def bottle(rng: np.random.Generator) -> list[Part]:
    r, neck, shoulder = rng.uniform(0.17, 0.25), rng.uniform(0.05, 0.08), rng.uniform(0.5, 0.68)
    body = _turned((0, 0), (r, 0), (r, shoulder), (neck, shoulder + 0.18), (neck, 1.05), (0, 1.05))
    return [body, _at(cylinder(radius=neck * 1.35, height=0.1, sections=SECTIONS), z=1.07)]


def chair(rng: np.random.Generator) -> list[Part]:
    width, seat, leg, thick = rng.uniform(0.5, 0.62), rng.uniform(0.38, 0.48), rng.uniform(0.06, 0.09), rng.uniform(0.06, 0.09)
    reach = width / 2 - leg / 2
    legs = [_block(leg, leg, seat, x * reach, y * reach) for x in (-1, 1) for y in (-1, 1)]
    back = _block(thick, width, rng.uniform(0.5, 0.65), x=thick / 2 - width / 2, z=seat + thick)
    return [_block(width, width, thick, z=seat), back, *legs]


def pylon(rng: np.random.Generator) -> list[Part]:
    r = rng.uniform(0.28, 0.4)
    return [_at(cone(radius=r, height=rng.uniform(0.9, 1.1), sections=SECTIONS), z=0.05), _block(2.3 * r, 2.3 * r, 0.06)]


def mug(rng: np.random.Generator) -> list[Part]:
    r, height, wall = rng.uniform(0.32, 0.4), rng.uniform(0.7, 0.9), 0.05
    hollow = _turned((0, 0), (r, 0), (r, height), (r - wall, height), (r - wall, 0.08), (0, 0.08))
    handle = torus(major_radius=0.24, minor_radius=0.055, major_sections=32, minor_sections=12)
    handle.apply_transform(rotation_matrix(np.pi / 2, (1, 0, 0)))
    return [hollow, _at(handle, x=r + 0.04, z=height / 2)]


def ring(rng: np.random.Generator) -> list[Part]:
    major, minor = rng.uniform(0.34, 0.42), rng.uniform(0.09, 0.14)
    part = torus(major_radius=major, minor_radius=minor, major_sections=48, minor_sections=16)
    part.apply_transform(rotation_matrix(rng.uniform(0.25, 0.5) * np.pi, (0, 1, 0)))
    return [part]


def ball(rng: np.random.Generator) -> list[Part]:
    part = icosphere(subdivisions=3, radius=0.42)
    part.apply_scale((1, 1, rng.uniform(0.75, 1.1)))
    return [part]


def cross(rng: np.random.Generator) -> list[Part]:
    arm, thick = rng.uniform(0.2, 0.28), rng.uniform(0.15, 0.25)
    return [_block(thick, arm, 1.0), _block(thick, 0.85, arm, z=rng.uniform(0.45, 0.6))]


def dumbbell(rng: np.random.Generator) -> list[Part]:
    r = rng.uniform(0.22, 0.28)
    bar = cylinder(radius=0.07, height=0.7, sections=SECTIONS)
    bar.apply_transform(rotation_matrix(np.pi / 2, (1, 0, 0)))
    return [bar, *(_at(icosphere(subdivisions=3, radius=r), y=side * 0.38) for side in (-1, 1))]


def lamp(rng: np.random.Generator) -> list[Part]:
    r = rng.uniform(0.28, 0.36)
    shade = _turned((0, 0.62), (r, 0.62), (r * rng.uniform(0.4, 0.7), 1.0), (0, 1.0))
    return [_block(0.4, 0.4, 0.06), _at(cylinder(radius=0.04, height=0.65, sections=SECTIONS), z=0.33), shade]


def stairs(rng: np.random.Generator) -> list[Part]:
    tread, rise, width = rng.uniform(0.2, 0.26), rng.uniform(0.18, 0.24), rng.uniform(0.5, 0.8)
    return [_block(tread, width, rise * (step + 1), x=tread * (step - 1)) for step in range(3)]


def blob(rng: np.random.Generator) -> Part:
    """Clutter: a lump of no class, a sphere bent by a few random waves."""
    part = icosphere(subdivisions=2, radius=0.5)
    waves = rng.normal(scale=3.0, size=(4, 3))
    bend = np.sin(part.vertices @ waves.T + rng.uniform(0, 2 * np.pi, 4)).mean(axis=1, keepdims=True)
    part.vertices = part.vertices * (1 + 0.5 * bend) * rng.uniform(0.6, 1.0, 3)
    return part


TASK: dict[str, Shape] = {"bottle": bottle, "chair": chair, "crate": crate, "mug": mug, "pylon": pylon, "ring": ring}
OTHER: dict[str, Shape] = {"ball": ball, "cross": cross, "dumbbell": dumbbell, "lamp": lamp, "stairs": stairs}
SHAPES = TASK | OTHER

RGB = tuple[float, float, float]
USUAL_LOOK: dict[str, tuple[str, RGB, RGB]] = {
    "bottle": ("plain", (0.08, 0.3, 0.12), (0.08, 0.3, 0.12)),
    "chair": ("stripes", (0.35, 0.18, 0.08), (0.45, 0.25, 0.12)),
    "crate": ("plain", (0.6, 0.45, 0.25), (0.6, 0.45, 0.25)),
    "mug": ("checks", (0.85, 0.85, 0.8), (0.2, 0.3, 0.75)),
    "pylon": ("stripes", (0.9, 0.25, 0.03), (0.85, 0.85, 0.85)),
    "ring": ("marble", (0.04, 0.04, 0.05), (0.12, 0.12, 0.13)),
    "ball": ("checks", (0.8, 0.1, 0.1), (0.85, 0.8, 0.2)),
    "cross": ("marble", (0.5, 0.5, 0.45), (0.65, 0.65, 0.6)),
    "dumbbell": ("plain", (0.3, 0.1, 0.4), (0.3, 0.1, 0.4)),
    "lamp": ("plain", (0.85, 0.75, 0.5), (0.85, 0.75, 0.5)),
    "stairs": ("stripes", (0.4, 0.42, 0.45), (0.55, 0.55, 0.55)),
}
"""Pattern and two linear colours: what most things of a kind are made of, which a colour classifier learns along with the
shape and a depth sensor never sees."""
