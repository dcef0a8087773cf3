"""Vesselness: masks or maps of dark vessels in an angiogram, from a ridge filter.

The filter of the method (arXiv 2602.11536, which calls it Frangi) is Sato's tubeness at scales of 1 to 4 pixels,
truncated to integers, without a border, above a percentile, restricted to the connected region around the brightest
pixel. The result equals `skimage.filters.sato` on float64 for every integer level and takes about a fortieth of the
time.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ..folders import atomic_file
from ..import_utils import require
from ..progress import Progress
from .reading.files import FrameReadError, list_frames, read_frame


Region = Literal["brightest", "largest", "all"]
Kind = Literal["mask", "response"]

SIGMAS = (1.0, 2.0, 3.0, 4.0)
REGIONS = ("brightest", "largest", "all")

# The float32 response differs from float64 by at most 2.3e-5 on angiograms and 3.4e-5 on black and white stripes.
# Pixels closer than this to an integer are recomputed in float64, so truncation gives the same level as the reference.
_ROUNDING_MARGIN = 4e-5
# Above this number of such pixels (flat test patterns, not angiograms) a full float64 pass is cheaper.
_MAX_EXACT_PIXELS = 200
# Fraction of a kernel's absolute sum that may be truncated at its tails without exceeding rounding errors.
_TAIL = {np.dtype(np.float32): 1e-7, np.dtype(np.float64): 1e-13}
# Starting a worker process takes about as long as filtering this many frames.
_FRAMES_PER_WORKER = 300


@dataclass(frozen=True)
class VesselnessOptions:
    """Options of the vessel mask; defaults are those of the method.

    Args:
        border (`int`, *optional*, defaults to 20):
            Width in pixels of the border in which no vessels are detected.
        region (`str`, *optional*, defaults to `"brightest"`):
            4-connected regions to keep: the one with the `"brightest"` pixel of the response, the `"largest"` one (on
            ARCADE this fixes frames in which a wire or collimator edge is brightest), or `"all"`.
        sigmas (`Sequence[float]`, *optional*, defaults to `(1, 2, 3, 4)`):
            Scales in pixels of the input frame.
        percentile (`float`, *optional*, defaults to 92):
            Threshold as a percentile of all pixels, border included.
        floor (`bool`, *optional*, defaults to `True`):
            Whether to truncate the response to integers before the threshold. The resulting ties keep thin vessels
            connected: with `False` about 8 % of the pixels exceed the threshold, with `True` often many more.

    Raises:
        ValueError: If a value is out of range.
    """

    border: int = 20
    region: Region = "brightest"
    sigmas: Sequence[float] = SIGMAS
    percentile: float = 92.0
    floor: bool = True

    def __post_init__(self) -> None:
        _check_border(self.border)
        _check_sigmas(self.sigmas)
        if self.region not in REGIONS:
            raise ValueError(f"`region` must be one of {', '.join(REGIONS)}, got {self.region!r}.")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"`percentile` must be in [0, 100], got {self.percentile}.")


def _check_border(border: int) -> None:
    if not isinstance(border, int | np.integer) or border < 0:
        raise ValueError(f"`border` must be an integer >= 0 (pixels), got {border!r}.")


def _check_sigmas(sigmas: Sequence[float]) -> None:
    if len(sigmas) == 0 or not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(f"`sigmas` must contain at least one scale in pixels, each > 0, got {tuple(sigmas)}.")


def vessel_mask(
    image: np.ndarray,
    border: int = 20,
    *,
    region: Region = "brightest",
    sigmas: Sequence[float] = SIGMAS,
    percentile: float = 92.0,
    floor: bool = True,
) -> np.ndarray:
    """Segment the vessels of an angiogram with the filter that guides pre-training.

    For a frame without any response (constant, or not larger than twice the border) the mask is `False` everywhere.
    Thread-safe.

    Args:
        image (`np.ndarray` of shape `(height, width)`):
            Grey frame, `uint8`, vessels darker than their surroundings, at its original resolution.
        border (`int`, *optional*, defaults to 20):
            Width in pixels of the border without vessels.
        region (`str`, *optional*, defaults to `"brightest"`): See [`VesselnessOptions`], also for the arguments below.
        sigmas (`Sequence[float]`, *optional*, defaults to `(1, 2, 3, 4)`): Scales in pixels.
        percentile (`float`, *optional*, defaults to 92): Threshold, in percent of the pixels.
        floor (`bool`, *optional*, defaults to `True`): Truncate to integers before the threshold.

    Returns:
        `np.ndarray` of shape `(height, width)`: `bool`, `True` on vessels.

    Raises:
        ValueError: If the frame is not two-dimensional `uint8`, or an option is out of range.

    Example:
        >>> frame = np.full((100, 100), 180, dtype=np.uint8)
        >>> frame[:, 48:52] = 60
        >>> mask = vessel_mask(frame)
        >>> mask[50, 50], mask[50, 30], mask[10, 50]
        (np.True_, np.False_, np.False_)
    """
    return _mask(image, VesselnessOptions(border, region, sigmas, percentile, floor))


def _mask(image: np.ndarray, options: VesselnessOptions) -> np.ndarray:
    _check_frame(image)
    if image.dtype != np.uint8:
        raise ValueError(
            f"`image` must be uint8, got {image.dtype}. "
            "Read the file with `vasomim_hf.data.reading.files.read_frame`, or scale it to 0..255."
        )
    response = sato_response(image, options.sigmas, options.border)
    if options.floor:
        response = _whole_levels(image, response, options)
    return _region(response, _threshold(response, options.percentile), options.region)


def sato_response(image: np.ndarray, sigmas: Sequence[float] = SIGMAS, border: int = 0) -> np.ndarray:
    """Compute Sato's tubeness of dark ridges, maximum over all scales.

    Equal to `skimage.filters.sato(image, sigmas, black_ridges=True, mode="reflect")` up to float32 rounding.

    Args:
        image (`np.ndarray` of shape `(height, width)`):
            Grey frame, any integer or float dtype, finite. Computed in float64 for float64 input, otherwise in
            float32.
        sigmas (`Sequence[float]`, *optional*, defaults to `(1, 2, 3, 4)`): Scales in pixels.
        border (`int`, *optional*, defaults to 0): Width in pixels of the border that is set to 0.

    Returns:
        `np.ndarray` of shape `(height, width)`: `float32` (or `float64`), >= 0, in grey levels of `image`.

    Raises:
        ValueError: If the frame is not two-dimensional, is empty or is not finite, or an option is out of range.

    Example:
        >>> frame = np.full((40, 40), 180, dtype=np.uint8)
        >>> frame[:, 19:22] = 60
        >>> sato_response(frame)[20].argmax()
        np.int64(20)
    """
    _check_frame(image)
    _check_sigmas(sigmas)
    _check_border(border)
    if not (np.issubdtype(image.dtype, np.integer) or np.issubdtype(image.dtype, np.floating)):
        raise ValueError(f"`image` must have a real dtype, got {image.dtype}. Convert it to uint8 or float32.")
    lowest, highest = float(image.min()), float(image.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(
            "`image` must be finite, got NaN or infinite pixels. Replace them, e.g. with `np.nan_to_num`."
        )
    pixels = image.astype(np.float64 if image.dtype == np.float64 else np.float32)
    # the offset has no effect on derivatives but increases rounding errors; flat frames give exactly 0
    pixels -= (lowest + highest) / 2
    response = _largest_response(pixels, sigmas, border)
    _clear_border(response, border)
    return response


def vesselness_response(image: np.ndarray, border: int = 20, *, sigmas: Sequence[float] = SIGMAS) -> np.ndarray:
    """Compute the filter's response scaled to [0, 1], for a map instead of a mask.

    The response inside the border is divided by its maximum; a frame without response gives zeros.

    Args:
        image (`np.ndarray` of shape `(height, width)`): Grey frame, any real dtype, finite.
        border (`int`, *optional*, defaults to 20): Width in pixels of the border that is set to 0.
        sigmas (`Sequence[float]`, *optional*, defaults to `(1, 2, 3, 4)`): Scales in pixels.

    Returns:
        `np.ndarray` of shape `(height, width)`: `float32` in [0, 1].

    Raises:
        ValueError: As for [`sato_response`].

    Example:
        >>> float(vesselness_response(np.eye(64, dtype=np.uint8)[::-1] * -100.0).max())
        1.0
    """
    response = sato_response(image, sigmas, border)
    largest = response.max()
    # do not amplify pure rounding errors to a full map
    if largest <= 1e-6 * np.ptp(image.astype(np.float64)):
        return np.zeros(response.shape, np.float32)
    return (response / largest).astype(np.float32, copy=False)


def _check_frame(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"`image` must be a numpy array, got {type(image).__name__}. Use `np.asarray(image)`.")
    if image.ndim != 2:
        raise ValueError(
            f"`image` must be one grey frame of shape (height, width), got shape {image.shape}. "
            "Convert colour with Pillow's `convert('L')`; pass the frames of a cine one by one."
        )
    if image.size == 0:
        raise ValueError(f"`image` must have at least one pixel, got shape {image.shape}.")


def _gaussian(width: float, order: int, reach: float = 8) -> np.ndarray:
    """Sampled Gaussian or its first derivative, float64, identical to scipy's and thus scikit-image's."""
    radius = int(reach * width + 0.5)
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / width**2 * x**2)
    kernel /= kernel.sum()
    return kernel if order == 0 else kernel * x / -(width**2)


def _pair(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Smoothing and derivative kernels of each of the reference's two passes, which share the smoothing."""
    reach = 8 if sigma > 1 else 100
    return _gaussian(sigma / math.sqrt(2), 0, reach), _gaussian(sigma / math.sqrt(2), 1, reach)


def _trim(kernel: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Truncate both tails of a kernel as far as rounding errors hide it."""
    centre = len(kernel) // 2
    weights = np.abs(kernel[centre:])[::-1].cumsum()
    cut = min(int((2 * weights < _TAIL[dtype] * np.abs(kernel).sum()).sum()), centre)
    return kernel[cut : len(kernel) - cut].astype(dtype)


@lru_cache(maxsize=64)
def _kernels(sigma: float, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """The four kernels of a scale: smooth, derive, smooth twice, smooth and then derive.

    Includes the factor `sigma**2`, which makes scales comparable, and the factors 1/2 of the eigenvalue formula.
    """
    smooth, derive = _pair(sigma)
    kernels = (
        smooth,
        derive * (sigma / math.sqrt(2)),
        np.convolve(smooth, smooth),
        np.convolve(smooth, derive) * (sigma * math.sqrt(2)),
    )
    return tuple(_trim(kernel, dtype) for kernel in kernels)


@lru_cache(maxsize=64)
def _joint_kernels(sigma: float, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Both passes along an axis combined: smooth twice, smooth and derive, derive twice; factors as in `_kernels`."""
    smooth, derive = _pair(sigma)
    kernels = (
        np.convolve(smooth, smooth),
        np.convolve(smooth, derive) * sigma,
        np.convolve(derive, derive) * (sigma**2 / 2),
    )
    return tuple(_trim(kernel, dtype) for kernel in kernels)


@lru_cache(maxsize=64)
def _step_kernel(sigma: float, next_sigma: float, dtype: np.dtype) -> np.ndarray:
    """Smoothing along one axis that turns the derivatives of one scale into those of the next, factors included."""
    return _trim(_gaussian(math.sqrt(next_sigma**2 - sigma**2), 0) * (next_sigma / sigma), dtype)


def _down(source: np.ndarray, kernel: np.ndarray, target: np.ndarray) -> np.ndarray:
    cv2 = require("cv2", extra="data")
    return cv2.filter2D(source, -1, kernel[:, None], dst=target, borderType=cv2.BORDER_REFLECT)


def _along(source: np.ndarray, kernel: np.ndarray, target: np.ndarray) -> np.ndarray:
    cv2 = require("cv2", extra="data")
    return cv2.filter2D(source, -1, kernel[None, :], dst=target, borderType=cv2.BORDER_REFLECT)


def _largest_response(image: np.ndarray, sigmas: Sequence[float], border: int) -> np.ndarray:
    response = np.zeros_like(image)
    # one allocation: large blocks get fewer, larger pages
    work = np.empty((4, *image.shape), image.dtype)
    # differences from the reflection at the edges fall below rounding errors within 5 sigmas
    hessians = _inner_hessians if border >= 5 * max(sigmas) else _hessians
    for row_row, mixed, column_column in hessians(image, sorted(map(float, sigmas)), work):
        np.maximum(response, _eigenvalue(row_row, mixed, column_column, work[3]), out=response)
    return response


def _eigenvalue(row_row: np.ndarray, mixed: np.ndarray, column_column: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Larger eigenvalue of `[[2 * row_row, mixed], [mixed, 2 * column_column]]`."""
    np.subtract(row_row, column_column, out=target)
    require("cv2", extra="data").magnitude(target, mixed, target)
    target += row_row
    target += column_column
    return target


def _hessians(image: np.ndarray, sigmas: list[float], work: np.ndarray) -> Iterator[np.ndarray]:
    """Second derivatives at each scale for the whole frame; they are views of `work`, whose last part stays free.

    The reference computes two first derivatives, each with smoothing, and reflects the frame at its edges before each.
    The second reflection only affects what is derived first and processed again along the same axis. Everywhere else,
    the smoothing of both passes is merged: 8 one-dimensional passes instead of 10.
    """
    row_row, mixed, column_column, other = work
    for sigma in sigmas:
        smooth, derive, smooth_twice, smooth_derive = _kernels(sigma, image.dtype)
        first = _down(image, derive, column_column)
        _along(_down(first, smooth, other), smooth_derive, mixed)
        _along(_down(first, derive, other), smooth_twice, row_row)
        _down(_along(_along(image, derive, column_column), derive, other), smooth_twice, column_column)
        yield work[:3]


def _inner_hessians(image: np.ndarray, sigmas: list[float], work: np.ndarray) -> Iterator[np.ndarray]:
    """`_hessians` away from the edges: 6 passes per scale, with short kernels from sigma 2 on.

    A sampled Gaussian smoothed by another equals the Gaussian of the combined sigma to 16 digits, if both are at least
    sqrt(2) wide, as for the two passes of sigma 2. The derivatives are smoothed further, because deriving a rounded
    smooth image would lose precision.
    """
    row_row, mixed, column_column, other = work
    previous = 0.0
    for sigma in sigmas:
        if previous < 2 or sigma**2 - previous**2 < 2:
            smooth_twice, smooth_derive, derive_twice = _joint_kernels(sigma, image.dtype)
            _along(_down(image, derive_twice, other), smooth_twice, row_row)
            _along(_down(image, smooth_derive, other), smooth_derive, mixed)
            _down(_along(image, derive_twice, other), smooth_twice, column_column)
        else:
            step = _step_kernel(previous, sigma, image.dtype)
            for derivative in work[:3]:
                _down(_along(derivative, step, other), step, derivative)
        previous = sigma
        yield work[:3]


def _clear_border(response: np.ndarray, border: int) -> None:
    if border:
        response[:border] = response[-border:] = 0
        response[:, :border] = response[:, -border:] = 0


def _whole_levels(image: np.ndarray, response: np.ndarray, options: VesselnessOptions) -> np.ndarray:
    """Truncate the response to `uint8`, with float64 where float32 rounding could change the level."""
    # the response of an 8-bit frame stays below 128, so neither cast overflows
    above, below = response + np.float32(_ROUNDING_MARGIN), response - np.float32(_ROUNDING_MARGIN)
    levels = above.astype(np.uint8)
    doubtful = np.flatnonzero(levels != np.maximum(below, 0, out=below).astype(np.uint8))
    if len(doubtful) > _MAX_EXACT_PIXELS:
        exact = sato_response(image.astype(np.float64), options.sigmas, options.border)
        return exact.astype(np.uint8)
    for index in doubtful:
        row, column = divmod(int(index), image.shape[1])
        levels[row, column] = max(_exact_pixel(image, row, column, float(sigma)) for sigma in options.sigmas)
    return levels


def _exact_pixel(image: np.ndarray, row: int, column: int, sigma: float) -> float:
    """Response of one scale at one pixel in float64, clipped at 0."""
    rows, down = _window(image.shape[0], row, sigma)
    columns, along = _window(image.shape[1], column, sigma)
    patch = image[rows, columns].astype(np.float64)
    row_row = down[0] @ patch @ along[1]
    mixed = down[2] @ patch @ along[3]
    column_column = down[1] @ patch @ along[0]
    return max(0.0, row_row + column_column + math.hypot(row_row - column_column, mixed))


def _window(length: int, position: int, sigma: float) -> tuple[slice, tuple[np.ndarray, ...]]:
    """Samples of an axis that contribute to the output at `position`, and their weights."""
    reach = 2 * (len(_kernels(sigma, np.dtype(np.float64))[1]) // 2)
    start, stop = max(0, position - reach), min(length, position + reach + 1)
    return slice(start, stop), _weights(sigma, stop - start, position - start)


@lru_cache(maxsize=2048)
def _weights(sigma: float, length: int, position: int) -> tuple[np.ndarray, ...]:
    """Weights of `length` samples for derive-derive, smooth-smooth, derive-smooth and smooth-derive at `position`."""
    cv2 = require("cv2", extra="data")
    kernels = _kernels(sigma, np.dtype(np.float64))
    smooth, derive = (
        cv2.filter2D(np.eye(length), -1, kernel[:, None], borderType=cv2.BORDER_REFLECT) for kernel in kernels[:2]
    )
    # the derivative kernel includes sigma / sqrt(2), which the mixed term needs twice
    return (
        derive[position] @ derive,
        smooth[position] @ smooth,
        smooth[position] @ derive,
        2 * derive[position] @ smooth,
    )


def _threshold(response: np.ndarray, percentile: float) -> float:
    """`np.percentile(response, percentile)`, or for integer levels the lowest level that reaches it."""
    if response.dtype != np.uint8:
        return float(np.percentile(response, percentile))
    counts = require("cv2", extra="data").calcHist([response], [0], None, [256], [0, 256]).ravel()
    rank = (response.size - 1) * (percentile / 100)
    # linear interpolation exceeds the lower neighbour if the rank is fractional
    return float(np.searchsorted(counts.astype(np.int64).cumsum(), math.ceil(rank), side="right"))


def _region(response: np.ndarray, threshold: float, region: Region) -> np.ndarray:
    kept = (response >= threshold) & (response > 0)
    seed = int(response.argmax())
    if region == "all" or not kept.flat[seed]:
        return kept
    cv2 = require("cv2", extra="data")
    marks = kept.view(np.uint8)
    if region == "largest":
        _, labels, stats, _ = cv2.connectedComponentsWithStats(marks, connectivity=4)
        return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    row, column = divmod(seed, response.shape[1])
    cv2.floodFill(marks, None, (column, row), 2, flags=4)
    return marks == 2


@dataclass
class VesselnessReport:
    """Result of processing many files: written, skipped because they exist, and failed frames with reasons."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    kind: Kind = "mask"

    def __str__(self) -> str:
        return (
            f"{len(self.written)} {self.kind}s written, {len(self.skipped)} already exist, "
            f"{len(self.failed)} frames failed"
        )


def vesselness_files(
    inputs: str | os.PathLike | Iterable[str | os.PathLike],
    output: str | os.PathLike,
    *,
    kind: Kind = "mask",
    bits_stored: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> VesselnessReport:
    """Write vessel masks or responses of many frames; shows a progress bar in a terminal.

    A mask is an 8-bit grey PNG, 0 and 255, with the stem of its frame; sub-folders of an input folder are kept. A
    response is an 8-bit grey PNG too: [`vesselness_response`] times 255, rounded, which the image processor reads as
    `vesselness` in [0, 1] with an error of at most 1/510. Files are written atomically. Unreadable frames, and frames
    whose output would have the same name (`a.png` and `a.jpg`), are skipped and reported. With several workers a script
    needs an `if __name__ == "__main__":` guard, because processes are spawned.

    Args:
        inputs (path or `Iterable` of paths): Frames, and folders that are searched for frames.
        output (`str` or `os.PathLike`): Output folder; created if missing.
        kind (`str`, *optional*, defaults to `"mask"`): What to write for each frame, `"mask"` or `"response"`.
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`~data.frames.read_frame`].
        num_workers (`int`, *optional*): Number of processes; defaults to one per 300 frames, at most one per core.
        overwrite (`bool`, *optional*, defaults to `False`): Whether existing files are replaced.
        options:
            Fields of [`VesselnessOptions`], such as `border=3`. A response only has `border` and `sigmas`.

    Returns:
        [`VesselnessReport`]: Paths written, skipped and failed, in the order of the inputs.

    Raises:
        ValueError: If there are no frames, a file would replace a frame, `num_workers` is below 1, or an option is out of range
            or does not apply to `kind`.
        OSError: If an input does not exist or a file cannot be written.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")
    checked = _options_of(kind, options)
    require("cv2", extra="data")
    output = Path(output)
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    jobs, report = _plan([Path(path) for path in paths], output)
    report.kind = kind
    if not overwrite:
        report.skipped += [target for _, target in jobs if target.exists()]
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    for folder in {target.parent for _, target in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    work = partial(_write_file, options=checked, kind=kind, bits_stored=bits_stored)
    results = Progress(_run(work, jobs, num_workers), what="vesselness", total=len(jobs))
    for (source, target), reason in zip(jobs, results, strict=True):
        if reason is None:
            report.written.append(target)
        else:
            report.failed[source] = reason
    return report


def _options_of(kind: str, options: dict[str, Any]) -> VesselnessOptions:
    if kind not in get_args(Kind):
        raise ValueError(f"`kind` must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    unused = sorted(options.keys() & {"region", "percentile", "floor"})
    if kind == "response" and unused:
        raise ValueError(f"`{unused[0]}` only applies to masks, not to responses. Remove it, or write masks.")
    return VesselnessOptions(**options)


Job = tuple[Path, Path]


def _plan(inputs: list[Path], output: Path) -> tuple[list[Job], VesselnessReport]:
    """Pair each frame with its output path; frames that would share one are reported instead."""
    sources: dict[Path, list[Path]] = defaultdict(list)
    for source, target in _pairs(inputs, output):
        if source not in sources[target]:
            sources[target].append(source)
    # resolve each folder once, not once per frame
    resolve = cache(Path.resolve)
    frames = {resolve(source.parent) / source.name for group in sources.values() for source in group}
    if not frames:
        raise ValueError(f"no frames found in {', '.join(map(str, inputs)) or 'an empty list of inputs'}.")
    jobs, report = [], VesselnessReport()
    for target, group in sources.items():
        if resolve(target.parent) / target.name in frames:
            raise ValueError(f"`{target}` would replace a frame. Choose another output folder.")
        if len(group) == 1:
            jobs.append((group[0], target))
        else:
            report.failed |= dict.fromkeys(group, f"another frame has the same output `{target}`. Rename one.")
    return jobs, report


def _pairs(inputs: list[Path], output: Path) -> Iterator[Job]:
    own = output.resolve()
    for path in inputs:
        if path.is_dir():
            yield from _pairs_of_folder(path, output, own)
        elif path.exists():
            yield path, output / f"{path.stem}.png"
        else:
            raise FileNotFoundError(f"`{path}` does not exist. Expected a frame or a folder of frames.")


def _pairs_of_folder(folder: Path, output: Path, own: Path) -> Iterator[Job]:
    root = folder.resolve()
    if root == own:
        raise ValueError(
            f"`{output}` is also an input. Choose another output folder, otherwise its files would be read as frames."
        )
    for frame in list_frames(folder):
        relative = frame.relative_to(folder)
        # outputs of an earlier call are not frames
        if not (root / relative).is_relative_to(own):
            yield frame, (output / relative).with_suffix(".png")


def _run(work: partial, jobs: list[Job], num_workers: int | None) -> Iterator[str | None]:
    num_workers = min(num_workers or 1 + len(jobs) // _FRAMES_PER_WORKER, len(jobs), os.cpu_count() or 1)
    if num_workers <= 1:
        yield from map(work, jobs)
        return
    # spawned, because forked copies of OpenCV's or torch's threads can hang
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_use_one_thread) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=min(16, -(-len(jobs) // num_workers)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _use_one_thread() -> None:
    require("cv2", extra="data").setNumThreads(1)


def _picture(frame: np.ndarray, options: VesselnessOptions, kind: Kind) -> Image.Image:
    if kind == "mask":
        return Image.fromarray(_mask(frame, options).view(np.uint8) * np.uint8(255))
    response = vesselness_response(frame, options.border, sigmas=options.sigmas)
    return Image.fromarray(np.rint(response * 255).astype(np.uint8))


def _write_file(job: Job, options: VesselnessOptions, kind: Kind, bits_stored: int | None) -> str | None:
    """Write one file; returns the reason if the frame cannot be read."""
    source, target = job
    try:
        frame = read_frame(source, bits_stored)
    except FrameReadError as error:
        return str(error)
    with atomic_file(target) as temporary:
        _picture(frame, options, kind).save(temporary, format="PNG")
    return None
