"""Frames in JPEG Extended with 12 bits for each pixel, decoded by GDCM: a decoder that pydicom can be given.

pydicom's own use of GDCM refuses this one combination, and the other decoder that it knows for it is under the GPL and
refuses files whose scan header leaves the end of the spectrum at 0, which the samples of NEMA do. GDCM reads both.
"""

from typing import TYPE_CHECKING

from ..import_utils import require


if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner


JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
PLUGIN = "vasomim_gdcm"

# pydicom looks for these two names in the module of a decoder
DECODER_DEPENDENCIES = {JPEG_EXTENDED: ("python-gdcm>=3.0.10",)}


def is_available(uid: str) -> bool:
    """Whether frames of a transfer syntax can be decoded here."""
    try:
        require("gdcm", "dicom")
    except ImportError:
        return False
    return uid == JPEG_EXTENDED


def register() -> None:
    """Make the decoder known to pydicom; doing it twice changes nothing."""
    decoder = require("pydicom.pixels", "dicom").get_decoder(JPEG_EXTENDED)
    if PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: "DecodeRunner") -> bytes:
    """Decode one frame, called by pydicom.

    Args:
        source (`bytes`): A JPEG stream.
        runner (`pydicom.pixels.decoders.base.DecodeRunner`): What the DICOM file says of its pixels.

    Returns:
        `bytes`: Pixels row by row, little-endian, `runner.bits_allocated` bits each.

    Raises:
        ValueError: If GDCM cannot decode it.
    """
    gdcm = require("gdcm", "dicom")
    image = _describe(gdcm, source, runner)
    pixels: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    expected = runner.rows * runner.columns * runner.samples_per_pixel * runner.bits_allocated // 8
    if len(pixels) != expected:
        raise ValueError(f"GDCM gave {len(pixels)} bytes, expected {expected}: the JPEG stream is damaged.")
    return pixels


def _describe(gdcm, source: bytes, runner: "DecodeRunner"):
    """The frame as an image of GDCM, which decodes when its pixels are asked for."""
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
