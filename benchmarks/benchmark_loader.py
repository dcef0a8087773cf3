"""Augmented crops per second on one core: all ways of loading frames compared with a plain loader.

    python benchmarks/benchmark_loader.py FOLDER_OF_FRAMES [--format png] [--crops 600]

The plain loader does what a typical masked-image-modelling script does for a frame and its mask: open two files with
Pillow, convert, crop and resize both (antialiased bicubic, nearest), flip, and convert the frame to a normalised float
tensor. Without a folder, synthetic frames of 512×512 are used. Also shown: the cost of each stage of a crop from Parquet,
and the difference between the crops and Pillow's.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from vasomim_hf.data.crops import Crop, crop_frame, normalize_frames, random_crop
from vasomim_hf.data.device_crops import crop_batch
from vasomim_hf.data.frame_cache import FrameCache, FrameCacheDataset, build_frame_cache
from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.parquet.read import ParquetCropStream, ParquetFrames, find_shards
from vasomim_hf.data.parquet.row_order import StreamOptions
from vasomim_hf.data.reading.files import decode_frame
from vasomim_hf.data.reading.masks import to_mask
from vasomim_hf.data.sources import FolderSource


SIZE = (224, 224)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ROUNDS = 5
# as in published data sets, and enough that the stream has to load and release row groups
ROWS, ROWS_IN_GROUP = 1000, 100


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
    """Write frames and masks as file pairs for the plain loader."""
    pairs = []
    for index in range(len(cache)):
        frame_path, mask_path = folder / f"{index}.{suffix}", folder / f"{index}_mask.{suffix}"
        Image.fromarray(np.asarray(cache.frame(index))).save(frame_path)
        Image.fromarray(cache.vesselness(index) * np.uint8(255)).save(mask_path)
        pairs.append((frame_path, mask_path))
    return pairs


def write_parquet(cache: FrameCache, path: Path) -> ParquetFrames:
    """Write the frames repeatedly as rows of a zstd-compressed Parquet file, and open it."""
    rows = [
        {
            "image": {"bytes": encode_png(np.asarray(cache.frame(index))), "path": None},
            "vesselness": {"bytes": encode_mask_png(cache.vesselness(index).view(bool)), "path": None},
        }
        for index in range(len(cache))
    ]
    with pq.ParquetWriter(path, pa.Table.from_pylist(rows).schema, compression="zstd") as writer:
        for start in range(0, ROWS, ROWS_IN_GROUP):
            group = [rows[(start + number) % len(rows)] for number in range(ROWS_IN_GROUP)]
            writer.write_table(pa.Table.from_pylist(group))
    return ParquetFrames(find_shards(str(path)))


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


def rates(variants: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Items per second: the best of several rounds in which the variants alternate, which reduces the effect of
    load."""
    best = dict.fromkeys(variants, 0.0)
    for _ in range(ROUNDS):
        for name, work in variants.items():
            start = time.perf_counter()
            count = work()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def repeat(work: Callable[[int], object], count: int) -> Callable[[], int]:
    """A function that calls `work` with 0, 1, ... and returns the number of calls."""
    return lambda: len([work(number) for number in range(count)])


def loaders(cache: FrameCache, folder: Path, suffix: str, crops: int) -> dict[str, Callable[[], int]]:
    """The loaders, each as a function that returns a number of crops."""
    pairs = write_pairs(cache, folder, suffix)
    dataset = FrameCacheDataset(cache, SIZE)
    stream = ParquetCropStream(write_parquet(cache, folder / "frames.parquet"), SIZE, StreamOptions(batch_size=64))
    generator = np.random.default_rng(0)
    # frames of the same size, as many as fit
    whole = [i for i in range(len(cache)) if cache.size(i) == cache.size(0)][:32]
    pixels = torch.from_numpy(np.stack([cache.frame(i) for i in whole]))[:, None]
    masks = torch.from_numpy(np.stack([cache.vesselness(i) for i in whole]))[:, None]
    batch = torch.stack([dataset[n]["pixel"] for n in range(min(64, len(cache)))])

    def on_device() -> int:
        crop_batch(pixels, masks, [dataset.crop(0, i) for i in whole], SIZE)
        return len(whole)

    def normalise() -> int:
        return sum(len(normalize_frames(batch, MEAN, STD)) for _ in range(10))

    return {
        "plain": repeat(lambda n: plain_item(pairs[n % len(pairs)], generator), max(1, crops // 6)),
        "cache": repeat(lambda n: dataset[n // len(cache), n % len(cache)], crops),
        "stream": lambda: sum(1 for _ in stream),
        "batch": on_device,
        "normalise": normalise,
    }


def parts(cache: FrameCache, folder: Path) -> dict[str, Callable[[], int]]:
    """Stages of a crop from Parquet, and alternative decoders."""
    frames = [memoryview(encode_png(np.asarray(cache.frame(i)))) for i in range(len(cache))]
    masks = [memoryview(encode_mask_png(cache.vesselness(i).view(bool))) for i in range(len(cache))]
    file = pq.ParquetFile(folder / "frames.parquet", memory_map=True)
    columns = ["image.bytes", "vesselness.bytes"]

    def read() -> int:
        return sum(len(file.read_row_group(n, columns=columns, use_threads=False)) for n in range(file.num_row_groups))

    def each(decode: Callable[[memoryview], object], files: list[memoryview]) -> Callable[[], int]:
        return repeat(lambda n: decode(files[n]), len(files))

    def with_opencv(data: memoryview) -> object:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

    def with_pillow(data: memoryview) -> object:
        return np.asarray(Image.open(io.BytesIO(data)))

    return {
        "reading and decompressing a row": read,
        "decoding a frame": each(lambda data: decode_frame(data, "a frame"), frames),
        "    with OpenCV": each(with_opencv, frames),
        "    with Pillow": each(with_pillow, frames),
        "decoding a mask": repeat(lambda n: to_mask(bytes(masks[n]), "of a frame", cache.size(n)), len(masks)),
        "    its mask with OpenCV": each(with_opencv, masks),
        "    its mask with Pillow": each(with_pillow, masks),
    }


def compare_crops(cache: FrameCache, crops_of_each: int = 5) -> dict[str, float]:
    """Mean difference between fast crops and Pillow's antialiased bicubic, in levels of 255."""
    generator = np.random.default_rng(0)
    differences, ratios = [], []
    for index in range(len(cache)):
        frame = np.asarray(cache.frame(index))
        for _ in range(crops_of_each):
            crop = random_crop(frame.shape, generator, flip_probability=0)
            fast, exact = crop_frame(frame, crop, SIZE).astype(np.float64), pillow_crop(frame, crop)
            differences.append((fast.mean() - exact.mean(), np.abs(fast - exact).mean()))
            ratios.append((fast.std() / exact.std(), gradient_energy(fast) / gradient_energy(exact)))
    return {
        "mean, in levels": float(np.mean(differences, axis=0)[0]),
        "each pixel, in levels": float(np.mean(differences, axis=0)[1]),
        "standard deviation, ratio": float(np.mean(ratios, axis=0)[0]),
        "gradient energy, ratio": float(np.mean(ratios, axis=0)[1]),
    }


def pillow_crop(frame: np.ndarray, crop: Crop) -> np.ndarray:
    """The same crop by Pillow."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    return np.asarray(Image.fromarray(frame).crop(box).resize(SIZE, Image.Resampling.BICUBIC), np.float64)


def gradient_energy(image: np.ndarray) -> float:
    """Mean squared difference between neighbouring pixels."""
    return float(np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2))


def report(cache: FrameCache, suffix: str, found: dict[str, float], costs: dict[str, float]) -> None:
    """Print the tables."""
    plain = found["plain"]
    print(f"{len(cache)} frames, crops of {SIZE[0]}×{SIZE[1]}, one core, best of {ROUNDS} rounds")
    labels = {
        "plain": f"two {suffix.upper()} files, Pillow, normalised",
        "cache": "frame cache, uint8",
        "stream": "Parquet, streamed",
        "batch": "batch with crop_batch, on the CPU",
    }
    for name, label in labels.items():
        print(f"{label:42}{found[name]:8.0f} crops/s   {found[name] / plain:5.1f}×")
    for name in ("cache", "stream"):
        both = 1 / (1 / found[name] + 1 / found["normalise"])
        print(f"{labels[name] + ', and normalisation on the CPU':42}{both:8.0f} crops/s   {both / plain:5.1f}×")
    print("Stages of a crop from Parquet, and alternative decoders")
    for name, per_second in costs.items():
        print(f"{name:42}{1e6 / per_second:8.0f} µs")
    print("Fast crops compared with Pillow's antialiased bicubic")
    for name, value in compare_crops(cache).items():
        print(f"{name:42}{value:8.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    parser.add_argument("--crops", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("frames", "work"):
            (Path(scratch) / name).mkdir()
        source = FolderSource(arguments.folder or synthetic_frames(Path(scratch) / "frames"))
        source.names = source.names[:64]
        cache = build_frame_cache(source, Path(scratch) / "cache")
        work = Path(scratch) / "work"
        found = rates(loaders(cache, work, arguments.format, arguments.crops))
        report(cache, arguments.format, found, rates(parts(cache, work)))


if __name__ == "__main__":
    main()
