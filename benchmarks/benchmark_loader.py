"""Augmented crops a second on one core: the frame cache against a plain loader of image files, in one run.

    python benchmarks/benchmark_loader.py FOLDER_OF_FRAMES [--format png] [--crops 600]

The plain loader does what a usual masked-image-modelling script does for a frame and its mask: open two files with
Pillow, convert both, crop and resize both (bicubic, nearest), flip, and turn the frame into a normalised float tensor.
Without a folder, synthetic frames of 512×512 take the place of real ones.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vasomim_hf.data.frame_cache import FrameCache, FrameCacheDataset, build_frame_cache
from vasomim_hf.data.frame_sources import FolderSource
from vasomim_hf.data.transforms import normalize_frames, random_crop


SIZE = (224, 224)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ROUNDS = 5


def synthetic_frames(folder: Path, count: int = 32) -> Path:
    """Write noisy frames; their PNG files are about as large as those of angiograms."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        coarse = Image.fromarray(generator.integers(60, 200, (16, 16), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((512, 512), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{seed:03d}.png")
    return folder


def write_pairs(cache: FrameCache, folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Write frames and masks as the pairs of files that the plain loader reads."""
    pairs = []
    for index in range(len(cache)):
        frame_path, mask_path = folder / f"{index}.{suffix}", folder / f"{index}_mask.{suffix}"
        Image.fromarray(np.asarray(cache.frame(index))).save(frame_path)
        Image.fromarray(cache.vesselness(index) * np.uint8(255)).save(mask_path)
        pairs.append((frame_path, mask_path))
    return pairs


def plain_item(paths: tuple[Path, Path], generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample of the plain loader."""
    frame, mask = Image.open(paths[0]).convert("RGB"), Image.open(paths[1]).convert("L")
    crop = random_crop((frame.height, frame.width), generator)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    frame = frame.crop(box).resize(SIZE, Image.Resampling.BICUBIC)
    mask = mask.crop(box).resize(SIZE, Image.Resampling.NEAREST)
    if crop.flip:
        frame, mask = (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in (frame, mask))
    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1).float().div(255)
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return pixels, torch.from_numpy(np.array(mask)).float().div(255)[None]


def rate(work: Callable[[int], object], count: int) -> float:
    """Calls a second: the best of several rounds, so that other work on the machine counts little."""
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for number in range(count):
            work(number)
        best = max(best, count / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    parser.add_argument("--crops", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("frames", "pairs"):
            (Path(scratch) / name).mkdir()
        folder = arguments.folder or synthetic_frames(Path(scratch) / "frames")
        source = FolderSource(folder)
        source.names = source.names[:64]
        cache = build_frame_cache(source, Path(scratch) / "cache")
        pairs = write_pairs(cache, Path(scratch) / "pairs", arguments.format)
        dataset = FrameCacheDataset(cache, SIZE)
        generator = np.random.default_rng(0)

        plain = rate(lambda n: plain_item(pairs[n % len(pairs)], generator), max(1, arguments.crops // 6))
        cached = rate(lambda n: dataset[n // len(cache), n % len(cache)], arguments.crops)
        batch = torch.stack([dataset[n]["pixel"] for n in range(min(64, len(cache)))])
        normalised = rate(lambda n: normalize_frames(batch, MEAN, STD), 20) * len(batch)

    print(f"{len(cache)} frames, crops of {SIZE[0]}×{SIZE[1]}, one core")
    print(f"two {arguments.format.upper()} files, Pillow, normalised   {plain:8.0f} crops/s")
    print(f"frame cache, uint8                   {cached:8.0f} crops/s   {cached / plain:5.1f}×")
    both = 1 / (1 / cached + 1 / normalised)
    print(f"frame cache and normalising on CPU   {both:8.0f} crops/s   {both / plain:5.1f}×")


if __name__ == "__main__":
    main()
