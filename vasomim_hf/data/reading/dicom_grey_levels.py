"""Mapping from the stored values of a DICOM file to grey levels, as one lookup table.

With at most 16 bits there are at most 65,536 stored values, so each step is computed once per value instead of per
pixel, in double precision, and a frame needs a single lookup.
"""

import math
from dataclasses import dataclass

import numpy as np


MOST_BITS, FEWEST_BITS = 16, 8


@dataclass(frozen=True)
class PixelLayout:
    """Layout of pixels in memory.

    Args:
        bits_allocated (`int`): 8 or 16.
        bits_stored (`int`): Number of bits that hold the value.
        shift (`int`): Number of unused bits below them.
        is_signed (`bool`): Whether values are in two's complement.
        samples (`int`): 1 for grey, 3 for colour.
        is_lossy (`bool`):
            Whether values may exceed their range because of lossy compression. If so they are clipped; otherwise the
            bits above the stored ones are masked.
    """

    bits_allocated: int
    bits_stored: int
    shift: int = 0
    is_signed: bool = False
    samples: int = 1
    is_lossy: bool = False

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits_stored - 1)) if self.is_signed else 0

    @property
    def highest(self) -> int:
        return self.lowest + (1 << self.bits_stored) - 1


@dataclass(frozen=True)
class Lookup:
    """A DICOM lookup table. Values below `first` map to the first entry, values beyond the end to the last.

    Args:
        first (`int`): Value that maps to the first entry.
        bits (`int`): Bits per entry.
        entries (`tuple[int, ...]`): Output values.
    """

    first: int
    bits: int
    entries: tuple[int, ...]

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Look up values of any shape; returns float64 of the same shape."""
        if not self.entries or not 1 <= self.bits <= MOST_BITS:
            raise ValueError(
                f"a lookup table has {len(self.entries)} entries of {self.bits} bits; expected at least one entry of at "
                f"most {MOST_BITS} bits. Export the file again."
            )
        entries = np.asarray(self.entries, dtype=np.float64)
        return entries[np.clip(np.rint(values) - self.first, 0, len(entries) - 1).astype(np.int64)]


@dataclass(frozen=True)
class Transformation:
    """Grey-level transformation of a DICOM file.

    Args:
        slope, intercept (`float`): Rescale Slope and Intercept.
        lookup (`Lookup`, *optional*): Modality LUT, used instead of slope and intercept.
        window (`tuple[float, float, str]`, *optional*): Centre, width and function, `"LINEAR"`, `"LINEAR_EXACT"` or
            `"SIGMOID"`.
        window_lookup (`Lookup`, *optional*): VOI LUT, used instead of the window.
        is_inverted (`bool`): Whether the lowest value is white (MONOCHROME1).
        padding (`tuple[int, int]`, *optional*): First and last stored value of padding pixels.
    """

    slope: float = 1.0
    intercept: float = 0.0
    lookup: Lookup | None = None
    window: tuple[float, float, str] | None = None
    window_lookup: Lookup | None = None
    is_inverted: bool = False
    padding: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class LevelTable:
    """Lookup table from stored values to grey levels.

    Args:
        levels (`np.ndarray` of shape `(2**bits_allocated,)`): `uint8` or `uint16`, indexed by stored bits as unsigned.
        bits_stored (`int`): Bit depth of the levels, 8 to 16.
        offset (`float`): Offset added after the modality transformation.
        num_plain (`int`): Stored values below this map to themselves.
    """

    levels: np.ndarray
    bits_stored: int
    offset: float
    num_plain: int

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Look up the grey levels of a frame.

        Args:
            stored (`np.ndarray` of shape `(height, width)`): 8- or 16-bit integers, signed or not, any byte order.

        Returns:
            `np.ndarray` of shape `(height, width)`: Grey levels.
        """
        codes = stored.astype(f"i{stored.itemsize}", copy=False) if stored.dtype.byteorder == ">" else stored
        codes = codes.view(f"u{codes.itemsize}")
        if codes.max() < self.num_plain:
            return codes.astype(self.levels.dtype)
        return self.levels[codes]


def level_table(layout: PixelLayout, transformation: Transformation) -> LevelTable:
    """Compute the grey level of each stored value.

    After the modality transformation, values are shifted so that none can be negative. If they are integers below
    65,536 they are kept, and the bit depth is the smallest that holds their possible range; otherwise that range is
    scaled to 16 bits.

    Args:
        layout (`PixelLayout`): Pixel layout.
        transformation (`Transformation`): Grey-level transformation.

    Returns:
        `LevelTable`: Lookup table.

    Raises:
        ValueError: If a slope is 0, a window has no width or a lookup table is empty.

    Example:
        >>> table = level_table(PixelLayout(16, 12), Transformation(is_inverted=True))
        >>> table.apply(np.array([[0, 4095]], dtype=np.uint16))
        array([[4095,    0]], dtype=uint16)
    """
    stored = _stored_values(layout)
    values, lowest, highest = _after_modality(stored, layout, transformation)
    offset = max(0.0, -lowest)
    levels, bits, top = _as_levels(values, lowest, highest)
    if transformation.window is not None or transformation.window_lookup is not None:
        lowest, top = 0.0, float((1 << bits) - 1)
        with np.errstate(over="ignore"):  # a very narrow window overflows before it is clipped
            levels = _windowed(values, transformation) * top
    if transformation.is_inverted:
        levels = top + max(0.0, lowest) - levels
    if transformation.padding is not None:
        low, high = transformation.padding
        levels = np.where((stored >= low) & (stored <= high), 0, levels)
    kept = np.rint(levels).clip(0, (1 << bits) - 1).astype(np.uint8 if bits <= FEWEST_BITS else np.uint16)
    changed = np.flatnonzero(kept != np.arange(len(kept)))
    return LevelTable(kept, max(bits, FEWEST_BITS), offset, int(changed[0]) if len(changed) else len(kept))


def _stored_values(layout: PixelLayout) -> np.ndarray:
    """Stored value of each bit pattern."""
    codes = np.arange(1 << layout.bits_allocated, dtype=np.int64)
    if layout.is_lossy:
        values = (
            np.where(codes >> (layout.bits_allocated - 1), codes - len(codes), codes) if layout.is_signed else codes
        )
        return values.clip(layout.lowest, layout.highest)
    values = (codes >> layout.shift) & ((1 << layout.bits_stored) - 1)
    return np.where(values > layout.highest, values - (1 << layout.bits_stored), values)


def _after_modality(
    stored: np.ndarray, layout: PixelLayout, transformation: Transformation
) -> tuple[np.ndarray, float, float]:
    """Values after the modality transformation, and the lowest and highest possible value."""
    if transformation.lookup is not None:
        return transformation.lookup.apply(stored), 0.0, float(transformation.lookup.highest)
    if transformation.slope == 0:
        raise ValueError("Rescale Slope is 0, which would make every pixel the same. Export the file again.")
    ends = [end * transformation.slope + transformation.intercept for end in (layout.lowest, layout.highest)]
    if not all(math.isfinite(end) for end in ends):
        raise ValueError("Rescale Slope and Intercept give infinite or NaN values. Export the file again.")
    return stored * transformation.slope + transformation.intercept, min(ends), max(ends)


def _as_levels(values: np.ndarray, lowest: float, highest: float) -> tuple[np.ndarray, int, float]:
    """Non-negative levels, their bit depth and the highest possible level."""
    start = min(lowest, 0.0)
    top = highest - start
    is_whole = bool((values == np.rint(values)).all())
    if is_whole and top < 1 << MOST_BITS:
        return values - start, max(int(top).bit_length(), FEWEST_BITS), top
    top = float((1 << MOST_BITS) - 1)
    return (values - lowest) / (highest - lowest) * top, MOST_BITS, top


def _windowed(values: np.ndarray, transformation: Transformation) -> np.ndarray:
    """Values after the VOI LUT or window, in [0, 1] (PS3.3 C.11.2)."""
    if transformation.window_lookup is not None:
        return transformation.window_lookup.apply(values) / transformation.window_lookup.highest
    if transformation.window is None:
        return values
    center, width, function = transformation.window
    if width <= 0:
        raise ValueError(f"Window Width is {width:g}, expected a number above 0. Read without `apply_window`.")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -math.log(1e300), math.log(1e300))))
    if function == "LINEAR_EXACT":
        return ((values - center) / width + 0.5).clip(0, 1)
    # a LINEAR window includes both ends, so width 1 is a threshold
    return ((values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5).clip(0, 1)
