"""JPEG streams in DICOM: a header check, and a pydicom plugin that decodes 12-bit JPEG Extended with GDCM.

A damaged JPEG header can crash the decoder and with it the process, so headers are checked first.

pydicom's own GDCM plugin rejects 12-bit JPEG Extended. Its other decoder for it is GPL-licensed and rejects files with
a spectral selection end of 0, as in the NEMA sample files. GDCM itself reads both.
"""

import struct
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...import_utils import require


if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner


JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
PLUGIN = "vasomim_gdcm"

# pydicom requires this name, and `is_available`, in a plugin module
DECODER_DEPENDENCIES = {JPEG_EXTENDED: ("python-gdcm>=3.0.10",)}


START_OF_IMAGE, START_OF_SCAN, HUFFMAN_TABLE, QUANTISATION_TABLE = 0xD8, 0xDA, 0xC4, 0xDB
# start-of-frame markers, and the tables that each requires before the scan
NEEDS = {marker: {HUFFMAN_TABLE, QUANTISATION_TABLE} for marker in (0xC0, 0xC1, 0xC2)} | {
    0xC3: {HUFFMAN_TABLE},
    0xF7: set(),
}
JPEG_2000_START = bytes.fromhex("ff4fff51")


def fits(head: bytes, rows: int, columns: int, samples: int, bits_allocated: int) -> bool:
    """Whether the header of a JPEG, JPEG-LS or JPEG 2000 stream matches the DICOM header.

    Args:
        head (`bytes`): Start of the stream.
        rows, columns, samples (`int`): Size of the frame in the DICOM header.
        bits_allocated (`int`): Bits Allocated; the stream may use fewer.

    Returns:
        `bool`: `False` also if the stream header cannot be parsed.

    Example:
        >>> fits(bytes.fromhex("ffd8 ffc3 000b 0c 0030 0040 01 011100 ffc4 0002 ffda 0008"), 48, 64, 1, 16)
        True
    """
    read = _jpeg_head if head[:2] == bytes((0xFF, START_OF_IMAGE)) else _jpeg_2000_head
    found = read(head)
    return found is not None and found[:3] == (rows, columns, samples) and 2 <= found[3] <= bits_allocated


def _jpeg_head(head: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, samples and bits; `None` if a table that the decoder needs is missing."""
    position, needs, seen, found = 2, set[int](), set[int](), None
    while position + 4 <= len(head) and head[position] == 0xFF:
        marker, length = head[position + 1], int.from_bytes(head[position + 2 : position + 4], "big")
        if marker == START_OF_SCAN:
            return found if needs <= seen else None
        if marker in NEEDS and length >= 11:
            precision, rows, columns, samples = struct.unpack(
                ">BHHB", head[position + 4 : position + 10].ljust(6, b"\0")
            )
            needs, found = NEEDS[marker], (rows, columns, samples, precision)
        seen.add(marker)
        position += 1 if marker == 0xFF else 2 + length
    return None


def _jpeg_2000_head(head: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, samples and bits of a JPEG 2000 stream, possibly boxed; `None` with subsampled components."""
    start = head.find(JPEG_2000_START)
    if start < 0 or len(head) < start + 45:
        return None
    right, bottom, left, top = struct.unpack(">4L", head[start + 8 : start + 24])
    (samples,) = struct.unpack(">H", head[start + 40 : start + 42])
    components = [head[start + 42 + 3 * i : start + 45 + 3 * i] for i in range(samples)]
    if {component[1:] for component in components} != {b"\x01\x01"}:
        return None
    # the highest bit is the sign flag, the others are the bit depth minus 1
    return bottom - top, right - left, samples, max((component[0] & 0x7F) + 1 for component in components)


def is_available(uid: str) -> bool:
    """Whether this plugin can decode a transfer syntax."""
    try:
        require("gdcm", "dicom")
    except ImportError:
        return False
    return uid == JPEG_EXTENDED


def register() -> None:
    """Register the plugin with pydicom, if it is not registered yet."""
    decoder = require("pydicom.pixels", "dicom").get_decoder(JPEG_EXTENDED)
    if PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: "DecodeRunner") -> bytes:
    """Decode one frame; called by pydicom.

    Args:
        source (`bytes`): JPEG stream.
        runner (`pydicom.pixels.decoders.base.DecodeRunner`): Pixel format according to the DICOM header.

    Returns:
        `bytes`: Row-major little-endian pixels of `runner.bits_allocated` bits.

    Raises:
        ValueError: If GDCM cannot decode it.
    """
    gdcm = require("gdcm", "dicom")
    image = _describe(gdcm, source, runner)
    pixels: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    expected = runner.rows * runner.columns * runner.samples_per_pixel * runner.bits_allocated // 8
    if len(pixels) != expected:
        raise ValueError(f"GDCM returned {len(pixels)} bytes, expected {expected}: the JPEG stream is damaged.")
    return pixels


def _describe(gdcm: ModuleType, source: bytes, runner: "DecodeRunner") -> Any:
    """GDCM image of the frame; GDCM decodes it when the buffer is requested."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(JPEG_EXTENDED)))
    bits = runner.bits_stored
    pixels = (runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, runner.pixel_representation)
    image.SetPixelFormat(gdcm.PixelFormat(*pixels))
    return image
