"""Near duplicates: recall and precision on angiograms with known duplicates, and the cost of grouping.

    python benchmarks/benchmark_near_duplicates.py [ARCADE_FOLDER] [--frames 171478]

With the ARCADE folder (2,400 frames, and `twins.json`, which lists frames shown more than once), thresholds are swept on
one half of the frames and the default is evaluated on the other. `twins.json` was itself created with a difference hash
and a correlation, at a strict threshold, so it cannot reveal duplicates that such a search misses, and it does not list
frames of the same cine a moment apart. Every unlisted pair with up to 112 different bits and a correlation of at least
0.3 was therefore inspected: 66 of 68 are frames of the same cine, `DIFFERENT` are the others. Further parts: changes that
must not matter, or must; simulated cines with motion; and time and memory on synthetic signatures, of which 78 % are near
duplicates in cines of 100.
"""

import argparse
import hashlib
import itertools
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from vasomim_hf.data.near_duplicates import (
    HASH_BITS,
    SIGNATURE_SIZE,
    NearDuplicateThreshold,
    frame_signature,
    group_near_duplicates,
)
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


DIFFERENT = {
    frozenset(("syntax/train/414", "stenosis/train/280")),
    frozenset(("stenosis/train/487", "stenosis/train/779")),
}
REVIEWED = NearDuplicateThreshold(112, 0.3)
DEFAULT = NearDuplicateThreshold()
DISTANCES = (16, 24, 32, 48, 64, 80, 88, 96, 104, 112)
CORRELATIONS = (0.3, 0.45, 0.55, 0.65, 0.8, 0.9)


# ARCADE
# ---------------------------------------------------------------------------------------------------------------


def arcade_frames(root: Path) -> dict[str, np.ndarray]:
    """Frames by their names in `twins.json`."""
    paths = sorted(root.glob("*/*/images/*.*"))
    frames = {f"{path.parts[-4]}/{path.parts[-3]}/{path.stem}": cv2.imread(str(path), 0) for path in paths}
    return {name: frame for name, frame in frames.items() if frame is not None}


def compare(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different bits and correlation of all pairs of signatures, (N, N) each."""
    signs = np.unpackbits(signatures[:, : HASH_BITS // 8], axis=1).astype(np.float32) * 2 - 1
    levels = signatures[:, HASH_BITS // 8 :].astype(np.float32) - 128
    norms = np.maximum(np.linalg.norm(levels, axis=1), 1)
    return (HASH_BITS - signs @ signs.T) / 2, levels @ levels.T / np.outer(norms, norms)


def half(name: str, duplicates: dict[str, int]) -> int:
    """0 or 1; duplicates are in the same half."""
    return hashlib.sha256(str(duplicates.get(name, name)).encode()).digest()[0] % 2


def scores(names: list[str], signatures: np.ndarray, duplicates: dict[str, int]) -> list[tuple[float, float, str]]:
    """Different bits, correlation and kind (`duplicate`, `same cine`, `different`) of all relevant pairs."""
    distance, correlation = compare(signatures)
    listed = np.array([duplicates.get(name, -1 - number) for number, name in enumerate(names)])
    is_duplicate = listed[:, None] == listed
    near = (distance <= REVIEWED.max_hash_distance) & (correlation >= REVIEWED.min_correlation)
    found = []
    for i, j in zip(*np.nonzero(np.triu(is_duplicate | near, 1)), strict=True):
        is_different = frozenset((names[i], names[j])) in DIFFERENT
        kind = "duplicate" if is_duplicate[i, j] else "different" if is_different else "same cine"
        found.append((float(distance[i, j]), float(correlation[i, j]), kind))
    return found


def rates(pairs: list[tuple[float, float, str]], threshold: NearDuplicateThreshold) -> str:
    """Recall and precision by the list, precision after inspection, and recall of the inspected pairs of the same
    cine."""
    taken = [kind for bits, c, kind in pairs if bits <= threshold.max_hash_distance and c >= threshold.min_correlation]
    duplicates, runs = taken.count("duplicate"), taken.count("same cine")
    all_duplicates, all_runs = (sum(pair[2] == kind for pair in pairs) for kind in ("duplicate", "same cine"))
    found = max(len(taken), 1)
    return (
        f"{duplicates:5d}/{all_duplicates}  recall {duplicates / all_duplicates:.3f}  precision {duplicates / found:.3f}, after inspection "
        f"{(duplicates + runs) / found:.3f}  same cine {runs}/{all_runs}"
    )


def arcade(root: Path) -> None:
    """Sweep on one half, evaluate on the other."""
    frames = arcade_frames(root)
    names, signatures = list(frames), np.stack([frame_signature(frame) for frame in frames.values()])
    groups = json.loads((root / "twins.json").read_text())["twins"]
    duplicates = {name: number for number, group in enumerate(groups) for name in group}
    halves = np.array([half(name, duplicates) for name in names])
    pairs = {}
    for which in (0, 1):
        rows = np.flatnonzero(halves == which)
        pairs[which] = scores([names[row] for row in rows], signatures[rows], duplicates)
        print(f"half {which}: {len(rows)} frames, {len(rows) * (len(rows) - 1) // 2} pairs")
    print(f"\nsweep on half 0, duplicates found at correlation >= {DEFAULT.min_correlation}")
    for bits in DISTANCES:
        print(f"  {bits:3d} bits  {rates(pairs[0], NearDuplicateThreshold(bits, DEFAULT.min_correlation))}")
    print(f"and at <= {DEFAULT.max_hash_distance} bits")
    for correlation in CORRELATIONS:
        print(
            f"  >= {correlation:.2f}  "
            f"{rates(pairs[0], NearDuplicateThreshold(DEFAULT.max_hash_distance, correlation))}"
        )
    print(f"\ndefault on half 1  {rates(pairs[1], DEFAULT)}")
    print(f"default on both    {rates(scores(names, signatures, duplicates), DEFAULT)}")
    sizes = np.unique(group_near_duplicates(signatures), return_counts=True)[1]
    print(f"groups by size: {dict(enumerate(np.bincount(sizes)[1:].tolist(), start=1))}")
    changes(list(frames.values())[::24])
    openings([frames[names[row]] for row in np.unique(group_near_duplicates(signatures))][::4])


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC)


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)


def noisy(frame: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, level, frame.shape)
    return (frame + noise).clip(0, 255).astype(np.uint8)


def moved(frame: np.ndarray, pixels: float) -> np.ndarray:
    matrix = np.array([[1, 0, pixels], [0, 1, 0]], np.float32)
    return cv2.warpAffine(frame, matrix, frame.shape[::-1], borderMode=cv2.BORDER_REFLECT)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 92": lambda frame: jpeg(frame, 92),
    "JPEG 50": lambda frame: jpeg(frame, 50),
    "512 -> 1024": lambda frame: resized(frame, 1024),
    "512 -> 1024 -> 512": lambda frame: resized(resized(frame, 1024), 512),
    "512 -> 256": lambda frame: cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA),
    "brightness + 10": lambda frame: cv2.add(frame, 10.0),
    "contrast x 0.8": lambda frame: cv2.convertScaleAbs(frame, alpha=0.8),
    "noise 10 levels": lambda frame: noisy(frame, 10),
    "shift 4 px": lambda frame: moved(frame, 4),
    "shift 8 px": lambda frame: moved(frame, 8),
    "shift 16 px": lambda frame: moved(frame, 16),
    "shift 32 px": lambda frame: moved(frame, 32),
    "mirrored": lambda frame: frame[:, ::-1],
    "upside down": lambda frame: frame[::-1],
    "inverted": lambda frame: 255 - frame,
    "turned by 90 degrees": np.rot90,
}


def changes(frames: list[np.ndarray]) -> None:
    """How many frames are grouped with a changed copy of themselves."""
    print(f"\nchanged copies of {len(frames)} frames: grouped, median of different bits and correlation")
    for name, change in CHANGES.items():
        taken, bits, correlations = 0, [], []
        for frame in frames:
            pair = np.stack([frame_signature(frame), frame_signature(np.ascontiguousarray(change(frame)))])
            distance, correlation = compare(pair)
            taken += int(group_near_duplicates(pair)[1] == 0)
            bits.append(distance[0, 1])
            correlations.append(correlation[0, 1])
        print(f"  {name:22s} {taken:4d}   {np.median(bits):5.0f}  {np.median(correlations):6.3f}")


def openings(frames: list[np.ndarray]) -> None:
    """Different images behind the same collimator, which are alike only in the hidden area."""
    print(
        f"\n{len(frames)} different images behind the same opening: pairs counted as duplicates, fewest bits, "
        "highest r"
    )
    y, x = np.mgrid[:512, :512] - 255.5
    masks = {f"square {side}": (abs(x) < side / 2) & (abs(y) < side / 2) for side in (400, 330, 260, 200)}
    masks["slot 460 x 200"] = (abs(x) < 230) & (abs(y) < 100)
    masks |= {f"disc {side}": x**2 + y**2 < (side / 2) ** 2 for side in (512, 400)}
    for name, mask in masks.items():
        distance, correlation = compare(np.stack([frame_signature(frame * mask) for frame in frames]))
        above = np.triu_indices(len(frames), 1)
        bits, r = distance[above], correlation[above]
        taken = ((bits <= DEFAULT.max_hash_distance) & (r >= DEFAULT.min_correlation)).sum()
        print(f"  {name:16s} {taken:4d} of {len(bits)}  {bits.min():4.0f}  {r.max():.2f}")


# Cines
# ----------------------------------------------------------------------------------------------------------------


def beating(frame: np.ndarray, amplitude: float, phase: float) -> np.ndarray:
    """Move the centre of a frame in a circle of some pixels, like the heart, with fixed edges."""
    height, width = frame.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    weight = np.exp(-(((x - width / 2) / (0.3 * width)) ** 2 + ((y - height / 2) / (0.3 * height)) ** 2))
    at_x = x + weight.astype(np.float32) * np.float32(amplitude * np.cos(phase))
    at_y = y + weight.astype(np.float32) * np.float32(amplitude * np.sin(phase))
    return cv2.remap(frame, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def steps(frame: np.ndarray, pixels: float, count: int = 16) -> Iterator[np.ndarray]:
    """A cine in which the centre moves by a number of pixels per frame, with new noise in each frame."""
    amplitude = pixels / (2 * np.sin(np.pi / count))
    for number in range(count):
        generator = np.random.default_rng(number)
        picture = beating(frame, amplitude, 2 * np.pi * number / count)
        yield (picture + generator.normal(0, 4, frame.shape)).clip(0, 255).astype(np.uint8)


def runs(num: int = 16) -> None:
    """Speed at which consecutive frames of a beating heart are no longer grouped."""
    frames = [synthetic_angiogram(seed).image for seed in range(num)]
    print(
        f"\n{num} synthetic cines of 16 frames, 512 x 512, one beat, noise of 4 levels: groups per cine; neighbours "
        "joined"
    )
    for pixels in (1, 2, 4, 6, 8, 12, 16, 24, 32):
        number, joined = [], 0
        for frame in frames:
            signatures = np.stack([frame_signature(picture) for picture in steps(frame, pixels)])
            number.append(len(np.unique(group_near_duplicates(signatures))))
            for pair in itertools.pairwise(signatures):
                joined += int(group_near_duplicates(np.stack(pair))[1] == 0)
        print(f"  {pixels:3d} px per frame  {np.mean(number):5.1f} groups  {joined / (15 * num):6.1%} of neighbours")
    filling(num)
    signatures = np.stack([frame_signature(frame) for frame in frames])
    print(
        f"  frames of different patients: {len(np.unique(group_near_duplicates(signatures)))} groups of {num} frames"
    )


def filling(num: int) -> None:
    """Contrast filling the arteries in some frames, without motion; an empty tree is painted over."""
    for count in (2, 3, 5, 9):
        number = []
        for seed in range(num):
            full = synthetic_angiogram(seed)
            covered = cv2.dilate(full.vessel_mask.astype(np.uint8), np.ones((5, 5)))
            empty = cv2.inpaint(full.image, covered, 5, cv2.INPAINT_TELEA).astype(np.float32)
            shares = np.linspace(0, 1, count)
            frames = [noisy((empty + share * (full.image - empty)).astype(np.uint8), 4) for share in shares]
            number.append(len(np.unique(group_near_duplicates(np.stack([frame_signature(f) for f in frames])))))
        print(f"  filled in {count - 1} steps: {np.mean(number):.2f} groups per cine")


# Cost
# -----------------------------------------------------------------------------------------------------------------


def synthetic_signatures(num: int, run: int = 100, share: float = 0.78) -> np.ndarray:
    """Signatures like those of cines, a fraction `share` of which are near duplicates of others."""
    generator = np.random.default_rng(0)
    copied = int(num * share / (run - 1)) * run
    signatures = np.empty((num, SIGNATURE_SIZE), np.uint8)
    for start in range(0, num, 1000):  # in blocks, so peak memory is that of the grouping
        rows = signatures[start : start + 1000]
        rows[:] = (128 + 40 * generator.standard_normal(rows.shape, np.float32)).clip(1, 255)
    signatures[:, : HASH_BITS // 8] = generator.integers(0, 256, (num, HASH_BITS // 8), np.uint8)
    flips = np.uint8(1) << generator.integers(0, 8, (num, HASH_BITS // 8), np.uint8)
    flips *= generator.random(flips.shape) < 0.4  # two copies differ in about 45 bits
    for start in range(0, copied, run):
        rows = slice(start, start + run)
        signatures[rows, : HASH_BITS // 8] = signatures[start, : HASH_BITS // 8] ^ flips[rows]
        own = signatures[rows, HASH_BITS // 8 :].astype(np.float32)
        common = signatures[start, HASH_BITS // 8 :].astype(np.float32)
        signatures[rows, HASH_BITS // 8 :] = (128 + 0.9 * (common - 128) + 0.4 * (own - 128)).clip(1, 255)
    return signatures[generator.permutation(num)]


def cost(most: int) -> None:
    """Time of a signature, and time and memory of grouping."""
    frame = synthetic_angiogram(0).image
    cv2.setNumThreads(1)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        frame_signature(frame)
        times.append(time.perf_counter() - start)
    print(f"\nsignature of a 512 x 512 frame: {min(times) * 1e3:.2f} ms on one core, {SIGNATURE_SIZE} bytes")
    for num in (most // 16, most // 4, most):
        signatures = synthetic_signatures(num)
        start, cpu = time.perf_counter(), time.process_time()
        groups = group_near_duplicates(signatures)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"  {num:7d} signatures ({signatures.nbytes / 2**20:.0f} MiB): {len(np.unique(groups))} groups, "
            f"{seconds:.1f} s ({cpu:.1f} s of CPU time), peak memory of the process {peak:.0f} MiB"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arcade", nargs="?", type=Path)
    parser.add_argument("--frames", type=int, default=171_478)
    arguments = parser.parse_args()
    if arguments.arcade:
        arcade(arguments.arcade)
    runs()
    cost(arguments.frames)


if __name__ == "__main__":
    main()
