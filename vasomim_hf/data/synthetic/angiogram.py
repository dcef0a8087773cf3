"""Synthetic angiograms: simulated X-ray images of coronary trees with exact ground truth.

Used by the tests and the demonstration, which must run without patient data. Images follow the physics of X-ray
imaging: a three-dimensional coronary tree (`synthetic_anatomy`) is projected, the path length inside each vessel gives
the attenuation by the Beer-Lambert law, attenuations of heart, spine, ribs, diaphragm, catheter and wires are added,
followed by detector blur, quantum noise and collimator. They do not replace real angiograms in a study.

Frames are a deterministic function of the seed. Pixels may differ by one grey level between platforms due to
floating-point rounding; the scene does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...folders import atomic_file
from .anatomy import RIGHT_SEGMENTS, SEGMENT_IDS, SEGMENT_NAMES, CoronaryTree, coronary_tree, heart_surface


__all__ = [
    "RIGHT_SEGMENTS",
    "SEGMENT_IDS",
    "SEGMENT_NAMES",
    "SyntheticAngiogram",
    "synthetic_angiogram",
    "synthetic_angiograms",
    "write_folder",
]

MIN_SIZE, MAX_SIZE = 32, 4096
_REFERENCE_SIZE = 512  # lengths in the scene are in pixels of a frame of this size
_PIECE = 6  # number of line segments whose distances are computed together

# Typical views of each side: left (+) or right (-) anterior oblique angle, and cranial (+) or caudal (-) angle,
# degrees.
_VIEWS = {
    "right": ((40, 0), (35, 20), (-30, 0), (0, 25), (50, 10)),
    "left": ((-25, -25), (-10, 35), (45, 25), (45, -28), (0, -30), (-35, 20), (20, 35), (-30, 0)),
}


@dataclass
class SyntheticAngiogram:
    """A synthetic frame with its ground truth.

    Args:
        image (`np.ndarray` of shape `(height, width)`): `uint8` grey levels; vessels are dark.
        vessel_mask (`np.ndarray` of shape `(height, width)`):
            `bool`, `True` where arteries, including unnamed side branches, cover at least half of the pixel. Excludes
            the catheter and everything behind the collimator.
        segment_mask (`np.ndarray` of shape `(height, width)`):
            `uint8`, ARCADE category id (see `SEGMENT_NAMES`) of the named segment, 0 elsewhere. As in ARCADE, unnamed
            side branches are 0. Where segments cross, the thicker one takes the pixel. A subset of `vessel_mask`.
        centre_line (`np.ndarray` of shape `(height, width)`): `bool`, pixels on a centreline; a subset of
        `vessel_mask`.
        boxes (`np.ndarray` of shape `(num_stenoses, 4)`):
            `float64`, visible stenoses as left, top, width, height in pixels (COCO), tight around each lesion.
        stenosis_mask (`np.ndarray` of shape `(height, width)`):
            `bool`, the lumen along each lesion, including shoulders; a subset of `vessel_mask`.
        side (`str`): Injected coronary artery, `"left"` or `"right"`.
    """

    image: np.ndarray
    vessel_mask: np.ndarray
    segment_mask: np.ndarray
    centre_line: np.ndarray
    boxes: np.ndarray
    stenosis_mask: np.ndarray
    side: str


class _Scene(NamedTuple):
    """Imaging geometry: frame `(height, width)` in pixels, pixels per reference pixel, pixels per millimetre, and
    axes."""

    shape: tuple[int, int]
    unit: float
    per_mm: float
    right: np.ndarray
    up: np.ndarray
    offset: np.ndarray
    oblique: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in mm to x and y (..., 2) in pixels; pixel centres are at + 0.5."""
        return self.per_mm * np.stack([points @ self.right, -(points @ self.up)], axis=-1) + self.offset


class _Near(NamedTuple):
    """Pixels near a line: flat indices into the frame, distances, and positions along the line (in points)."""

    pixels: np.ndarray
    distance: np.ndarray
    place: np.ndarray


class _Arteries(NamedTuple):
    """Rendered tree: attenuation, maximum coverage, segment ids, centreline, and lesion number at each pixel."""

    attenuation: np.ndarray
    covered: np.ndarray
    segment: np.ndarray
    centre_line: np.ndarray
    lesions: list[np.ndarray]


# Geometry -----------------------------------------------------------------------------------------------------------


def _scene(rng: np.random.Generator, tree: CoronaryTree, shape: tuple[int, int]) -> _Scene:
    """Choose a view and position the tree in the frame."""
    oblique, cranial = np.deg2rad(_VIEWS[tree.side][rng.integers(len(_VIEWS[tree.side]))] + rng.normal(0, 5, 2))
    right = np.array([np.cos(oblique), np.sin(oblique), 0.0])
    level = np.array([np.sin(oblique), -np.cos(oblique), 0.0])
    up = np.array([0.0, 0.0, np.cos(cranial)]) - np.sin(cranial) * level
    unit = min(shape) / _REFERENCE_SIZE
    points = np.concatenate([vessel.points for vessel in tree.vessels if vessel.label[0]])
    flat = np.stack([points @ right, -(points @ up)], axis=-1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    full = _REFERENCE_SIZE / (high - low).max()
    zoom = np.clip(rng.uniform(3.2, 4.6), 0.5 * full, 1.06 * full)
    middle = np.array([shape[1], shape[0]]) / 2 + unit * rng.normal(0, 18, 2)
    per_mm = unit * zoom
    return _Scene(shape, unit, per_mm, right, up, middle - per_mm * (low + high) / 2, float(oblique))


def _piece_distances(line: np.ndarray, reach: float, shape: tuple[int, int]) -> _Near | None:
    """Distances and positions of all pixels around a short line (k + 1, 2); `None` outside the frame."""
    left, top = np.maximum(np.floor(line.min(axis=0) - reach), 0).astype(int)
    stop_x, stop_y = np.minimum(np.ceil(line.max(axis=0) + reach), (shape[1], shape[0])).astype(int)
    if left >= stop_x or top >= stop_y:
        return None
    step = line[1:] - line[:-1]
    squared = np.maximum((step**2).sum(axis=1), 1e-6)[:, None, None]
    x = (np.arange(left, stop_x) + 0.5)[None, :] - line[:-1, 0, None]
    y = (np.arange(top, stop_y) + 0.5)[None, :] - line[:-1, 1, None]
    along = (x * step[:, :1])[:, None, :] + (y * step[:, 1:])[:, :, None]
    along = np.clip(along / squared, 0, 1)
    distance = (x[:, None, :] - along * step[:, :1, None]) ** 2 + (y[:, :, None] - along * step[:, 1:, None]) ** 2
    best = distance.argmin(axis=0)
    rows, columns = np.ogrid[: best.shape[0], : best.shape[1]]
    nearest = np.sqrt(distance[best, rows, columns])
    close = nearest < reach
    pixels = (rows + top) * shape[1] + columns + left
    return _Near(pixels[close], nearest[close], (best + along[best, rows, columns])[close])


def _near_line(line: np.ndarray, reach: float, shape: tuple[int, int]) -> _Near:
    """Find the pixels within `reach` pixels of a line.

    Args:
        line (`np.ndarray` of shape `(n, 2)`): x and y of its points, pixels.
        reach (`float`): Maximum distance, pixels.
        shape (`tuple[int, int]`): Height and width of the frame.

    Returns:
        `_Near`: Each pixel once, with the distance to the nearest point of the line.
    """
    parts = []
    for first in range(0, len(line) - 1, _PIECE):
        part = _piece_distances(line[first : first + _PIECE + 1], reach, shape)
        if part is not None:
            parts.append(part._replace(place=part.place + first))
    if not parts:
        return _Near(np.zeros(0, int), np.zeros(0), np.zeros(0))
    pixels, distance, place = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((distance, pixels))
    pixels = pixels[order]
    once = order[np.diff(pixels, prepend=-1) > 0]
    return _Near(np.concatenate([part.pixels for part in parts])[once], distance[once], place[once])


def _chord_integral(t: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return t * np.sqrt(np.maximum(radius**2 - t**2, 0)) + radius**2 * np.arcsin(np.clip(t / radius, -1, 1))


def _tube(distance: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Path length through a cylinder, averaged over each pixel so thin tubes keep their contrast.

    Args:
        distance (`np.ndarray`): From the pixel centre to the centreline, pixels.
        radius (`np.ndarray` of the same shape): Of the cylinder, pixels.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Path length inside the cylinder in pixels, and covered fraction of the pixel.
    """
    inner = np.maximum(distance - 0.5, -radius)
    outer = np.maximum(np.minimum(distance + 0.5, radius), inner)
    return _chord_integral(outer, radius) - _chord_integral(inner, radius), outer - inner


# Arteries, catheter and wires ---------------------------------------------------------------------------------------


def _thin_out(line: np.ndarray) -> np.ndarray:
    """Indices of points at least 1.5 pixels apart, including first and last; enough for small frames."""
    way = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(axis=1)))])
    wanted = np.arange(0, way[-1], 1.5)
    return np.unique(np.concatenate([np.searchsorted(way, wanted), [len(line) - 1]]))


def _mark_line(centre_line: np.ndarray, line: np.ndarray) -> None:
    """Mark the pixels along a line (n, 2), sampled four times per pixel."""
    num = max(2, int(4 * np.abs(np.diff(line, axis=0)).sum()))
    place = np.linspace(0, len(line) - 1, num)
    x, y = (np.floor(np.interp(place, np.arange(len(line)), column)).astype(int) for column in line.T)
    inside = (x >= 0) & (y >= 0) & (x < centre_line.shape[1]) & (y < centre_line.shape[0])
    centre_line[y[inside], x[inside]] = True


def _foreshortening(points: np.ndarray, beam: np.ndarray) -> np.ndarray:
    """Factor by which the path is longer in a tube along the beam; limited to 1.8, because vessels curve away."""
    tangent = np.gradient(points, axis=0)
    across = 1 - (tangent @ beam) ** 2 / (tangent**2).sum(axis=1)
    smooth = np.convolve(np.pad(across, 4, mode="edge"), np.full(9, 1 / 9), mode="valid")
    return 1 / np.sqrt(np.maximum(smooth, 0.3))


def _draw_arteries(rng: np.random.Generator, tree: CoronaryTree, scene: _Scene) -> _Arteries:
    """Render every vessel; attenuations of crossing vessels add up, those of a branch and its parent do not."""
    num = scene.shape[0] * scene.shape[1]
    attenuation, covered, thickest = np.zeros(num), np.zeros(num), np.zeros(num)
    segment, centre_line = np.zeros(num, np.uint8), np.zeros(scene.shape, bool)
    lesions = [np.zeros(num, bool) for _ in range(tree.num_stenoses)]
    strength, reach = rng.uniform(0.075, 0.16), rng.uniform(110, 320)
    beam = np.cross(scene.right, scene.up)
    for vessel in tree.vessels:
        line = scene.project(vessel.points)
        filling = np.clip(1.15 - (vessel.travel / reach) ** 2, 0.35, 1)
        dark = strength / scene.per_mm * vessel.outside * filling * _foreshortening(vessel.points, beam)
        kept = _thin_out(line)
        near = _near_line(line[kept], vessel.radius.max() * scene.per_mm + 0.75, scene.shape)
        place = np.interp(near.place, np.arange(len(kept)), kept)
        points = np.arange(len(line))
        length, share = _tube(near.distance, np.interp(place, points, vessel.radius) * scene.per_mm)
        attenuation[near.pixels] += length * np.interp(place, points, dark)
        covered[near.pixels] = np.maximum(covered[near.pixels], share)
        nearest = np.round(place).astype(int)
        wins = (vessel.label[nearest] > 0) & (share >= 0.5) & (length > thickest[near.pixels])
        segment[near.pixels[wins]] = vessel.label[nearest[wins]]
        thickest[near.pixels[wins]] = length[wins]
        for number, lesion in enumerate(lesions, start=1):
            lesion[near.pixels[(vessel.lesion[nearest] == number) & (share >= 0.5)]] = True
        _mark_line(centre_line, line)
    fold = [lesion.reshape(scene.shape) for lesion in lesions]
    attenuation, covered = attenuation.reshape(scene.shape), covered.reshape(scene.shape)
    return _Arteries(attenuation, covered, segment.reshape(scene.shape), centre_line, fold)


def _add_tube(shadow: np.ndarray, line: np.ndarray, radius: float, strength: float) -> None:
    """Add the attenuation of a tube of constant width; `strength` is the value at its centre."""
    near = _near_line(line, radius + 0.75, shadow.shape)
    length, _ = _tube(near.distance, np.full(len(near.distance), radius))
    shadow.reshape(-1)[near.pixels] += length * (strength / (2 * radius))


def _bezier(points: np.ndarray, num: int = 60) -> np.ndarray:
    t = np.linspace(0, 1, num)[:, None]
    a, b, c, d = points
    return (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d


def _add_catheter(rng: np.random.Generator, shadow: np.ndarray, tree: CoronaryTree, scene: _Scene) -> None:
    """Add a catheter from the edge of the frame to the ostium: dark walls, and a lumen with some contrast."""
    height, width = scene.shape
    main = scene.project(tree.vessels[0].points[:14])
    tip = main[0] + 0.15 * (main[4] - main[0])
    entry = main[0] - main[12]
    entry *= rng.uniform(20, 70) * scene.unit / max(np.hypot(*entry), 1e-6)
    if rng.random() < 0.75 or tip[1] < 0:
        start = np.array([tip[0] + scene.unit * rng.normal(0, 55), -4.0])
        bend = np.array([scene.unit * rng.normal(0, 30), abs(tip[1]) * rng.uniform(0.35, 0.6)])
    else:
        start = np.array([-4.0 if tip[0] < width / 2 else width + 4.0, tip[1] + scene.unit * rng.normal(-20, 60)])
        bend = np.array([(tip[0] - start[0]) * 0.5, scene.unit * rng.normal(30, 35)])
    line = _bezier(np.stack([start, start + bend, tip + entry, tip]))
    radius = scene.per_mm * rng.uniform(0.85, 1.15)
    filling, wall = rng.uniform(0.02, 0.3), rng.uniform(0.12, 0.25)
    _add_tube(shadow, line, radius, wall)
    _add_tube(shadow, line, 0.72 * radius, 0.72 * (filling - wall) + 0.5 * wall)
    if rng.random() < 0.35:
        _add_reflux(rng, shadow, main[0], scene)


def _add_reflux(rng: np.random.Generator, shadow: np.ndarray, ostium: np.ndarray, scene: _Scene) -> None:
    """Add contrast reflux into the aortic root: a faint cloud around the ostium."""
    y, x = np.ogrid[: scene.shape[0], : scene.shape[1]]
    for _ in range(3):
        centre = ostium + scene.unit * rng.normal(0, 9, 2)
        size = scene.unit * rng.uniform(8, 20, 2)
        shadow += rng.uniform(0.02, 0.09) * np.exp(
            -(((x - centre[0]) / size[0]) ** 2) - ((y - centre[1]) / size[1]) ** 2
        )


def _add_wires(rng: np.random.Generator, shadow: np.ndarray, tree: CoronaryTree, scene: _Scene) -> None:
    """Add, with some probability, a guide wire in the main vessel and sternal wires."""
    guided, sternal = rng.random(2) < (0.12, 0.08)
    if guided:
        line = scene.project(tree.vessels[0].points)
        line = line[: int(len(line) * rng.uniform(0.4, 0.95))]
        _add_tube(shadow, line[_thin_out(line)], 0.55 * scene.unit, 0.10)
        tip = line[-int(min(len(line), 30)) :]
        _add_tube(shadow, tip[_thin_out(tip)], 0.9 * scene.unit, 0.35)
    if not sternal:
        return
    x = rng.uniform(0.1, 0.9) * scene.shape[1]
    for y in np.arange(rng.uniform(0, 0.3), 1.0, rng.uniform(0.22, 0.35)) * scene.shape[0]:
        angle = np.linspace(0, 2 * np.pi * rng.uniform(0.85, 1.1), 40) + rng.uniform(0, 6)
        size = scene.unit * rng.uniform((12, 6), (20, 16))
        loop = np.stack([np.cos(angle), np.sin(angle + rng.uniform(0, 0.6))], axis=1) * size
        loop += (x + scene.unit * rng.normal(0, 5), y)
        _add_tube(shadow, loop, 1.1 * scene.unit, 0.45)


# Background ---------------------------------------------------------------------------------------------------------


def _resize(field: np.ndarray, shape: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), resample))


def _edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Soft step from 0 (negative distances) to 1 over about four times `width`."""
    return 0.5 + 0.5 * np.tanh(distance / (2 * width))


def _clouds(rng: np.random.Generator, extent: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Soft-tissue texture: noise of all scales, weaker at finer ones; `extent` is the frame in reference pixels."""
    total = np.zeros(shape, np.float32)
    grain = rng.uniform(0.6, 1.3)
    for cell, strength in ((256, 0.09), (128, 0.045), (64, 0.036), (32, 0.022), (16, 0.019), (8, 0.016), (4, 0.008)):
        grid = rng.standard_normal((int(extent[0] / cell) + 2, int(extent[1] / cell) + 2), dtype=np.float32)
        field = _resize(grid, shape, Image.Resampling.BICUBIC)
        if cell in (32, 64):  # strands rather than clouds: dark at zero crossings of the noise
            field = 0.4 * field + 2.0 * (np.exp(-6 * np.abs(field)) - 0.2)
        total += (grain if cell < 64 else 1.0) * strength * field
    return total


def _heart(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, scene: _Scene) -> np.ndarray:
    """Attenuation of heart and mediastinum: an ellipse, and everything on the spinal side of a line."""
    angles = np.meshgrid(np.linspace(-0.3, 1.6, 12), np.linspace(-np.pi, np.pi, 16))
    surface = np.stack([*angles, np.full_like(angles[0], 1.15)], axis=-1).reshape(-1, 3)
    flat = scene.project(heart_surface(surface)) / scene.unit
    centre, spread = flat.mean(axis=0), np.linalg.inv(np.cov(flat.T))
    dx, dy = x - centre[0], y - centre[1]
    # the liver lies below the heart, so its lower border is barely visible; real hearts are not ellipses
    dx = dx * (1 - 0.45 * np.clip(dy / 220, 0, 1))
    dy = np.where(dy > 0, rng.uniform(0.1, 0.7) * dy, dy)
    angle, turns = np.arctan2(dy, dx), rng.uniform(0, 2 * np.pi, 2)
    wobble = 1 + 0.07 * np.sin(2 * angle + turns[0]) + 0.04 * np.sin(3 * angle + turns[1])
    distance = wobble * np.sqrt(spread[0, 0] * dx**2 + 2 * spread[0, 1] * dx * dy + spread[1, 1] * dy**2)
    heart = _edge(rng.uniform(2.0, 2.8) - distance, rng.uniform(0.01, 0.08))
    towards_spine = 1.0 if scene.oblique > 0.2 else -1.0
    border = towards_spine * dx + rng.normal(20, 40) + rng.normal(0, 0.25) * dy
    middle = _edge(border, rng.uniform(4, 20))
    return rng.uniform(0.18, 0.55) * (1 - (1 - heart) * (1 - rng.uniform(0.6, 1.0) * middle))


def _spine(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, scene: _Scene) -> np.ndarray:
    """Vertebrae behind the heart: a wide band with end plates and intervertebral spaces."""
    origin = scene.project(np.array([-15.0, 68.0, -20.0])) / scene.unit
    across = x - origin[0] - rng.normal(0, 0.04) * (y - origin[1])
    half, pitch = rng.uniform(48, 66), rng.uniform(84, 108)
    band = _edge(half - np.abs(across), rng.uniform(2, 6))
    bow = rng.normal(0, 5) * (across / half) ** 2 + rng.normal(0, 0.06) * across
    phase = np.abs(((y + bow + rng.uniform(0, pitch)) / pitch) % 1 - 0.5) * pitch  # 0 at the centre of a disc
    gap, thickness = rng.uniform(4, 9), rng.uniform(1.2, 3.0)
    plates = np.exp(-(((phase - gap) / thickness) ** 2)) - 0.35 * np.exp(-((phase / gap) ** 2))
    uneven = 1 + 0.7 * np.sin(across / rng.uniform(8, 20) + y / rng.uniform(60, 150) + rng.uniform(0, 6))
    centre_x, centre_y = np.abs(np.abs(across) - 0.55 * half), (0.5 * pitch - phase) - rng.uniform(0.05, 0.2) * pitch
    ring = np.hypot(centre_x, 0.7 * np.abs(centre_y)) - rng.uniform(6, 11)
    pedicles = rng.uniform(0, 1) * np.exp(-((ring / 2.2) ** 2))
    sides = 0.4 * np.exp(-(((np.abs(across) - half) / 4) ** 2))
    return band * (rng.uniform(0.04, 0.20) + rng.uniform(0.02, 0.09) * (uneven * plates + sides + pedicles))


def _ribs(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, extent: tuple[float, float]) -> np.ndarray:
    """Ribs: curved bands, darkest at their borders, that fade where they turn away."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    centre = rng.uniform(-0.2, 1.2) * extent[1]
    slope, bend, pitch = rng.normal(0, 0.4), rng.uniform(-0.0015, 0.0015), rng.uniform(70, 125)
    for level in np.arange(-200, extent[0] + 200, pitch):
        tilt, half = slope + rng.normal(0, 0.06), rng.uniform(8, 17)
        away = np.abs(y - level - rng.normal(0, 12) - tilt * (x - centre) - bend * (x - centre) ** 2)
        fade = np.exp(-(((x - rng.uniform(0, 1) * extent[1]) / (0.6 * extent[1])) ** 2))
        border = np.exp(-(((away - half + 2) / 2.0) ** 2))
        total += rng.uniform(0.0, 0.06) * fade * (0.8 * _edge(half - away, 1.5) + border)
    return total


def _diaphragm(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, extent: tuple[float, float]) -> np.ndarray:
    """Dome of the diaphragm, dark below its edge."""
    top, centre = rng.uniform(0.45, 0.9) * extent[0], rng.uniform(0.1, 0.9) * extent[1]
    dome = top + rng.uniform(0.0006, 0.0020) * (x - centre) ** 2 + rng.normal(0, 0.1) * (x - centre)
    below = _edge(y - dome, rng.uniform(0.8, 2.5))
    return below * (rng.uniform(0.06, 0.25) + rng.uniform(0, 0.15) * np.minimum(np.abs(y - dome) / 150, 1))


def _lung_vessels(rng: np.random.Generator, extent: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Faint curved lines in all directions: pulmonary vessels and muscle bundles."""
    shadow = np.zeros(shape)
    scale = np.array([shape[1] / extent[1], shape[0] / extent[0]])
    for _ in range(int(rng.integers(30, 90))):
        start = rng.uniform(-0.1, 1.1, 2) * extent[::-1]
        way = rng.normal(0, 75, 2)
        bends = rng.normal(0, 25, (2, 2))
        line = _bezier(np.stack([start, start + 0.3 * way + bends[0], start + 0.7 * way + bends[1], start + way]), 14)
        radius, strength = scale[0] * rng.uniform(0.8, 3.0), rng.normal(0.015, 0.04)
        if radius > 0.2:  # thinner ones are invisible in small frames
            _add_tube(shadow, line * scale, radius, strength)
    return shadow


def _background(rng: np.random.Generator, scene: _Scene) -> np.ndarray:
    """Attenuation of everything except contrast and metal, rendered at half resolution because it has no sharp
    edges."""
    extent = (scene.shape[0] / scene.unit, scene.shape[1] / scene.unit)
    shape = ((scene.shape[0] + 1) // 2, (scene.shape[1] + 1) // 2)
    y = ((np.arange(shape[0], dtype=np.float32) + 0.5) * (extent[0] / shape[0]))[:, None]
    x = ((np.arange(shape[1], dtype=np.float32) + 0.5) * (extent[1] / shape[1]))[None, :]
    streams = rng.spawn(7)
    total = _clouds(streams[0], extent, shape) + _heart(streams[1], x, y, scene)
    chances = rng.random(4)
    if chances[0] < 0.75:
        total = total + _spine(streams[2], x, y, scene)
    if chances[1] < 0.4:
        total = total + _ribs(streams[3], x, y, extent)
    if chances[2] < 0.55:
        total = total + _diaphragm(streams[4], x, y, extent)
    if chances[3] < 0.9:
        total = total + _lung_vessels(streams[5], extent, shape)
    slope = streams[6].normal(0, 0.16, 2)
    total = total + slope[0] * (x / extent[1] - 0.5) + slope[1] * (y / extent[0] - 0.5)
    return _resize(total, scene.shape, Image.Resampling.BILINEAR)


# Detector -----------------------------------------------------------------------------------------------------------


def _blur(picture: np.ndarray, share: float) -> np.ndarray:
    """Blur with the kernel (share, 1 - 2 share, share) along both axes."""
    for axis in (0, 1):
        width = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(picture, width, mode="edge")
        low, high = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        picture = (1 - 2 * share) * picture + share * (low + high)
    return picture


def _collimator(rng: np.random.Generator, scene: _Scene) -> np.ndarray:
    """Fraction of the beam that passes the collimator at each pixel (`float`, 1 in the field, 0 behind the blades)."""
    height, width = scene.shape[0] / scene.unit, scene.shape[1] / scene.unit
    kind = rng.choice(3, p=[0.4, 0.5, 0.1])  # open, narrow borders, narrow field
    margins = (-30 * np.ones(4), rng.uniform(-15, 20, 4), rng.uniform(-20, 65, 4))[kind]
    y = ((np.arange(scene.shape[0], dtype=np.float32) + 0.5) / scene.unit)[:, None]
    x = ((np.arange(scene.shape[1], dtype=np.float32) + 0.5) / scene.unit)[None, :]
    tilt = rng.normal(0, 0.008)
    softness = rng.uniform(0.8, 2.2)
    left, right = x - margins[0] + tilt * (y - height / 2), width - margins[1] - x - tilt * (y - height / 2)
    top, bottom = y - margins[2], height - margins[3] - y
    inside = np.minimum(np.minimum(left, right), np.minimum(top, bottom))
    if rng.random() < 0.35:
        corner = np.minimum(left, right) + np.minimum(top, bottom) - rng.uniform(8, 24)
        inside = np.minimum(inside, corner / np.sqrt(2))
    return _edge(inside, softness)


def _expose(rng: np.random.Generator, attenuation: np.ndarray, opening: np.ndarray, scene: _Scene) -> np.ndarray:
    """Convert attenuation to a `uint8` image: exposure, blur, edge enhancement, quantum noise, display curve."""
    level, contrast, gamma = rng.uniform(85, 150), rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.15)
    quanta, electronics, black = rng.uniform(7.0, 14.5), rng.uniform(0.8, 2.0), rng.uniform(0, 14)
    softness, sharpening, spread = rng.uniform(0.08, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0.13, 0.18)
    centre = np.average(attenuation, weights=opening)
    beam = np.exp(-contrast * (attenuation - centre)).astype(np.float32)
    y, x = np.ogrid[-1 : 1 : scene.shape[0] * 1j, -1 : 1 : scene.shape[1] * 1j]
    beam = _blur(beam * (1 - rng.uniform(0, 0.12) * (x**2 + y**2)) * opening, softness * min(1.0, scene.unit))
    coarse = (max(scene.shape[0] // 6, 1), max(scene.shape[1] // 6, 1))
    local = _resize(_resize(beam, coarse, Image.Resampling.BOX), scene.shape, Image.Resampling.BICUBIC)
    beam = np.maximum(beam + sharpening * (beam - local), 0)
    white, wide = rng.standard_normal((2, *scene.shape), dtype=np.float32)
    # quantum noise is correlated between neighbouring pixels by the scintillator; electronic noise is white
    noise = electronics * white + quanta * _blur(_blur(wide, spread), spread)
    # larger pixels collect more quanta, so small frames are less noisy; no change above 512
    noise *= min(1.0, scene.unit) ** 0.5
    beam = np.maximum(beam + noise / level * np.sqrt(beam + 0.05), 0)
    beam = np.where(beam > 1.3, 1.3 + 0.6 * np.tanh((beam - 1.3) / 0.6), beam)  # shoulder of the display curve
    return np.clip(np.rint(black * (1 - opening) + level * beam**gamma), 0, 255).astype(np.uint8)


# Public API
# -----------------------------------------------------------------------------------------------------------


def _check_integer(value: object, name: str, low: int, high: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ValueError(f"`{name}` must be an integer from {low} to {high}, got {value!r}.")
    return int(value)


def _check_size(size: object) -> tuple[int, int]:
    """`size` as (height, width); raises `ValueError` if invalid."""
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"`size` must be an integer or a pair (height, width), got {size!r}.")
    return _check_integer(sides[0], "size", MIN_SIZE, MAX_SIZE), _check_integer(sides[1], "size", MIN_SIZE, MAX_SIZE)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def _annotated(image: np.ndarray, arteries: _Arteries, opening: np.ndarray, side: str) -> SyntheticAngiogram:
    """Combine frame and annotations, without lesions that are mostly hidden and anything behind the collimator."""
    vessel_mask = (arteries.covered >= 0.5) & (opening > 0.5)
    lesions = [lesion & vessel_mask for lesion in arteries.lesions if (lesion & vessel_mask).sum() > lesion.sum() / 2]
    return SyntheticAngiogram(
        image=image,
        vessel_mask=vessel_mask,
        segment_mask=np.where(vessel_mask, arteries.segment, 0).astype(np.uint8),
        centre_line=arteries.centre_line & vessel_mask,
        boxes=np.array([_box(lesion) for lesion in lesions], dtype=float).reshape(-1, 4),
        stenosis_mask=np.logical_or.reduce(lesions) if lesions else np.zeros(image.shape, bool),
        side=side,
    )


def synthetic_angiogram(seed: int, size: int | tuple[int, int] = 512) -> SyntheticAngiogram:
    """Generate a synthetic coronary angiogram with exact masks, segment ids, centreline and stenosis boxes.

    The same seed and size give the same frame. The same seed at another size of the same aspect ratio gives the same
    scene at another resolution.

    Args:
        seed (`int`): From 0 to 2**63 - 1.
        size (`int` or `tuple[int, int]`, *optional*, defaults to 512):
            Height and width in pixels, each from 32 to 4096; an integer for a square frame. The scene is scaled to the
            shorter side.

    Returns:
        [`SyntheticAngiogram`]: Frame and ground truth.

    Raises:
        ValueError: If `seed` or `size` is not an integer in its range.

    Example:
        >>> frame = synthetic_angiogram(seed=0, size=64)
        >>> frame.image.shape, frame.image.dtype, frame.side in ("left", "right")
        ((64, 64), dtype('uint8'), True)
    """
    seed, shape = _check_integer(seed, "seed", 0, 2**63 - 1), _check_size(size)
    # separate streams, so the scene does not depend on how many pixels of noise are drawn
    streams = np.random.default_rng(seed).spawn(7)
    tree = coronary_tree(streams[0])
    scene = _scene(streams[1], tree, shape)
    arteries = _draw_arteries(streams[2], tree, scene)
    metal = np.zeros(shape)
    _add_catheter(streams[3], metal, tree, scene)
    _add_wires(streams[4], metal, tree, scene)
    opening = _collimator(streams[5], scene)
    attenuation = arteries.attenuation + metal + _background(streams[6], scene)
    image = _expose(streams[6], attenuation, opening, scene)
    return _annotated(image, arteries, opening, tree.side)


def synthetic_angiograms(num: int, seed: int = 0, size: int | tuple[int, int] = 512) -> Iterator[SyntheticAngiogram]:
    """Generate `num` synthetic angiograms lazily, with the seeds `seed`, `seed + 1`, ...

    Args:
        num (`int`): Number of frames, >= 0.
        seed (`int`, *optional*, defaults to 0): Seed of the first frame.
        size (`int` or `tuple[int, int]`, *optional*, defaults to 512): See [`synthetic_angiogram`].

    Returns:
        `Iterator[SyntheticAngiogram]`: Frames with ground truth.

    Raises:
        ValueError: If an argument is not an integer in its range.

    Example:
        >>> [frame.image.shape for frame in synthetic_angiograms(2, size=(32, 48))]
        [(32, 48), (32, 48)]
    """
    num, first, shape = _check_integer(num, "num", 0, 2**31), _check_integer(seed, "seed", 0, 2**62), _check_size(size)
    return (synthetic_angiogram(number, shape) for number in range(first, first + num))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_folder(
    folder: str | Path, num: int, seed: int = 0, size: int | tuple[int, int] = 512, with_masks: bool = False
) -> list[Path]:
    """Write synthetic angiograms to a folder as `synthetic_<seed>.png`.

    Args:
        folder (`str` or `Path`): Output folder; created if missing.
        num (`int`): Number of frames, >= 0.
        seed (`int`, *optional*, defaults to 0): Seed of the first frame.
        size (`int` or `tuple[int, int]`, *optional*, defaults to 512): See [`synthetic_angiogram`].
        with_masks (`bool`, *optional*, defaults to `False`):
            Whether to write vessel masks (0 or 255) with the same names to the sibling folder `<folder>_masks`.

    Returns:
        `list[Path]`: Paths of the frames, in the order of their seeds.

    Raises:
        ValueError: If a number is out of range.
    """
    folder = Path(folder)
    frames = synthetic_angiograms(num, seed, size)
    masks = folder.with_name(f"{folder.name}_masks")
    for path in (folder, masks) if with_masks else (folder,):
        path.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, frame in enumerate(frames, start=seed):
        paths.append(folder / f"synthetic_{number:06d}.png")
        _write_png(paths[-1], frame.image)
        if with_masks:
            _write_png(masks / paths[-1].name, frame.vessel_mask.astype(np.uint8) * 255)
    return paths
