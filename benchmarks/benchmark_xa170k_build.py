"""Frames per second from PNG files to verified Parquet with vesselness masks, and memory use.

    python benchmarks/benchmark_xa170k_build.py [--frames DIR] [--count 2000] [--workers 2] [--rounds 2]

The time is that of the whole `build_xa170k`: survey, near-duplicate groups, masks and shards, verification, card, and
the start of worker processes. The frames are 512×512 PNG files in the layout of the authors' zip, extracted and
written beforehand: those of a folder, or synthetic ones (a few hundred originals, the others mirrored and shifted).
The fastest round counts. Memory is the sum of the resident pages of all processes, so shared pages count more than
once.
"""

import argparse
import os
import shutil
import tempfile
import time
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from vasomim_hf.data.reading.files import list_frames, read_frame
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.data.xa170k.dataset import XA170KBuildOptions, build_xa170k


SIZE = 512
NUM_DRAWN = 200
KNOWN = 171_478
PAGE = os.sysconf("SC_PAGE_SIZE")


def synthetic_frames(count: int) -> list[np.ndarray]:
    """Frames of shape `(512, 512)`, all different."""
    drawn = [synthetic_angiogram(seed, size=SIZE).image for seed in range(min(count, NUM_DRAWN))]
    return [
        np.roll(drawn[number % NUM_DRAWN][:, :: 1 - 2 * (number // NUM_DRAWN % 2)], 37 * (number // NUM_DRAWN), axis=0)
        for number in range(count)
    ]


def frames_of(folder: str, count: int) -> list[np.ndarray]:
    """The first frames of a folder that have this size."""
    frames = (read_frame(path) for path in list_frames(folder))
    return list(islice((frame for frame in frames if frame.shape == (SIZE, SIZE)), count))


def write_frames(frames: list[np.ndarray], folder: Path) -> None:
    (folder / "coronarydominance").mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "coronarydominance" / f"{number:06d}.png")


def first_frames(source: Path, folder: Path, count: int) -> Path:
    """A folder with links to the first frames of another."""
    (folder / "coronarydominance").mkdir(parents=True)
    for path in sorted((source / "coronarydominance").iterdir())[:count]:
        os.link(path, folder / "coronarydominance" / path.name)
    return folder


def build(source: str, output: str, num_workers: int, answer: Connection) -> None:
    """Build in this process and send back the duration in seconds."""
    options = XA170KBuildOptions(num_workers=num_workers, show_progress=False, frames_per_shard=250)
    start = time.perf_counter()
    build_xa170k(source, output, options)
    answer.send(time.perf_counter() - start)


def resident_bytes(process: int) -> int:
    """Resident memory of a process and its children."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = [text.read_text().split() for text in Path(f"/proc/{process}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * PAGE + sum(resident_bytes(int(child)) for child in sum(children, []))


def measure(source: Path, num_workers: int) -> tuple[float, float, float]:
    """Seconds, peak memory in MB and size of the Parquet files in MB of one build."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        context, peak = get_context("spawn"), 0
        receiver, answer = context.Pipe(duplex=False)
        process = context.Process(target=build, args=(str(source), str(output), num_workers, answer))
        process.start()
        while process.is_alive():
            peak = max(peak, resident_bytes(process.pid))
            process.join(0.05)
        if process.exitcode != 0:
            raise RuntimeError(f"the build ended with {process.exitcode}")
        size = sum(path.stat().st_size for path in (output / "data").iterdir())
    return receiver.recv(), peak / 1e6, size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", metavar="DIR", help="folder of frames (default: synthetic)")
    parser.add_argument("--count", type=int, default=2000, help="number of frames")
    parser.add_argument("--workers", type=int, default=2, help="number of processes and cores")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions; the fastest counts")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.workers])
    folder = Path(tempfile.mkdtemp(prefix="vasomim-benchmark-"))
    try:
        count = arguments.count
        write_frames(
            frames_of(arguments.frames, count) if arguments.frames else synthetic_frames(count), folder / "all"
        )
        count = len(list((folder / "all" / "coronarydominance").iterdir()))
        quarter = first_frames(folder / "all", folder / "quarter", count // 4)
        _, small, _ = measure(quarter, arguments.workers)
        results = [measure(folder / "all", arguments.workers) for _ in range(arguments.rounds)]
    finally:
        shutil.rmtree(folder)
    seconds, peak, size = min(results)
    rate = count / seconds
    print(f"{count} frames in {seconds:.1f} s: {rate:.1f} frames/s, {rate / arguments.workers:.1f} per core")
    print(
        f"the {KNOWN:,} frames of XA-170K on {arguments.workers} cores, at this rate: {KNOWN / rate / 60:.0f} minutes"
    )
    print(
        f"peak memory {small:.0f} MB at {count // 4} frames, {peak:.0f} MB at {count}, {size / count * 1e3:.0f} kB "
        "per frame"
    )


if __name__ == "__main__":
    main()
