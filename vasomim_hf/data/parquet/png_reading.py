"""Frames and masks from the bytes of an image file, quickly from those that `png` writes."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..reading import files as frames
from ..sources import mask_from_image


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pieces of a PNG that may say that it is to be turned: EXIF, also as text, and XMP
TURNING = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
UP = 2  # filter type of a row: difference from the row above


class PngHeader(NamedTuple):
    """Size in pixels and bits of a pixel."""

    height: int
    width: int
    bit_depth: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of pixels."""
        return (self.width * self.bit_depth + 7) // 8


def read_header(data: memoryview) -> PngHeader | None:
    """Read the head of a grey PNG of 1 or 8 bits without interlacing and without EXIF, which could swap its sides.

    Args:
        data (`memoryview`): The file, unsigned bytes.

    Returns:
        `PngHeader`: Or `None`, if it is another kind of file, or damaged there.
    """
    if len(data) < 33 or data[:8] != PNG_SIGNATURE or zlib.crc32(data[12:29]) != struct.unpack_from(">I", data, 29)[0]:
        return None
    width, height, depth, *kind = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in (1, 8) or any(kind) or _may_be_turned(data):
        return None
    return PngHeader(height, width, depth)


def _may_be_turned(data: memoryview) -> bool:
    place = 33
    while place + 12 <= len(data):
        if data[place + 4 : place + 8] in TURNING:
            return True
        place += struct.unpack_from(">I", data, place)[0] + 12
    return False


def decode_frame(data: memoryview, bits_stored: int | None = None) -> np.ndarray:
    """Decode a grey frame of 8 bits as [`frames.decode_frame`] does, more quickly where the PNG is only stored.

    Args:
        data (`memoryview`): The file, unsigned bytes.
        bits_stored (`int`, *optional*): Bit depth of deep frames, see [`frames.read_frame`].

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

    Raises:
        ValueError, zlib.error: If the file is damaged, or is refused by [`frames.decode_frame`].

    Example:
        >>> from vasomim_hf.data.parquet.png import encode_png
        >>> decode_frame(memoryview(encode_png(np.arange(6, dtype=np.uint8).reshape(2, 3)))).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    header = read_header(data)
    lines = _stored_lines(data, header) if header is not None and header.bit_depth == 8 else None
    if lines is not None and (lines[:, 0] == UP).all():
        return _add_rows(lines[:, 1:])
    if lines is not None and not lines[:, 0].any():
        return lines[:, 1:]
    return frames.decode_frame(data, "the file", bits_stored)


def decode_mask(data: memoryview, size: tuple[int, int], rows: slice = slice(None)) -> np.ndarray:
    """Decode some rows of a vessel mask.

    Args:
        data (`memoryview`): The image file, unsigned bytes; its values are 0 and 255, or 0 and 1.
        size (`tuple[int, int]`): Height and width that the mask must have, those of its frame.
        rows (`slice`): Which rows.

    Returns:
        `np.ndarray` of shape `(len(rows), width)`: `uint8`, 0 or 1.

    Raises:
        OSError, ValueError, zlib.error: If the file is damaged, or the mask has another size or other values.
    """
    header = read_header(data)
    if header is not None and header.bit_depth == 1 and (header.height, header.width) == size:
        lines = _stored_lines(data, header)
        if lines is not None and not lines[:, 0].any():
            return np.unpackbits(lines[rows, 1:], axis=1, count=header.width)
    return mask_from_image(_open_image(data), size, "of the row")[rows].view(np.uint8)


def _open_image(data: memoryview) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _stored_lines(data: memoryview, header: PngHeader) -> np.ndarray | None:
    """Rows of a PNG, each after the number of its filter, if zlib has only stored them; else `None`.

    The check sum of zlib is compared. A frame of 512×512 takes 240 µs in this way, with OpenCV 290 and with Pillow 330; its
    mask of 1 bit 70 µs, with OpenCV 200 and with Pillow 145 (`benchmarks/benchmark_loader.py`).
    """
    parts, place = [], 33
    while data[place + 4 : place + 8] == b"IDAT":
        length = struct.unpack_from(">I", data, place)[0]
        parts.append(data[place + 8 : place + 8 + length])
        place += length + 12
    if data[place + 4 : place + 8] != b"IEND" or len(parts[0]) < 3 or parts[0][2] & 6:
        return None
    expected = header.height * (1 + header.row_bytes)
    lines = zlib.decompress(parts[0] if len(parts) == 1 else b"".join(parts), bufsize=expected)
    if len(lines) != expected:
        raise ValueError(f"{len(lines)} bytes of rows instead of {expected}")
    return np.frombuffer(lines, np.uint8).reshape(header.height, -1)


def _add_rows(differences: np.ndarray, block: int = 16) -> np.ndarray:
    """Sum from the first row to each row, modulo 256: within blocks of rows, all blocks at once, then block by block."""
    height, width = differences.shape
    blocks = np.zeros((-(-height // block), block, width), np.uint8)
    flat = blocks.reshape(-1, width)
    flat[:height] = differences
    for row in range(1, block):
        blocks[:, row] += blocks[:, row - 1]
    for number in range(1, len(blocks)):
        blocks[number] += blocks[number - 1, -1]
    return flat[:height]
