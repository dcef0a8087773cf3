"""Time of a vessel mask on one core, compared with the pipeline it reproduces.

    python benchmarks/benchmark_vesselness.py [--frames DIR] [--count 8] [--rounds 7]

The reference pipeline consists of scikit-image's Sato filter on float64, numpy's percentile and region growing in
Python. For each frame and stage the fastest round counts; reading files is excluded. Without --frames, synthetic
frames are used.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from skimage.filters import sato

from vasomim_hf.data import vesselness
from vasomim_hf.data.reading.files import list_frames, read_frame


BORDER = 20
OPTIONS = vesselness.VesselnessOptions(border=BORDER)


def synthetic_frame(seed: int, size: int = 512) -> np.ndarray:
    """A smooth grey background with quantum noise and a few curved dark vessels."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices((size, size)) / size
    frame = 150 + 40 * np.sin(3 * rows + seed) * np.cos(2 * columns)
    for _ in range(8):
        start, slope, bend, width = generator.uniform((0.1, -0.5, 5, 0.004), (0.9, 0.5, 15, 0.012))
        distance = rows - start - slope * columns - 0.05 * np.sin(bend * columns)
        frame -= 60 * np.exp(-((distance / width) ** 2))
    return (frame + generator.normal(0, 4, frame.shape)).clip(0, 255).astype(np.uint8)


def reference_levels(frame: np.ndarray) -> np.ndarray:
    levels = sato(frame, sigmas=[1, 2, 3, 4], black_ridges=True, mode="reflect", cval=0).astype(np.uint8)
    levels[:BORDER] = levels[-BORDER:] = levels[:, :BORDER] = levels[:, -BORDER:] = 0
    return levels


def reference_threshold(levels: np.ndarray) -> np.ndarray:
    return np.where(levels >= np.percentile(levels, 92), levels, 0)


def reference_region(kept: np.ndarray) -> np.ndarray:
    mask = np.zeros(kept.shape, bool)
    row, column = np.unravel_index(kept.argmax(), kept.shape)
    stack = [(int(row), int(column))] if kept[row, column] else []
    while stack:
        row, column = stack.pop()
        if mask[row, column]:
            continue
        mask[row, column] = True
        for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if 0 <= r < kept.shape[0] and 0 <= c < kept.shape[1] and kept[r, c] and not mask[r, c]:
                stack.append((r, c))
    return mask


def fastest(function: Callable, *arguments: Any, rounds: int) -> tuple[Any, float]:
    """Result of a call and the milliseconds of its fastest round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function(*arguments)
        times.append(1e3 * (time.perf_counter() - start))
    return result, min(times)


def measure(frame: np.ndarray, rounds: int) -> dict[str, float]:
    """Milliseconds of each stage, ours and the reference's, and whether the masks are equal."""
    times = {}
    few = max(2, rounds // 3)
    levels, times["reference: filter"] = fastest(reference_levels, frame, rounds=few)
    kept, times["reference: percentile"] = fastest(reference_threshold, levels, rounds=few)
    expected, times["reference: region"] = fastest(reference_region, kept, rounds=few)
    response, times["ours: filter"] = fastest(vesselness.sato_response, frame, OPTIONS.sigmas, BORDER, rounds=rounds)
    ours, times["ours: truncation"] = fastest(vesselness._whole_levels, frame, response, OPTIONS, rounds=rounds)
    threshold, times["ours: percentile"] = fastest(vesselness._threshold, ours, 92, rounds=rounds)
    _, times["ours: region"] = fastest(vesselness._region, ours, threshold, "brightest", rounds=rounds)
    mask, times["ours: vessel_mask"] = fastest(vesselness.vessel_mask, frame, BORDER, rounds=rounds)
    times["equal masks"] = float(np.array_equal(mask, expected))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", metavar="DIR", help="folder of frames (default: synthetic, 512 x 512)")
    parser.add_argument("--count", type=int, default=8, help="number of frames")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions; the fastest counts")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for every library, where supported
    if arguments.frames:
        frames = [read_frame(path) for path in list_frames(arguments.frames)[: arguments.count]]
    else:
        frames = [synthetic_frame(seed) for seed in range(arguments.count)]
    results = [measure(frame, arguments.rounds) for frame in frames]
    mean = {key: sum(result[key] for result in results) / len(results) for key in results[0]}
    equal = mean.pop("equal masks")
    for part, milliseconds in mean.items():
        print(f"{part:24s}{milliseconds:9.2f} ms per frame")
    reference = sum(value for part, value in mean.items() if part.startswith("reference"))
    print(f"{'reference: all':24s}{reference:9.2f} ms per frame")
    print(f"ratio {reference / mean['ours: vessel_mask']:.1f}, equal masks {equal:.0%} of {len(frames)} frames")


if __name__ == "__main__":
    main()
