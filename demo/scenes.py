"""One scene, seen by a colour camera and by a depth camera at the same place, by ray casting (trimesh on Embree).

Both images come from the same solid objects, and share little else: colour is texture, light, shadow and exposure;
depth is distance along the optical axis, with the noise and the missing readings of a structured-light sensor.
Lengths are metres, z is up, colours are linear in [0, 1] until `expose`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector
from trimesh.transformations import rotation_matrix

from demo.shapes import SHAPES, USUAL_LOOK, Part, blob

SUPERSAMPLING = 2
NEAREST, FARTHEST = 0.5, 4.5
"""What the depth sensor can read, in metres."""
USUAL_SHARE = 0.6
"""Of the objects: these have their kind's usual look, the others any."""
BASELINE = 0.075
"""From the depth sensor's camera to its projector, in metres: what the projector does not light has no reading."""


@dataclass(frozen=True)
class Material:
    """A solid texture: two colours [2, 3], mixed by a pattern along two axes [2, 3] of the scene (radians a metre)."""

    pattern: str
    colours: np.ndarray
    axes: np.ndarray
    phase: float
    gloss: float

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """points [n, 3] -> colours [n, 3]."""
        a, b = (points @ self.axes.T + self.phase).T
        if self.pattern == "plain":
            mix = np.zeros(len(points))
        elif self.pattern == "stripes":
            mix = (np.sin(a) > 0).astype(float)
        elif self.pattern == "checks":
            mix = (np.sin(a) * np.sin(b) > 0).astype(float)
        else:
            mix = 0.5 + 0.5 * np.sin(a + 2 * np.sin(b))
        return self.colours[0] + mix[:, None] * (self.colours[1] - self.colours[0])


@dataclass(frozen=True)
class Scene:
    mesh: trimesh.Trimesh
    materials: list[Material]
    material_of: np.ndarray
    """Index into materials, by face."""
    camera: np.ndarray
    """[4, 3]: position, then right, down and forward."""
    zoom: float
    """Focal length over the image's width."""


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _material(rng: np.random.Generator, cycles: tuple[float, float], contrast: float, look: str | None = None) -> Material:
    """cycles: the least and the most repetitions a metre. contrast: standard deviation between the two colours. look: the
    kind of object whose usual look is varied; None: any pattern and colours."""
    pattern = str(rng.choice(["plain", "plain", "stripes", "checks", "marble"]))
    first = rng.uniform(0.03, 0.9, 3)
    second = first + rng.normal(scale=contrast, size=3)
    if look is not None:
        pattern, *usual = USUAL_LOOK[look]
        first, second = np.array(usual) * rng.uniform(0.7, 1.3) + rng.normal(scale=0.03, size=(2, 3))
    axes = _unit(rng.normal(size=(2, 3))) * 2 * np.pi * rng.uniform(*cycles)
    colours = np.clip([first, second], 0.02, 0.95)
    return Material(pattern, colours, axes, rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5))


def _object(rng: np.random.Generator, kind: str) -> list[Part]:
    """A thing of the kind in a random pose and size, on the floor near the origin."""
    parts = SHAPES[kind](rng)
    turn = rotation_matrix(rng.uniform(0, 2 * np.pi), (0, 0, 1))
    if rng.random() < 0.25:
        turn = rotation_matrix(rng.uniform(0.1, 0.45), (*_unit(rng.normal(size=2)), 0)) @ turn
    size = rng.uniform(0.6, 0.8)
    for part in parts:
        part.apply_transform(turn)
        part.apply_scale(size)
    lowest = min(part.bounds[0, 2] for part in parts)
    shift = (*rng.uniform(-0.1, 0.1, 2), -lowest)
    for part in parts:
        part.apply_translation(shift)
    return parts


def _clutter(rng: np.random.Generator) -> list[Part]:
    """Lumps beside and behind the object, now and then in front of its edge."""
    lumps = []
    for _ in range(rng.integers(2, 5)):
        lump = blob(rng)
        lump.apply_scale(rng.uniform(0.12, 0.35))
        angle, distance = rng.uniform(-0.9, 3.9), rng.uniform(0.5, 1.1)
        lump.apply_translation((distance * np.cos(angle), distance * np.sin(angle), -lump.bounds[0, 2]))
        lumps.append(lump)
    return lumps


def _room(rng: np.random.Generator) -> list[Part]:
    """A floor, a back wall and, in most scenes, a side wall; the camera looks along +y."""

    def slab(extents: tuple[float, float, float], centre: tuple[float, float, float]) -> Part:
        return trimesh.creation.box(extents=extents, transform=trimesh.transformations.translation_matrix(centre))

    back = slab((30, 0.1, 12), (0, rng.uniform(0.9, 2.2), 5.9))
    back.apply_transform(rotation_matrix(rng.uniform(-0.35, 0.35), (0, 0, 1)))
    walls = [slab((30, 30, 0.1), (0, 0, -0.05)), back]
    if rng.random() < 0.6:
        walls.append(slab((0.1, 30, 12), (rng.choice([-1, 1]) * rng.uniform(0.9, 1.8), 0, 5.9)))
    return walls


def compose(rng: np.random.Generator, kind: str) -> Scene:
    """A room, one object of the kind, clutter, and a camera that looks about at the object."""
    thing, clutter, room = _object(rng, kind), _clutter(rng), _room(rng)
    parts = [*thing, *clutter, *room]
    look = kind if rng.random() < USUAL_SHARE else None
    own = [_material(rng, (2, 9), 0.2, look) for _ in range(2)]
    materials = [own[int(rng.random() < 0.3)] for _ in thing]
    materials += [_material(rng, (3, 10), 0.25) for _ in clutter] + [_material(rng, (0.5, 4), 0.15) for _ in room]
    sizes = [len(part.faces) for part in parts]

    height = np.mean([part.bounds[:, 2].mean() for part in thing])
    elevation, azimuth, distance = rng.uniform(0.2, 0.65), rng.uniform(-0.3, 0.3), rng.uniform(1.15, 1.6)
    around = np.array([np.cos(elevation) * np.sin(azimuth), -np.cos(elevation) * np.cos(azimuth), np.sin(elevation)])
    target = np.array([0, 0, height]) + rng.uniform(-0.1, 0.1, 3)
    position = target + distance * around
    forward = -around
    right = _unit(np.cross(forward, (rng.normal(scale=0.06), 0, 1)))
    camera = np.stack([position, right, np.cross(forward, right), forward])
    return Scene(
        trimesh.util.concatenate(parts), materials, np.repeat(np.arange(len(parts)), sizes), camera, rng.uniform(0.95, 1.15)
    )


def _rays(scene: Scene, size: int) -> np.ndarray:
    """Directions [size * size, 3] through the pixel centres, 1 long along the optical axis."""
    across = ((np.arange(size) + 0.5) / size - 0.5) / scene.zoom
    right, down, forward = scene.camera[1:]
    return (forward + across[None, :, None] * right + across[:, None, None] * down).reshape(-1, 3)


@dataclass(frozen=True)
class Hits:
    """Where rays meet the scene: depth [n] in metres (inf: nowhere), points and normals towards the camera [n, 3], face [n]."""

    depth: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray


def _cast(scene: Scene, embree: RayMeshIntersector, directions: np.ndarray) -> Hits:
    """The camera's rays. The depth is exact: Embree names the face, and the ray is cut with that face's plane."""
    origins = np.broadcast_to(scene.camera[0], directions.shape)
    faces = embree.intersects_first(origins, _unit(directions))
    normals = scene.mesh.face_normals[faces]
    to_plane = np.einsum("ij,ij->i", scene.mesh.triangles[faces, 0] - origins, normals)
    along = np.einsum("ij,ij->i", directions, normals)
    depth = np.where((faces >= 0) & (np.abs(along) > 1e-9), to_plane / np.where(np.abs(along) > 1e-9, along, 1), np.inf)
    points = origins + np.where(np.isfinite(depth), depth, 0)[:, None] * directions
    return Hits(depth, points, normals * -np.sign(along)[:, None], faces)


def _lit(embree: RayMeshIntersector, hits: Hits, towards: np.ndarray) -> np.ndarray:
    """[n]: whether nothing lies between the points and lights at points + towards [n, 3]."""
    start = hits.points + 1e-3 * hits.normals
    face = embree.intersects_first(start, _unit(towards))
    met = face >= 0
    # A lamp inside the room is not shadowed by the wall behind it: only what is met nearer than the lamp counts.
    corner, normal = embree.mesh.triangles[face, 0], embree.mesh.face_normals[face]
    along = np.einsum("ij,ij->i", towards, normal)
    share = np.einsum("ij,ij->i", corner - start, normal) / np.where(np.abs(along) > 1e-9, along, 1)
    return ~(met & (share < 1))


def colour(scene: Scene, embree: RayMeshIntersector, hits: Hits, rng: np.random.Generator) -> np.ndarray:
    """Linear colour [n, 3]: ambient light, a sun, and a lamp in the room, both with shadows, and a gloss."""
    albedo = np.zeros_like(hits.points)
    gloss = np.zeros(len(albedo))
    material_of = scene.material_of[hits.faces]
    for index in np.unique(material_of):
        here = material_of == index
        albedo[here] = scene.materials[index].albedo(hits.points[here])
        gloss[here] = scene.materials[index].gloss

    azimuth, elevation = rng.uniform(-1.3, 1.3), rng.uniform(0.4, 1.2)
    sun = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    lamp = rng.uniform((-1.2, -1.6, 0.9), (1.2, 0.3, 2.2))
    view = _unit(scene.camera[0] - hits.points)
    ambient = rng.uniform(0.15, 0.4) * rng.uniform(0.8, 1.0, 3)
    light = np.broadcast_to(ambient, albedo.shape).copy()
    shine = np.zeros_like(albedo)
    for towards, power in (
        (np.broadcast_to(100 * sun, albedo.shape), np.full(len(albedo), rng.uniform(0.2, 0.9))),
        (lamp - hits.points, rng.uniform(0.3, 1.2) / (0.3 + ((lamp - hits.points) ** 2).sum(axis=1))),
    ):
        direction = _unit(towards)
        tint = rng.uniform(0.75, 1.0, 3)
        reach = (power * _lit(embree, hits, towards))[:, None] * tint
        light += reach * np.clip(np.einsum("ij,ij->i", direction, hits.normals), 0, None)[:, None]
        half = np.clip(np.einsum("ij,ij->i", _unit(direction + view), hits.normals), 0, None)
        shine += reach * (half**40)[:, None]
    seen = np.isfinite(hits.depth)[:, None]
    return seen * (albedo * light + gloss[:, None] * shine)


def expose(linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear colour [H, W, 3] -> uint8, with the camera's exposure, white balance, gamma and noise."""
    level = rng.uniform(0.3, 0.6) / max(linear.mean(), 1e-3)
    seen = np.clip(linear * level * rng.uniform(0.85, 1.15, 3), 0, 1) ** (1 / 2.2)
    noisy = seen + rng.normal(scale=rng.uniform(0.005, 0.02), size=seen.shape)
    return np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8)


def read_depth(scene: Scene, embree: RayMeshIntersector, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint16 [size, size] in millimetres, 0 where there is no reading.

    Axial noise 1.2 mm + 1.9 mm (z - 0.4)^2 and lateral noise of about a pixel as measured for the Kinect by Nguyen,
    Izadi and Lovell (3DIMPVT 2012); no reading on grazing surfaces, in the projector's shadow and out of range.
    """
    directions = _rays(scene, size)
    hits = _cast(scene, embree, directions)
    projector = scene.camera[0] + BASELINE * scene.camera[1]
    read = _lit(embree, hits, (projector - hits.points) * 0.999)
    grazing = np.abs(np.einsum("ij,ij->i", hits.normals, _unit(directions)))
    read &= grazing > rng.normal(0.15, 0.03, len(grazing))
    read &= rng.random(len(read)) > 0.004
    read &= (hits.depth > NEAREST) & (hits.depth < FARTHEST)

    rows, columns = np.indices((size, size))
    rows = np.clip(rows + rng.choice([-1, 0, 1], p=[0.08, 0.84, 0.08], size=rows.shape), 0, size - 1)
    columns = np.clip(columns + rng.choice([-1, 0, 1], p=[0.08, 0.84, 0.08], size=rows.shape), 0, size - 1)
    depth = np.where(read, hits.depth, 0).reshape(size, size)[rows, columns]
    noisy = depth + rng.normal(size=depth.shape) * (0.0012 + 0.0019 * (depth - 0.4) ** 2)
    return np.where(depth > 0, np.round(1000 * noisy), 0).astype(np.uint16)


def render(rng: np.random.Generator, kind: str, size: int, cameras: Collection[str] = ("rgb", "depth")) -> dict[str, np.ndarray]:
    """One scene with an object of the kind: "rgb" uint8 [size, size, 3], "depth" uint16 [size, size] in millimetres.
    What a camera sees does not depend on whether the other one looks."""
    of_scene, of_colour, of_depth = rng.spawn(3)
    scene = compose(of_scene, kind)
    embree = RayMeshIntersector(scene.mesh)
    seen = {}
    if "rgb" in cameras:
        hits = _cast(scene, embree, _rays(scene, size * SUPERSAMPLING))
        linear = colour(scene, embree, hits, of_colour).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
        seen["rgb"] = expose(linear, of_colour)
    if "depth" in cameras:
        seen["depth"] = read_depth(scene, embree, size, of_depth)
    return seen
