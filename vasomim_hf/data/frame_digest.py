"""Digest that identifies equal frames across file formats."""

import hashlib

import numpy as np


def frame_digest(frame: np.ndarray) -> bytes:
    """SHA-256 of a frame: of its size and dtype, as `512x512:uint8`, and its pixels row by row, little-endian.

    Args:
        frame (`np.ndarray` of shape `(height, width)`): Grey levels, `uint8` or `uint16`.

    Returns:
        `bytes`: 32 bytes; equal for equal frames in any file format.

    Example:
        >>> frame_digest(np.zeros((2, 3), np.uint8)).hex()[:16]
        '45b6ada9b411bab3'
    """
    head = f"{frame.shape[0]}x{frame.shape[1]}:{frame.dtype}".encode()
    digest = hashlib.sha256(head)
    # same byte order on every machine
    digest.update(np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("<")).data)
    return digest.digest()
