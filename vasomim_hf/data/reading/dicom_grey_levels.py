"""From stored values to grey levels: all that a DICOM file lays down between the two, as one look-up table.

With at most 16 bits there are at most 65,536 stored values, so every step is done once for each value and not for each
pixel, in double precision, and a frame costs one look-up.
"""

import math
from dataclasses import dataclass

import numpy as np


MOST_BITS, FEWEST_BITS = 16, 8


@dataclass(frozen=True)
class PixelLayout:
    """How pixels lie in memory.

    Args:
        bits_allocated (`int`): 8 or 16.
        bits_stored (`int`): Bits that carry the level.
        shift (`int`): Bits below them that do not.
        is_signed (`bool`): Two's complement.
        samples (`int`): 1 for grey, 3 for colour.
        is_lossy (`bool`): Levels may overshoot their range, and are clipped; else what is above are other bits.
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
    """A table of DICOM: the value `first` and all below it become the first entry, and so on.

    Args:
        first (`int`): Value that the first entry stands for.
        bits (`int`): Bits of an entry.
        entries (`tuple[int, ...]`): The results.
    """

    first: int
    bits: int
    entries: tuple[int, ...]

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Results for values of any shape, as float64 of the same shape."""
        if not self.entries or not 1 <= self.bits <= MOST_BITS:
            raise ValueError(
                f"a lookup table has {len(self.entries)} entries of {self.bits} bits; expected some of at most {MOST_BITS}. "
                "Export the file again."
            )
        entries = np.asarray(self.entries, dtype=np.float64)
        return entries[np.clip(np.rint(values) - self.first, 0, len(entries) - 1).astype(np.int64)]


@dataclass(frozen=True)
class Transformation:
    """What a file asks for.

    Args:
        slope, intercept (`float`): Rescaling of the modality.
        lookup (`Lookup`, *optional*): Table of the modality, instead of the two.
        window (`tuple[float, float, str]`, *optional*): Centre, width and function, `"LINEAR"`, `"LINEAR_EXACT"` or
            `"SIGMOID"`.
        window_lookup (`Lookup`, *optional*): Table of values of interest, instead of the window.
        is_inverted (`bool`): White is stored as the lowest level.
        padding (`tuple[int, int]`, *optional*): First and last stored value that stand for "no pixel".
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
    """Grey levels for stored values.

    Args:
        levels (`np.ndarray` of shape `(2**bits_allocated,)`): `uint8` or `uint16`, by the stored bits read as unsigned.
        bits_stored (`int`): Bits of the levels, 8 to 16.
        offset (`float`): What was added to values after the modality transformation.
        num_plain (`int`): Stored values below this are their own levels.
    """

    levels: np.ndarray
    bits_stored: int
    offset: float
    num_plain: int

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Look up a frame.

        Args:
            stored (`np.ndarray` of shape `(height, width)`): Integers of 8 or 16 bits, of either sign and byte order.

        Returns:
            `np.ndarray` of shape `(height, width)`: Its grey levels.
        """
        codes = stored.astype(f"i{stored.itemsize}", copy=False) if stored.dtype.byteorder == ">" else stored
        codes = codes.view(f"u{codes.itemsize}")
        if codes.max() < self.num_plain:
            return codes.astype(self.levels.dtype)
        return self.levels[codes]


def level_table(layout: PixelLayout, transformation: Transformation) -> LevelTable:
    """Compute the grey level of each stored value.

    Values after the modality transformation are shifted so that the lowest possible one is not negative and black is 0.
    Integers below 65,536 are kept; otherwise the possible range is scaled to 16 bits. The bit depth is the smallest that
    holds them, but at least Bits Stored.

    Args:
        layout (`PixelLayout`): How pixels are stored.
        transformation (`Transformation`): What becomes of them.

    Returns:
        `LevelTable`: One level for each stored value.

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
        with np.errstate(over="ignore"):  # of a window that is next to nothing wide, and clipped
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
    """The value that each pattern of bits stands for."""
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
    """Values of the modality, and the lowest and highest that are possible."""
    if transformation.lookup is not None:
        return transformation.lookup.apply(stored), 0.0, float(transformation.lookup.highest)
    if transformation.slope == 0:
        raise ValueError("Rescale Slope is 0, which would make every pixel the same. Export the file again.")
    ends = [end * transformation.slope + transformation.intercept for end in (layout.lowest, layout.highest)]
    if not all(math.isfinite(end) for end in ends):
        raise ValueError("Rescale Slope and Intercept lead beyond all numbers. Export the file again.")
    return stored * transformation.slope + transformation.intercept, min(ends), max(ends)


def _as_levels(values: np.ndarray, lowest: float, highest: float) -> tuple[np.ndarray, int, float]:
    """Levels from 0 on, their bit depth and the highest that is possible."""
    start = min(lowest, 0.0)
    top = highest - start
    is_whole = bool((values == np.rint(values)).all())
    if is_whole and top < 1 << MOST_BITS:
        return values - start, max(int(top).bit_length(), FEWEST_BITS), top
    top = float((1 << MOST_BITS) - 1)
    return (values - lowest) / (highest - lowest) * top, MOST_BITS, top


def _windowed(values: np.ndarray, transformation: Transformation) -> np.ndarray:
    """Values of interest in [0, 1] (PS3.3 C.11.2)."""
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
    # the ordinary window counts both of its ends, so that one of width 1 is a threshold
    return ((values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5).clip(0, 1)
