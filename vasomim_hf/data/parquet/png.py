"""PNG encoding of grey frames, masks and label maps for Parquet.

PNG compresses in two steps: each row is replaced by its difference from the row above, and the differences are
compressed with zlib. Inflating zlib is slow, so the differences are stored uncompressed and Parquet compresses the
file with zstd. It is about as large as an ordinary PNG (1.09 times, for 40 angiograms of 512×512), but decodes about
five times faster. Every PNG reader can read these files.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # PNG row filter "up": difference from the row above


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode a grey frame losslessly: rows as differences, uncompressed.

    Args:
        pixels (`np.ndarray` of shape `(height, width)`): `uint8` or `uint16`, 0 is black.

    Returns:
        `bytes`: A PNG file of 8 or 16 bits.

    Raises:
        ValueError: If the pixels have another dtype or shape.

    Example:
        >>> frame = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000
        >>> np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(frame)))), frame)
        True
    """
    if pixels.ndim != 2 or pixels.size == 0 or pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise ValueError(
            f"A frame must have shape (height, width) and be uint8 or uint16, got {pixels.shape}, {pixels.dtype}."
        )
    # PNG is big-endian and takes differences byte by byte
    rows = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">")).view(np.uint8)
    lines = np.empty((rows.shape[0], rows.shape[1] + 1), dtype=np.uint8)
    lines[:, 0] = _UP
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    return _png(pixels.shape, 8 * pixels.dtype.itemsize, zlib.compress(lines.data, level=0))


def encode_mask_png(mask: np.ndarray) -> bytes:
    """Encode a mask with one bit per pixel, uncompressed.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): `bool`.

    Returns:
        `bytes`: A PNG file of 1 bit; Pillow opens it in mode `"1"`, and `np.asarray` of that is `bool`.

    Raises:
        ValueError: If the mask has another dtype or shape.

    Example:
        >>> mask = np.eye(3, dtype=bool)
        >>> np.array_equal(np.asarray(Image.open(io.BytesIO(encode_mask_png(mask)))), mask)
        True
    """
    if mask.ndim != 2 or mask.size == 0 or mask.dtype != np.bool_:
        raise ValueError(f"A mask must have shape (height, width) and be bool, got {mask.shape}, {mask.dtype}.")
    packed = np.packbits(mask, axis=1)
    lines = np.zeros((packed.shape[0], packed.shape[1] + 1), dtype=np.uint8)
    lines[:, 1:] = packed
    return _png(mask.shape, 1, zlib.compress(lines.data, level=0))


def encode_label_png(labels: np.ndarray) -> bytes:
    """Encode a map of class ids as grey levels.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): `uint8`, or `bool` for ids 0 and 1.

    Returns:
        `bytes`: A PNG file of 8 bits, compressed.

    Raises:
        ValueError: If the map has another dtype or shape.

    Example:
        >>> labels = np.array([[0, 1], [25, 26]], dtype=np.uint8)
        >>> np.array_equal(np.asarray(Image.open(io.BytesIO(encode_label_png(labels)))), labels)
        True
    """
    if labels.ndim != 2 or labels.size == 0 or labels.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"A label map must have shape (height, width) and be uint8 or bool, got {labels.shape}, {labels.dtype}."
        )
    file = io.BytesIO()
    Image.fromarray(labels.astype(np.uint8)).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _png(shape: tuple[int, ...], bit_depth: int, data: bytes) -> bytes:
    height, width = shape
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
