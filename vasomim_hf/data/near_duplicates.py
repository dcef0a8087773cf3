"""Near duplicates: re-encoded copies of a frame, and frames from nearby moments of the same cine.

A frame is summarised by a signature of 1,088 bytes: a difference hash (is a cell brighter than its neighbour?) and a
32×32 thumbnail with global and local brightness and contrast removed. Two frames are near duplicates if few bits of
the hash differ and the thumbnails are correlated. Groups are transitive: a cine is a chain whose ends may look
different, and a split by group never cuts a chain.

All pairs are compared, without approximate search. The comparison is a matrix product of integers below 2**24, which
float32 represents exactly, so groups are the same on every machine and for any order of the frames.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..import_utils import require
from .reading.files import UNREADABLE, FrameReadError, decode_frame, read_frame
from .sources import BITS_COLUMN


if TYPE_CHECKING:
    import datasets


_CELLS = 16  # the hash compares neighbours on a grid of this many cells plus one, in both directions
_THUMBNAIL = 32
HASH_BITS = 2 * _CELLS * _CELLS
_HASH_SIZE = HASH_BITS // 8
SIGNATURE_SIZE = _HASH_SIZE + _THUMBNAIL * _THUMBNAIL

# The area covered by the collimator is cropped, otherwise two patients imaged through the same collimator look alike.
# Rows and columns are weighted by how far their brightness exceeds `_OPEN` of the maximum, and a fraction `_MARGIN` of
# the weight is cut at each end. This is continuous, so a slightly brighter copy is cropped in the same way.
_OPEN = 0.25
_MARGIN = 0.02
_MIN_OPENING = 0.25  # relative to the side; anything smaller is text on a black frame, and nothing is cropped

_DETAIL = 2.0  # scale in thumbnail pixels above which brightness and contrast are removed
_FLOOR = 1.0  # grey levels added to the local contrast, so noise in flat areas is not amplified
# Detail of a thumbnail, in grey levels, below which a frame has no structure: black, or closed collimator. Noise of 5
# levels in a frame of 512×512 gives 0.3; the flattest of 2,400 angiograms has 4.0.
_MIN_DETAIL = 0.5
_ZERO, _GAIN = 128, 40.0  # stored value: 128 + 40 × standard deviations

_BLOCK = 2048  # hashes per block of the comparison, 16 MiB of float32
_PAIRS = 8192  # thumbnail pairs per block, 64 MiB of float32
_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1  # of each byte
# Blocks with a larger fraction of candidates are compared by matrix product instead of pair by pair.
_DENSE_FRACTION = 0.02


@dataclass(frozen=True)
class NearDuplicateThreshold:
    """Thresholds for near duplicates; both conditions must hold.

    Measured on the 2,400 frames of ARCADE with its known duplicates (352 pairs, re-encoded): the defaults find all of
    them, and 43 further pairs, all frames of the same cine a moment apart. With up to 112 bits and a correlation of at
    least 0.3, the first pair of different cines has 94 bits and 0.35. Different images behind the same collimator reach
    109 bits and 0.58. A shift of the whole frame by 16 of 512 pixels separates about half of the copies. Neighbouring
    frames of a synthetic cine stay together with up to 24 pixels of motion per frame at the centre of the heart, also
    while the arteries fill with contrast; with `NearDuplicateThreshold(24, 0.95)`, which still finds 99 % of the
    duplicates, they separate from 8 pixels on.

    Args:
        max_hash_distance (`int`, *optional*, defaults to 80):
            Maximum number of differing bits of the difference hash, of `HASH_BITS` = 512.
        min_correlation (`float`, *optional*, defaults to 0.6):
            Minimum correlation of the thumbnails, in (0, 1].

    Raises:
        ValueError: If a value is out of range.
    """

    max_hash_distance: int = 80
    min_correlation: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.max_hash_distance < HASH_BITS // 2:
            raise ValueError(
                f"`max_hash_distance` must be in [0, {HASH_BITS // 2}), got {self.max_hash_distance}: unrelated "
                f"frames differ in up to half of the {HASH_BITS} bits."
            )
        if not 0 < self.min_correlation <= 1:
            raise ValueError(f"`min_correlation` must be in (0, 1], got {self.min_correlation}.")


class _Candidates(NamedTuple):
    """Pairs of rows `left < right` with similar hashes."""

    left: np.ndarray
    right: np.ndarray


# Signatures
# -----------------------------------------------------------------------------------------------------------


def frame_signature(frame: np.ndarray) -> np.ndarray:
    """Summarise a frame for comparison, independent of its resolution.

    Args:
        frame (`np.ndarray` of shape `(height, width)`): `uint8`, 0 to 255.

    Returns:
        `np.ndarray` of shape `(SIGNATURE_SIZE,)`: `uint8`; 64 bytes of hash, then the 32×32 thumbnail in row-major
        order, 128 + 40 × standard deviations in 1..255. The thumbnail of a frame without structure is constant 128.

    Raises:
        ValueError: If the frame has another shape or dtype.
        ImportError: If OpenCV is not installed.

    Example:
        >>> frame = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
        >>> frame_signature(frame).shape
        (1088,)
    """
    if frame.ndim != 2 or frame.size == 0 or frame.dtype != np.uint8:
        raise ValueError(
            f"`frame` must be uint8 of shape (height, width), got {frame.dtype} of shape {frame.shape}. Convert "
            "other frames with `vasomim_hf.data.reading.files.to_uint8`."
        )
    cv2 = require("cv2", extra="data")
    levels = _open_field(cv2, frame).astype(np.float32)
    cells = cv2.resize(levels, (_CELLS + 1, _CELLS + 1), interpolation=cv2.INTER_AREA)
    small = cv2.resize(levels, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.concatenate([_difference_hash(cells), _flat_thumbnail(cv2, small).ravel()])


def _open_field(cv2: Any, frame: np.ndarray) -> np.ndarray:
    rows = _open_range(cv2.reduce(frame, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel())
    columns = _open_range(cv2.reduce(frame, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel())
    return frame[rows, columns]


def _open_range(sums: np.ndarray) -> slice:
    total = np.cumsum(np.maximum(sums - _OPEN * sums.max(), 0))
    first, last = np.searchsorted(total, [_MARGIN * total[-1], (1 - _MARGIN) * total[-1]])
    return slice(first, last + 1) if last + 1 - first >= _MIN_OPENING * len(sums) else slice(None)


def _difference_hash(cells: np.ndarray) -> np.ndarray:
    across = cells[:-1, 1:] > cells[:-1, :-1]
    down = cells[1:, :-1] > cells[:-1, :-1]
    return np.packbits([across, down])


def _flat_thumbnail(cv2: Any, small: np.ndarray) -> np.ndarray:
    """Detail divided by local contrast. Otherwise the collimator edges, alike in all cines, outweigh the vessels."""
    detail = small - cv2.GaussianBlur(small, (0, 0), _DETAIL)
    if detail.std() < _MIN_DETAIL:
        return np.full(small.shape, _ZERO, np.uint8)
    detail /= np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), _DETAIL)) + _FLOOR
    detail -= detail.mean()
    return np.rint(_ZERO + _GAIN / detail.std() * detail).clip(1, 255).astype(np.uint8)


def has_structure(signatures: np.ndarray) -> np.ndarray:
    """Whether frames have structure, i.e. are not black or flat.

    Args:
        signatures (`np.ndarray` of shape `(num_frames, SIGNATURE_SIZE)`): `uint8`, from [`frame_signature`].

    Returns:
        `np.ndarray` of shape `(num_frames,)`: `bool`, `False` for frames without structure.
    """
    return (_thumbnails(_checked(signatures)) != _ZERO).any(axis=1)


def _thumbnails(signatures: np.ndarray) -> np.ndarray:
    return signatures[:, _HASH_SIZE:]


def _checked(signatures: np.ndarray) -> np.ndarray:
    if signatures.ndim != 2 or signatures.shape[1] != SIGNATURE_SIZE or signatures.dtype != np.uint8:
        raise ValueError(
            f"`signatures` must be uint8 of shape (num_frames, {SIGNATURE_SIZE}), got {signatures.dtype} of shape "
            f"{signatures.shape}. Compute them with `frame_signature`, one row per frame."
        )
    return signatures


# Groups
# ---------------------------------------------------------------------------------------------------------------


def group_near_duplicates(signatures: np.ndarray, threshold: NearDuplicateThreshold | None = None) -> np.ndarray:
    """Group frames that are connected by near duplicates.

    A frame without structure (black, or closed collimator) forms its own group: otherwise one group of black frames
    would link all patients of a data set.

    Args:
        signatures (`np.ndarray` of shape `(num_frames, SIGNATURE_SIZE)`): `uint8`, from [`frame_signature`].
        threshold ([`NearDuplicateThreshold`], *optional*): Thresholds; `None` uses the defaults.

    Returns:
        `np.ndarray` of shape `(num_frames,)`: `int64`, for each frame the index of the first frame of its group, which
        is its own index if it is the first or the only one.

    Raises:
        ValueError: If the signatures have another shape or dtype.
    """
    threshold = threshold or NearDuplicateThreshold()
    shown = np.flatnonzero(has_structure(signatures))
    squares = _squared_norms(signatures)
    parents = np.arange(len(signatures))
    for candidates in _similar_hashes(signatures[shown, :_HASH_SIZE], threshold.max_hash_distance):
        pairs = _Candidates(shown[candidates.left], shown[candidates.right])
        _join_confirmed(parents, pairs, signatures, squares, threshold.min_correlation)
    return parents


def _squared_norms(signatures: np.ndarray) -> np.ndarray:
    parts = [_centred(signatures[at : at + _PAIRS]) for at in range(0, len(signatures), _PAIRS)]
    return np.concatenate([np.einsum("ij,ij->i", part, part) for part in parts] or [np.zeros(0)]).astype(np.float64)


def _centred(signatures: np.ndarray) -> np.ndarray:
    # integers of at most 127, so a sum of 1,024 products stays below 2**24 and is exact
    return _thumbnails(signatures).astype(np.float32) - _ZERO


def _similar_hashes(hashes: np.ndarray, max_distance: int) -> Iterator[_Candidates]:
    """Yield pairs `left < right` that differ in at most `max_distance` bits, block by block."""
    for top in range(0, len(hashes), _BLOCK):
        rows = _signs(hashes[top : top + _BLOCK])
        for first in range(top, len(hashes), _BLOCK):
            agreement = rows @ _signs(hashes[first : first + _BLOCK]).T
            alike = agreement >= HASH_BITS - 2 * max_distance
            if first == top:
                alike = np.triu(alike, 1)
            if alike.any():
                left, right = np.divmod(np.flatnonzero(alike), alike.shape[1])
                yield _Candidates(left + top, right + first)


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Bits as -1 and 1: the product of two rows is the number of equal bits minus that of different bits."""
    return _SIGNS[hashes].reshape(len(hashes), HASH_BITS)


def _join_confirmed(
    parents: np.ndarray,
    pairs: _Candidates,
    signatures: np.ndarray,
    squares: np.ndarray,
    min_correlation: float,
) -> None:
    """Join the groups of pairs with correlated thumbnails. Pairs in the same group are not compared again."""
    left, right = pairs
    while True:
        apart = parents[left] != parents[right]
        left, right = left[apart], right[apart]
        if not len(left):
            return
        if len(left) > _DENSE_FRACTION * _BLOCK * _BLOCK:
            products, taken = _matrix_products(left, right, signatures), len(left)
        else:
            taken = _PAIRS
            products = np.einsum("ij,ij->i", _centred(signatures[left[:taken]]), _centred(signatures[right[:taken]]))
        norms = np.sqrt(squares[left[:taken]] * squares[right[:taken]])
        same = products >= min_correlation * norms
        join_rows(parents, left[:taken][same], right[:taken][same])
        left, right = left[taken:], right[taken:]


def _matrix_products(left: np.ndarray, right: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    rows, row = _distinct(left, len(signatures))
    columns, column = _distinct(right, len(signatures))
    return (_centred(signatures[rows]) @ _centred(signatures[columns]).T)[row, column]


def _distinct(numbers: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique` with inverse for integers below a limit, without sorting millions."""
    present = np.zeros(limit, bool)
    present[numbers] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[numbers]


def join_rows(parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Unite the groups of `left[k]` and `right[k]` for every k, in place (vectorised union-find).

    Args:
        parents (`np.ndarray` of shape `(num_rows,)`):
            `int64`, first row of the group of each row; initially `np.arange(num_rows)`.
        left, right (`np.ndarray` of shape `(num_pairs,)`): Row indices.

    Example:
        >>> parents = np.arange(5)
        >>> join_rows(parents, np.array([1, 4]), np.array([3, 3]))
        >>> parents
        array([0, 1, 2, 1, 1])
    """
    while True:
        low = np.minimum(parents[left], parents[right])
        high = np.maximum(parents[left], parents[right])
        if np.array_equal(low, high):
            return
        np.minimum.at(parents, high, low)  # attach the later group to the earlier one
        while not np.array_equal(parents, parents[parents]):
            parents[:] = parents[parents]


# Data sets
# ------------------------------------------------------------------------------------------------------------


def near_duplicate_groups(
    dataset: "datasets.Dataset",
    image_column: str = "image",
    *,
    group_column: str = "near_duplicate_group",
    threshold: NearDuplicateThreshold | None = None,
    num_threads: int | None = None,
) -> "datasets.Dataset":
    """Add a column with the near-duplicate group of each row.

    Frames are decoded in batches, and nothing is written to disk. To compare across splits, concatenate them first:
    groups of separately processed data sets are unrelated.

    Args:
        dataset (`datasets.Dataset`): Rows with one frame each.
        image_column (`str`, *optional*, defaults to `"image"`): Column with the frames, of type `Image`.
        group_column (`str`, *optional*, defaults to `"near_duplicate_group"`): Column to add or replace.
        threshold ([`NearDuplicateThreshold`], *optional*): Thresholds; `None` uses the defaults.
        num_threads (`int`, *optional*): Number of decoding threads; `None` uses the number of processors.

    Returns:
        `datasets.Dataset`: The same rows with `group_column`, int64: index of the first row of the group.

    Raises:
        TypeError: If the data set is streamed: groups need all frames.
        ValueError: If the column is missing or not of images, or a row has no readable image.
    """
    _require_dataset(dataset, "near_duplicate_groups")
    signatures = dataset_signatures(dataset, image_column, num_threads=num_threads)
    groups = group_near_duplicates(signatures, threshold)
    if group_column in dataset.column_names:
        dataset = dataset.remove_columns(group_column)
    return _with_column(dataset, group_column, groups)


def dataset_signatures(
    dataset: "datasets.Dataset", image_column: str = "image", *, num_threads: int | None = None
) -> np.ndarray:
    """Compute the signature of the frame of each row.

    Args:
        dataset (`datasets.Dataset`): Rows with one frame each, optionally with bit depths in `bits_stored`.
        image_column (`str`, *optional*, defaults to `"image"`): Column with the frames, of type `Image`.
        num_threads (`int`, *optional*): Number of decoding threads; `None` uses the number of processors.

    Returns:
        `np.ndarray` of shape `(num_rows, SIGNATURE_SIZE)`: `uint8`.

    Raises:
        ValueError: If the column is missing or not of images, or a row has no readable image.
    """
    datasets = require("datasets", extra="data")
    if not isinstance(dataset.features.get(image_column), datasets.Image):
        raise ValueError(
            f"`{image_column}` is not an image column; the columns are {dict(dataset.features)}. Set `image_column`, "
            "or cast the column with `dataset.cast_column(name, datasets.Image())`."
        )
    columns = [image_column, *({BITS_COLUMN} & set(dataset.column_names))]
    files = dataset.select_columns(columns).with_format(None)
    files = files.cast_column(image_column, datasets.Image(decode=False))
    signatures = np.empty((len(files), SIGNATURE_SIZE), np.uint8)
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        row = 0
        for batch in files.iter(batch_size=64):
            images = batch[image_column]
            bits_stored = batch.get(BITS_COLUMN, [None] * len(images))
            for signature in pool.map(_read_signature, images, bits_stored, range(row, row + len(images))):
                signatures[row] = signature
                row += 1
    return signatures


def _read_signature(image: dict[str, Any] | None, bits_stored: int | None, row: int) -> np.ndarray:
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise ValueError(f"Row {row} has no image. Remove rows without image before grouping.")
    try:
        if image["bytes"] is not None:
            frame = decode_frame(image["bytes"], f"row {row}", bits_stored)
        else:
            frame = read_frame(image["path"], bits_stored)
    except UNREADABLE as error:
        raise FrameReadError(
            f"The image of row {row} cannot be read ({type(error).__name__}: {error}). Restore it, or remove the row."
        ) from error
    return frame_signature(frame)


def _with_column(dataset: "datasets.Dataset", name: str, values: np.ndarray) -> "datasets.Dataset":
    """Add an integer column; `add_column` alone would copy the images of a selection to a cache on disk."""
    if dataset._indices is None:
        return dataset.add_column(name, values)
    rows = dataset._indices.column(0).to_numpy()
    table_values = np.full(len(dataset.data), -1)
    table_values[rows] = values
    table = type(dataset)(dataset.data, info=dataset.info.copy(), split=dataset.split)
    return table.add_column(name, table_values).select(rows)


def drop_near_duplicates(
    dataset: "datasets.Dataset", group_column: str = "near_duplicate_group"
) -> "datasets.Dataset":
    """Keep the first row of each near-duplicate group.

    With the default thresholds this usually keeps one frame per cine, regardless of cardiac phase and contrast
    filling. Groups of a stricter [`NearDuplicateThreshold`], in a separate column, keep more; still split by the
    default groups.

    Args:
        dataset (`datasets.Dataset`): Rows with groups, from [`near_duplicate_groups`].
        group_column (`str`, *optional*, defaults to `"near_duplicate_group"`): Column with the groups, not null.

    Returns:
        `datasets.Dataset`: The rows kept, in their order. No data is copied.

    Raises:
        TypeError: If the data set is streamed: its shards are read in parallel, so earlier rows are unknown.
        ValueError: If the column is missing or has nulls.
    """
    _require_dataset(dataset, "drop_near_duplicates")
    if group_column not in dataset.column_names:
        raise ValueError(
            f"Column `{group_column}` does not exist; the columns are {dataset.column_names}. Add it with "
            "`near_duplicate_groups`."
        )
    groups: Sequence[int | None] = dataset.with_format(None)[group_column][:]
    missing = sum(group is None for group in groups)
    if missing:
        raise ValueError(
            f"`{group_column}` is null in {missing} of {len(groups)} rows. Compute the groups with "
            "`near_duplicate_groups`."
        )
    return dataset.select(np.sort(np.unique(np.asarray(groups), return_index=True)[1]))


def _require_dataset(dataset: object, caller: str) -> None:
    datasets = require("datasets", extra="data")
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"`{caller}` needs a `datasets.Dataset`, got {type(dataset).__name__}. Load it with streaming=False; for "
            "a DatasetDict, pass one split, or all of them combined with `datasets.concatenate_datasets`."
        )
