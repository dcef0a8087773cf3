"""Three-dimensional coronary trees for synthetic angiograms: course, width and names of the vessels.

The heart is half an ellipsoid. Vessels run along its grooves as in human anatomy: the right coronary artery and the
circumflex artery around the base, the anterior and posterior descending arteries from base to apex, with branches in
between. Lengths are in millimetres; x points to the patient's left, y backwards, z to the head.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


SEGMENT_NAMES: dict[int, str] = {
    1: "1",
    2: "2",
    3: "3",
    4: "4",
    5: "5",
    6: "6",
    7: "7",
    8: "8",
    9: "9",
    10: "9a",
    11: "10",
    12: "10a",
    13: "11",
    14: "12",
    15: "12a",
    16: "13",
    17: "14",
    18: "14a",
    19: "15",
    20: "16",
    21: "16a",
    22: "16b",
    23: "16c",
    24: "12b",
    25: "14b",
    26: "stenosis",
}
"""ARCADE's category id -> name: 25 vessel segments (SYNTAX score) and stenosis. Ids differ from segment numbers."""

SEGMENT_IDS: dict[str, int] = {name: number for number, name in SEGMENT_NAMES.items()}
"""ARCADE's category name -> id, the inverse of `SEGMENT_NAMES`."""

RIGHT_SEGMENTS: frozenset[int] = frozenset(
    SEGMENT_IDS[name] for name in ("1", "2", "3", "4", "16", "16a", "16b", "16c")
)
"""Ids of the segments of the right coronary artery; the other vessel ids belong to the left coronary artery."""

_STEP = 0.8  # distance between neighbouring centreline points, mm
_HEART_LENGTH, _HEART_RADIUS = 82.0, 37.0  # base to apex, and half the width of the base, mm
_AXIS = np.array([0.628, -0.576, -0.523])  # base to apex: left, forward and down
_FORWARD = np.array([0.385, -0.354, 0.852])  # from the axis to the groove of the anterior descending artery
_LATERAL = np.array([0.676, 0.736, 0.0])  # from the axis to the left side wall


@dataclass
class Vessel:
    """A vessel from its origin to its end, sampled at `n` centreline points.

    Args:
        course (`np.ndarray` of shape `(n, 3)`): Heart coordinates: angle from base to apex, angle around the axis,
        height.
        points (`np.ndarray` of shape `(n, 3)`): Cartesian coordinates, mm.
        radius (`np.ndarray` of shape `(n,)`): Inner radius, mm.
        label (`np.ndarray` of shape `(n,)`): `uint8`, ARCADE id of the segment; 0 for an unnamed side branch.
        travel (`np.ndarray` of shape `(n,)`): Distance from the ostium along the vessels, mm.
        outside (`np.ndarray` of shape `(n,)`): Fraction of the cross-section outside the parent vessel, in [0, 1].
        lesion (`np.ndarray` of shape `(n,)`): `uint8`, number of the stenosis at this point; 0 if none.
    """

    course: np.ndarray
    points: np.ndarray
    radius: np.ndarray
    label: np.ndarray
    travel: np.ndarray
    outside: np.ndarray
    lesion: np.ndarray


@dataclass
class CoronaryTree:
    """The vessels of one side; the first starts at the ostium.

    Args:
        side (`str`): `"left"` or `"right"`.
        vessels (`list[Vessel]`): All vessels, parents before branches.
        num_stenoses (`int`): Number of stenoses.
    """

    side: str
    vessels: list[Vessel] = field(default_factory=list)
    num_stenoses: int = 0


class _Branch(NamedTuple):
    """A branch of the human coronary tree: name, parent, fraction of the parent's length where it branches off, end point
    (angles as in `Vessel.course`), radius relative to the parent at that point, and prevalence."""

    name: str
    parent: str
    share: float
    theta: float
    phi: float
    ratio: float
    chance: float


# Main vessels: control points (angle from base to apex, angle around the axis, height above the axis).
_RIGHT_COURSE = (
    (-0.22, -0.30, 0.35),
    (-0.24, -0.50, 0.62),
    (-0.12, -0.80, 0.95),
    (0.00, -1.25, 1.06),
    (0.03, -1.75, 1.06),
    (0.04, -2.30, 1.03),
    (0.02, -2.80, 1.00),
    (0.00, -3.14, 1.00),
    (0.08, -3.55, 1.00),
    (0.30, -3.85, 1.00),
    (0.60, -4.00, 1.00),
)
_LEFT_COURSE = (
    (-0.24, 0.60, 0.36),
    (-0.22, 0.48, 0.62),
    (-0.12, 0.30, 0.90),
    (0.04, 0.10, 1.03),
    (0.30, 0.00, 1.05),
    (0.60, -0.04, 1.04),
    (0.95, 0.00, 1.03),
    (1.30, 0.05, 1.02),
    (1.72, 0.05, 1.00),
)
_CIRCUMFLEX_COURSE = ((-0.08, 0.75, 0.98), (0.00, 1.15, 1.05), (0.04, 1.60, 1.04), (0.04, 2.10, 1.02))

# Labels along the main vessels: fraction of the length at which each segment ends.
_RIGHT_LABELS = (("1", 0.27), ("2", 0.50), ("3", 0.74), ("16", 1.0))
_LEFT_LABELS = (("5", 0.13), ("6", 0.32), ("7", 0.58), ("8", 1.0))

_RIGHT_BRANCHES = (
    _Branch("", "16", 0.07, 0.40, -0.35, 0.36, 0.8),  # conus branch
    _Branch("", "16", 0.10, -0.65, -1.30, 0.32, 0.6),  # sinus node branch
    _Branch("", "16", 0.27, 0.75, -0.85, 0.38, 0.8),  # right ventricular branch
    _Branch("", "16", 0.42, 0.85, -1.35, 0.38, 0.7),
    _Branch("", "16", 0.52, 1.05, -2.00, 0.45, 0.8),  # acute marginal branch
    _Branch("4", "16", 0.74, 1.20, -3.05, 0.74, 0.9),
    _Branch("16a", "16", 0.82, 0.75, -3.45, 0.60, 0.4),
    _Branch("16b", "16", 0.89, 0.85, -3.75, 0.62, 0.3),
    _Branch("16c", "16", 0.95, 0.95, -4.15, 0.65, 0.15),
)
_LEFT_BRANCHES = (
    _Branch("13", "8", 0.13, 0.05, 2.55, 0.78, 0.95),
    _Branch("12", "8", 0.135, 1.05, 0.62, 0.50, 0.25),
    _Branch("9", "8", 0.30, 0.95, 0.52, 0.58, 0.85),
    _Branch("9a", "8", 0.38, 1.10, 0.42, 0.48, 0.4),
    _Branch("10", "8", 0.52, 1.25, 0.50, 0.52, 0.5),
    _Branch("10a", "8", 0.66, 1.40, 0.60, 0.48, 0.2),
    _Branch("12a", "13", 0.30, 1.05, 1.15, 0.70, 0.8),
    _Branch("12b", "13", 0.46, 1.05, 1.50, 0.62, 0.4),
    _Branch("14", "13", 0.62, 0.95, 2.00, 0.68, 0.6),
    _Branch("14a", "13", 0.76, 0.90, 2.40, 0.62, 0.25),
    _Branch("14b", "13", 0.86, 0.80, 2.70, 0.65, 0.3),
    _Branch("15", "13", 0.95, 1.10, 3.05, 0.75, 0.12),  # posterior descending artery in left dominance
    _Branch("", "9", 0.45, 1.20, 0.85, 0.55, 0.6),
    _Branch("", "12a", 0.40, 1.20, 1.50, 0.60, 0.6),
)


def heart_surface(course: np.ndarray) -> np.ndarray:
    """Convert heart coordinates to Cartesian coordinates.

    Args:
        course (`np.ndarray` of shape `(..., 3)`):
            Angle from the base (0) to the apex (pi / 2) and further to the back wall, angle around the axis (0 at the
            anterior groove, pi / 2 at the left lateral wall; both in radians), and height above the axis (1 on the
            surface).

    Returns:
        `np.ndarray` of shape `(..., 3)`: Points, mm.
    """
    theta, phi, height = np.moveaxis(course, -1, 0)[..., None]
    around = np.cos(phi) * _FORWARD + np.sin(phi) * _LATERAL
    return _HEART_LENGTH * np.sin(theta) * _AXIS + _HEART_RADIUS * height * np.cos(theta) * around


def _spline(knots: np.ndarray, num: int) -> np.ndarray:
    """Uniform cubic B-spline from the first to the last of `knots` (k, d), sampled at `num` points."""
    knots = np.concatenate([knots[:1], knots[:1], knots, knots[-1:], knots[-1:]])
    place = np.linspace(0, len(knots) - 3 - 1e-6, num)
    first = place.astype(int)
    t = (place - first)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return sum(weight * knots[first + i] for i, weight in enumerate(weights)) / 6


def _arc_length(points: np.ndarray) -> np.ndarray:
    steps = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _waves(rng: np.random.Generator, arc: np.ndarray, tortuosity: float) -> np.ndarray:
    """Smooth displacement (n, 3) in mm, 0 at the start, which makes a vessel tortuous."""
    lengths = np.array([45.0, 24.0, 13.0, 8.0]) * rng.uniform(0.75, 1.3, 4)
    phases = rng.uniform(0, 2 * np.pi, 4)
    directions = rng.standard_normal((4, 3)) * (tortuosity * 0.030 * lengths)[:, None]
    # the amplitude varies along the vessel and increases towards its end
    places = rng.uniform(0, arc[-1], 4)
    envelope = 0.5 + np.exp(-(((arc[:, None] - places) / (2.5 * lengths)) ** 2))
    sines = np.sin(2 * np.pi * arc[:, None] / lengths + phases) * envelope
    return (sines @ directions) * ((1 - np.exp(-arc / 15.0)) * (0.5 + 0.8 * arc / arc[-1]))[:, None]


def _grow(rng: np.random.Generator, knots: np.ndarray, tortuosity: float, start: np.ndarray | None = None) -> Vessel:
    """Create a vessel along `knots` (k, 3), sampled every `_STEP`, optionally starting at the point `start`."""
    course = _spline(knots, 150)
    arc = _arc_length(heart_surface(course))
    even = np.linspace(0, arc[-1], max(8, int(arc[-1] / _STEP)))
    course = np.stack([np.interp(even, arc, column) for column in course.T], axis=1)
    points = heart_surface(course) + _waves(rng, even, tortuosity)
    if start is not None:
        points += (start - points[0]) * np.exp(-even / 12.0)[:, None]
    num = len(even)
    blank = np.zeros(num, np.uint8)
    return Vessel(course, points, np.ones(num), blank, _arc_length(points), np.ones(num), blank.copy())


def _set_radius(rng: np.random.Generator, vessel: Vessel, start: float, end_share: float) -> None:
    """Taper from `start` mm to `end_share` of it, with small irregularities of the wall."""
    share = np.linspace(0, 1, len(vessel.radius))
    walls = np.interp(vessel.travel, np.arange(0, 400, 5.0), rng.normal(0, 0.035, 80))
    vessel.radius = start * (1 - (1 - end_share) * share) * (1 + walls)


def _label_along(vessel: Vessel, labels: tuple[tuple[str, float], ...]) -> None:
    share = np.linspace(0, 1, len(vessel.label))
    for name, end in reversed(labels):
        vessel.label[share <= end] = SEGMENT_IDS[name]


def _share_outside(vessel: Vessel, parent: Vessel) -> np.ndarray:
    """Fraction of each cross-section of `vessel` outside `parent`, so contrast in the overlap is not counted twice."""
    near = min(len(vessel.points), 25)
    gaps = np.sqrt(((vessel.points[:near, None] - parent.points[None]) ** 2).sum(axis=2))
    closest = gaps.argmin(axis=1)
    radius = vessel.radius[:near]
    depth = gaps[np.arange(near), closest] - parent.radius[closest] + radius
    outside = np.ones(len(vessel.points))
    outside[:near] = np.maximum.accumulate(np.clip(depth / (2 * radius), 0, 1))
    return outside


def _leave(vessel: Vessel, parent: Vessel, at: int, ratio: float) -> None:
    """Join `vessel` to `parent`: Murray's law (cubes of radii add up), distance from the ostium, and overlap."""
    rest = (1 - ratio**3) ** (1 / 3)
    past = np.clip((np.arange(len(parent.radius)) - at) * _STEP / 3.0, 0, 1)
    parent.radius = parent.radius * (1 - (1 - rest) * past)
    vessel.travel = vessel.travel + parent.travel[at]
    vessel.outside = _share_outside(vessel, parent)


def _branch_off(
    rng: np.random.Generator, parent: Vessel, share: float, end: np.ndarray, ratio: float, tortuosity: float
) -> Vessel:
    """Create a branch of `parent` that starts at fraction `share` of its length and ends at `end` on the heart."""
    at = int(np.clip(share, 0.02, 0.97) * (len(parent.points) - 1))
    begin = parent.course[at]
    along = np.linspace(0, 1, 6)[:, None]
    bend = rng.normal(0, 0.10, 2) * np.abs(end - begin)[:2].sum()
    knots = begin + (end - begin) * along
    knots[:, :2] += bend * np.sin(np.pi * along)
    knots[1:, 2] = np.maximum(knots[1:, 2], np.minimum(end[2], 1.0))
    vessel = _grow(rng, knots, tortuosity, parent.points[at])
    _set_radius(rng, vessel, ratio * parent.radius[at], rng.uniform(0.4, 0.6))
    _leave(vessel, parent, at, ratio)
    return vessel


def _named_branches(
    rng: np.random.Generator, found: dict[str, Vessel], table: tuple[_Branch, ...], tortuosity: float
) -> list[Vessel]:
    """Create those branches of `table` that are present in this heart; `found` holds the main vessel and collects
    them."""
    vessels = []
    for branch in table:
        jitter = rng.normal(0, 1, 4)
        if rng.random() > branch.chance or branch.parent not in found:
            continue
        end = np.array([branch.theta + 0.10 * jitter[0], branch.phi + 0.10 * jitter[1], 1.02])
        ratio = float(np.clip(branch.ratio * (1 + 0.10 * jitter[2]), 0.25, 0.85))
        share = branch.share + (0.015 * jitter[3] if branch.share > 0.2 else 0.0)
        vessel = _branch_off(rng, found[branch.parent], share, end, ratio, tortuosity)
        if branch.name:
            vessel.label[:] = SEGMENT_IDS[branch.name]
            found[branch.name] = vessel
        vessels.append(vessel)
    return vessels


def _side_branches(rng: np.random.Generator, parent: Vessel, tortuosity: float, septal: bool) -> list[Vessel]:
    """Create small unnamed branches; `septal` ones go straight into the wall between the ventricles."""
    vessels = []
    length = parent.travel[-1] - parent.travel[0]
    for _ in range(rng.poisson(length / (10.0 if septal else 13.0))):
        share = rng.uniform(0.18, 0.95)
        begin = parent.course[int(share * (len(parent.course) - 1))]
        if septal and rng.random() < 0.6:
            end = begin + (rng.uniform(0.1, 0.45), rng.normal(0, 0.1), -rng.uniform(0.3, 0.7))
        else:
            way = rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)
            end = begin + (rng.uniform(-0.05, 0.45), way, 0.0)
        ratio = min(0.5, rng.uniform(0.28, 0.62) / parent.radius[int(share * (len(parent.radius) - 1))])
        vessels.append(_branch_off(rng, parent, share, end, ratio, 1.3 * tortuosity))
    return vessels


def _right_tree(rng: np.random.Generator, tortuosity: float) -> list[Vessel]:
    dominant = rng.random() < 0.88
    knots = np.array(_RIGHT_COURSE if dominant else _RIGHT_COURSE[:7])
    knots[2:, :2] += rng.normal(0, 0.06, (len(knots) - 2, 2))
    main = _grow(rng, knots, tortuosity)
    _set_radius(rng, main, rng.uniform(1.7, 2.5), rng.uniform(0.55, 0.8))
    _label_along(main, _RIGHT_LABELS if dominant else (("1", 0.4), ("2", 0.75), ("3", 1.0)))
    table = _RIGHT_BRANCHES if dominant else _RIGHT_BRANCHES[:5]
    return [main, *_named_branches(rng, {"16": main}, table, tortuosity)]


def _left_tree(rng: np.random.Generator, tortuosity: float) -> list[Vessel]:
    knots = np.array(_LEFT_COURSE)
    knots[3:, :2] += rng.normal(0, 0.05, (len(knots) - 3, 2))
    main = _grow(rng, knots[: rng.integers(len(knots) - 1, len(knots) + 1)], tortuosity)
    _set_radius(rng, main, rng.uniform(1.9, 2.6), rng.uniform(0.5, 0.7))
    _label_along(main, _LEFT_LABELS)
    vessels = [main, *_named_branches(rng, {"8": main}, _LEFT_BRANCHES, tortuosity)]
    circumflex = next((vessel for vessel in vessels if vessel.label[0] == SEGMENT_IDS["13"]), None)
    if circumflex is not None:
        _label_along(circumflex, (("11", 0.31), ("13", 1.0)))
    return vessels


def _narrow(rng: np.random.Generator, vessels: list[Vessel], number: int) -> bool:
    """Add stenosis `number` at a random location in a named vessel at least 1.5 mm wide and away from other
    stenoses."""
    named = [vessel for vessel in vessels if vessel.label[0]]
    vessel = named[rng.integers(len(named))]
    num = len(vessel.radius)
    half = int(rng.uniform(4.0, 12.0) / _STEP)
    centre = int(rng.uniform(0.05, 0.8) * num)
    first, last = centre - half, centre + half + 1
    if first < 4 or last > num - 4 or vessel.radius[centre] < 0.75 or vessel.lesion[first - 4 : last + 8].any():
        return False
    severity = rng.triangular(0.30, 0.50, 0.95)
    # the flat top of the clipped cosine is the throat, its flanks are the shoulders
    profile = np.clip(1.2 * (0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, last - first))), 0, 1)
    vessel.radius[first:last] *= 1 - severity * profile
    vessel.lesion[first:last] = number
    return True


def coronary_tree(rng: np.random.Generator) -> CoronaryTree:
    """Generate a random coronary tree: side, vessels with widths and names, and stenoses in half of the trees.

    Args:
        rng (`np.random.Generator`): Source of randomness.

    Returns:
        [`CoronaryTree`]: Coronary tree, in millimetres from the centre of the base of the heart.
    """
    side = "right" if rng.random() < 0.4 else "left"
    tortuosity = rng.uniform(0.5, 1.7)
    vessels = _right_tree(rng, tortuosity) if side == "right" else _left_tree(rng, tortuosity)
    for vessel in list(vessels):
        if vessel.radius[0] > 0.55:
            septal = side == "left" and vessel is vessels[0]
            vessels += _side_branches(rng, vessel, tortuosity, septal)
    tree = CoronaryTree(side, vessels)
    wanted = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05])
    for _ in range(30):  # attempts
        if tree.num_stenoses < wanted:
            tree.num_stenoses += _narrow(rng, vessels, tree.num_stenoses + 1)
    return tree
