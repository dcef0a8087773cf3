"""Read DICOM images and cines frame by frame, so a cine is never completely in memory.

Stored values are mapped to grey levels with one lookup table (see `dicom_grey_levels`): bits outside Bits Stored are
dropped (old scanners stored overlays there), the modality LUT or Rescale Slope and Intercept is applied, then the
window, if requested, MONOCHROME1 is inverted, and pixels with the Pixel Padding Value become black. Overlays, DSA
masks, shutters and presentation states are not applied.

Privacy: only the tags in `KEPT_TAGS` are read. Patient, study and series ids are read only if a salt is given, and are
kept only as keyed hashes. Burned-in text is not detected, but files marked as having it are rejected.

Damaged files: the frames before the damage are yielded, then an error states how many there were.
"""

import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ...image_processing_reading import to_grey
from ...import_utils import require
from .dicom_grey_levels import LevelTable, Lookup, PixelLayout, Transformation, level_table
from .dicom_jpeg import JPEG_EXTENDED, PLUGIN, fits, register
from .frame import Frame, FrameMetadata, FrameReadError, ReadOptions, hashed_id


if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID


DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

# The only tags that are read. None of them identifies a person, a place or a time.
KEPT_TAGS = (
    "SOPClassUID",
    "Modality",
    "RecommendedDisplayFrameRate",
    "CineRate",
    "FrameTime",
    "FrameTimeVector",
    "ImagerPixelSpacing",
    "PositionerPrimaryAngle",
    "PositionerSecondaryAngle",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "PixelSpacingCalibrationType",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelIntensityRelationship",
    "BurnedInAnnotation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleSlope",
    "RescaleIntercept",
    "LossyImageCompression",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
# Never returned, only their hashes are
ID_TAGS = {"patient_id": "PatientID", "study_id": "StudyInstanceUID", "series_id": "SeriesInstanceUID"}

# Enhanced multi-frame objects store these tags in functional groups instead of at the top level
FUNCTIONAL_GROUPS = {
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "PositionerPrimaryAngle": "PositionerPositionSequence",
    "PositionerSecondaryAngle": "PositionerPositionSequence",
    "ImagerPixelSpacing": "FramePixelDataPropertiesSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}

HIGH_THROUGHPUT = "1.2.840.10008.1.2.4.20"  # prefix of the high-throughput JPEG 2000 (HTJ2K) syntaxes .201 to .203
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
LOSSY_SYNTAXES = ("1.2.840.10008.1.2.4.50", JPEG_EXTENDED, "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")
JPEG_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))
JPEG_HEAD = 1 << 16  # bytes read to find the JPEG header
ITEM = 0xE000FFFE
UNDEFINED_LENGTH = 0xFFFFFFFF


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file has the DICOM magic bytes after its preamble.

    Args:
        path (`str` or `os.PathLike`): Any file.

    Returns:
        `bool`: `False` also if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom_frames(path: str | os.PathLike, options: ReadOptions | None = None) -> Iterator[Frame]:
    """Read the frames of a DICOM file one by one.

    Args:
        path (`str` or `os.PathLike`): DICOM file.
        options (`ReadOptions`, *optional*): Reading options.

    Yields:
        `Frame`: In file order.

    Raises:
        FrameReadError: If the file is not DICOM, is damaged, has no pixels, has an unexpected modality or an
            unsupported pixel format, or if the decoder for its transfer syntax is not installed (the message names the
            package).
        ImportError: If pydicom is not installed.
    """
    path, options = Path(path), options or ReadOptions()
    run = _open(path, options)
    index = -1
    for index, pixels in enumerate(_decoded(run)):
        yield _frame(run, pixels, index)
    if index + 1 < run.num_frames:
        raise FrameReadError(
            f"`{path}` ends after {index + 1} of {run.num_frames} frames: the rest is missing or does not match the "
            "header. The frames before the damage are intact."
        )


@dataclass(frozen=True)
class _Run:
    """A DICOM file whose header has been read and checked."""

    path: Path
    header: "Dataset"
    options: ReadOptions
    layout: PixelLayout
    syntax: str
    num_whole: int
    num_begun: int
    metadata: FrameMetadata
    transformation: Transformation
    tables: dict[tuple, LevelTable] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        return self.metadata.num_frames


def _open(path: Path, options: ReadOptions) -> _Run:
    header, syntax, counts = _read_header(path, options)
    if options.modalities is not None and header.get("Modality") not in options.modalities:
        raise FrameReadError(
            f"`{path}` has the modality {header.get('Modality')!r}, expected {' or '.join(options.modalities)}. "
            "Set `modalities` in ReadOptions to accept others, or to None to accept all."
        )
    if header.get("BurnedInAnnotation") == "YES" and not options.allow_burned_in:
        raise FrameReadError(
            f"`{path}` is marked as having identifying text burned into its pixels (Burned In Annotation). Remove the "
            "text, or pass `allow_burned_in=True` in ReadOptions."
        )
    _check_decoder(path, syntax)
    layout = _layout(path, header, syntax)
    try:
        transformation = _transformation(header, options, layout)
    except (AttributeError, TypeError, ValueError):
        raise FrameReadError(f"`{path}` has a malformed lookup table. Export it again.") from None
    return _Run(path, header, options, layout, syntax, *counts, _metadata(header, options, syntax), transformation)


def _read_header(path: Path, options: ReadOptions) -> tuple["Dataset", str, tuple[int, int]]:
    """Kept tags, transfer syntax, and the numbers of complete frames and of frames that at least begin."""
    pydicom = require("pydicom", "dicom")
    tags = [*KEPT_TAGS, *(ID_TAGS.values() if options.salt is not None else ())]
    try:
        with open(path, "rb") as file, _quiet():
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            position = file.tell()
            _convert(header)
            file.seek(position)
            syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
            counts = _count_whole(file, header, syntax, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise FrameReadError(f"`{path}` cannot be read ({type(error).__name__}: {error.strerror}).") from error
    except Exception as error:  # a damaged header can raise anything; the message may quote patient data
        raise _header_error(path, error) from None
    if counts is None:
        raise FrameReadError(f"`{path}` is a DICOM file without pixels. Remove it.")
    return header, syntax, counts


def _header_error(path: Path, error: Exception) -> FrameReadError:
    return FrameReadError(
        f"`{path}` cannot be read as DICOM ({type(error).__name__}): the header is damaged, or it is not a DICOM file. "
        "Restore or remove it."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom's warnings about malformed values: they quote the values, which may identify a patient."""
    with require("pydicom", "dicom").config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert(header: "Dataset") -> None:
    """Parse all values now and drop malformed ones, which count as unknown."""
    for tag in list(header.keys()):
        try:
            element = header[tag]
        except Exception:  # the message may quote patient data
            del header[tag]
            continue
        if element.VR == "SQ":
            for item in element.value:
                _convert(item)


def _count_whole(file: BinaryIO, header: "Dataset", syntax: str, size: int) -> tuple[int, int] | None:
    """Number of complete frames, and of frames that at least begin; `None` without pixels.

    Counted before decoding, because some decoders fill in missing data. Compressed cines are assumed to have one
    fragment per frame.
    """
    if syntax == DEFLATED:
        return _num_frames(header), _num_frames(header)
    order = ">" if syntax == BIG_ENDIAN else "<"
    element = file.read(8 if syntax == IMPLICIT else 12)
    if len(element) < 8:
        return None
    (length,) = struct.unpack(f"{order}L", element[-4:])
    if length == UNDEFINED_LENGTH:
        return _count_fragments(file, size, header, syntax)
    is_halved = header.get("PhotometricInterpretation") == "YBR_FULL_422"  # chroma is subsampled by 2
    samples = 2 if is_halved else int(header.get("SamplesPerPixel") or 1)
    bits = int(header.Rows) * int(header.Columns) * samples * int(header.BitsAllocated)
    return min(_num_frames(header), min(length, size - file.tell()) * 8 // bits), _num_frames(header)


def _count_fragments(file: BinaryIO, size: int, header: "Dataset", syntax: str) -> tuple[int, int]:
    num_frames = _num_frames(header)
    fragments, is_bad = -1, False  # the first item is the offset table
    while len(item := file.read(8)) == 8:
        tag, length = struct.unpack("<LL", item)
        if tag != ITEM:
            break
        start = file.tell()
        starts_frame = fragments == 0 or (fragments > 0 and num_frames > 1)
        if start + length > size or (starts_frame and not _fits(file.read(min(length, JPEG_HEAD)), header, syntax)):
            is_bad = True
            break
        file.seek(start + length)
        fragments += 1
    whole = max(fragments, 0)
    if num_frames == 1:
        whole = int(whole > 0 and not is_bad)
    return min(whole, num_frames), min(max(fragments, 0) + is_bad, num_frames)


def _fits(head: bytes, header: "Dataset", syntax: str) -> bool:
    if syntax not in JPEG_SYNTAXES:
        return True
    samples = int(header.get("SamplesPerPixel") or 1)
    return fits(head, int(header.Rows), int(header.Columns), samples, int(header.BitsAllocated))


def _num_frames(header: "Dataset") -> int:
    return max(1, int(header.get("NumberOfFrames") or 1))


def _layout(path: Path, header: "Dataset", syntax: str) -> PixelLayout:
    try:
        layout = PixelLayout(
            bits_allocated=int(header.BitsAllocated),
            bits_stored=int(header.get("BitsStored") or header.BitsAllocated),
            shift=0,
            is_signed=bool(header.get("PixelRepresentation")),
            samples=int(header.get("SamplesPerPixel") or 1),
            is_lossy=syntax in LOSSY_SYNTAXES,
        )
        high_bit = int(header.get("HighBit", layout.bits_stored - 1))
    except (AttributeError, TypeError, ValueError):
        raise FrameReadError(f"`{path}` does not state its pixel format. Export it again.") from None
    is_grey = layout.samples == 1 and header.get("PhotometricInterpretation") != "PALETTE COLOR"
    if layout.bits_allocated not in (8, 16) or not (is_grey or (layout.samples == 3 and not layout.is_signed)):
        raise FrameReadError(
            f"`{path}` has {layout.samples} samples of {layout.bits_allocated} bits, "
            f"{header.get('PhotometricInterpretation')}; expected grey or RGB with 8 or 16 bits. Export it in one of "
            "these formats."
        )
    if not 0 < layout.bits_stored <= layout.bits_allocated or not layout.bits_stored <= high_bit + 1:
        raise FrameReadError(
            f"`{path}` has inconsistent Bits Stored ({layout.bits_stored}), Bits Allocated ({layout.bits_allocated}) "
            f"and High Bit ({high_bit}). Export it again."
        )
    # apart from RLE, compressed streams encode values rather than memory cells, so the high bit is meaningless
    is_cells = not _is_compressed(syntax) or syntax == RLE_LOSSLESS
    return replace(layout, shift=min(high_bit + 1, layout.bits_allocated) - layout.bits_stored if is_cells else 0)


def _is_compressed(syntax: str) -> bool:
    return bool(_uid(syntax).is_compressed)


def _uid(syntax: str) -> "UID":
    with _quiet():
        return require("pydicom.uid", "dicom").UID(syntax)


# Decoders


def _check_decoder(path: Path, syntax: str) -> None:
    """Fail before decoding if the decoder is missing, and name the package to install."""
    is_uid = re.fullmatch(r"[\d.]+", syntax) is not None
    name = f"{_uid(syntax).name} ({syntax})" if is_uid else "a malformed transfer syntax"
    try:
        with _quiet():
            decoder = require("pydicom.pixels", "dicom").get_decoder(_uid(syntax) if is_uid else "0")
    except (NotImplementedError, ValueError):
        raise FrameReadError(
            f"`{path}` is stored as {name}, which is not supported. Export it uncompressed or in a lossless syntax."
        ) from None
    if not decoder.is_available:
        raise FrameReadError(f"`{path}` is stored as {name}. {_remedy(syntax)}")


def _remedy(syntax: str) -> str:
    packages = "pylibjpeg pylibjpeg-openjpeg" if syntax.startswith(HIGH_THROUGHPUT) else "python-gdcm"
    return f"Its decoder is not installed: pip install {packages} (the extra `dicom` includes python-gdcm)."


def _decoded(run: _Run) -> Iterator[np.ndarray]:
    """Stored values of each complete frame."""
    pixels = require("pydicom.pixels", "dicom")
    # the lookup table drops unused bits, taking the high bit into account
    keywords: dict[str, Any] = {"correct_unused_bits": False}
    if run.syntax == JPEG_EXTENDED and run.layout.bits_stored > 8:
        register()
        has_plugin = PLUGIN in pixels.get_decoder(run.syntax).available_plugins
        keywords |= {"decoding_plugin": PLUGIN} if has_plugin else {}
    if run.num_begun < run.num_frames:
        keywords["number_of_frames"] = run.num_begun  # otherwise pydicom reads none of them
    with closing(pixels.iter_pixels(_source(run), **keywords)) as frames:
        for index in range(run.num_whole):
            try:
                frame = next(frames)
            except StopIteration:
                return
            except Exception as error:  # decoders raise anything
                raise _decode_error(run, index, error) from error
            yield frame


def _source(run: _Run) -> Any:
    if run.syntax != DEFLATED:
        return run.path
    try:
        with _quiet():  # a deflated file can only be decompressed as a whole
            return require("pydicom", "dicom").dcmread(run.path)
    except Exception as error:
        raise _header_error(run.path, error) from None


def _decode_error(run: _Run, index: int, error: Exception) -> FrameReadError:
    gdcm_helps = _is_compressed(run.syntax) and run.syntax != RLE_LOSSLESS
    try:
        require("gdcm", "dicom")
        hint = "Restore the file"
    except ImportError:
        hint = _remedy(run.syntax) if gdcm_helps else "Restore the file"
    return FrameReadError(
        f"`{run.path}` (stored as {_uid(run.syntax).name}): frame {index} of {run.num_frames} cannot be decoded "
        f"({type(error).__name__}: {' '.join(str(error).split())}); the {index} before it are intact. {hint}."
    )


# Grey levels


def _frame(run: _Run, stored: np.ndarray, index: int) -> Frame:
    metadata = _metadata_of_frame(run, index)
    if run.layout.samples == 3:
        bits = max(8, run.layout.bits_stored)
        return Frame(to_grey(stored[..., :3].astype(f"u{stored.itemsize}")), bits, index, metadata)
    table = _table(run, metadata, index)
    return Frame(table.apply(stored), table.bits_stored, index, replace(metadata, level_offset=table.offset))


def _transformation(header: "Dataset", options: ReadOptions, layout: PixelLayout) -> Transformation:
    """Transformation shared by all frames."""
    return Transformation(
        lookup=_modality_lookup(header, layout),
        window_lookup=_first_lookup(header, "VOILUTSequence", layout) if options.apply_window else None,
        is_inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
        padding=_padding(header, layout),
    )


def _table(run: _Run, metadata: FrameMetadata, index: int) -> LevelTable:
    """Lookup table of a frame, usually the same for the whole cine."""
    slope = 1.0 if metadata.rescale_slope is None else metadata.rescale_slope
    window = None
    if run.options.apply_window and metadata.window_width is not None and metadata.window_center is not None:
        function = _value(run.header, "VOILUTFunction", index) or "LINEAR"
        window = (metadata.window_center, metadata.window_width, str(function))
    key = (slope, metadata.rescale_intercept or 0.0, window)
    if key not in run.tables:
        own = replace(run.transformation, slope=key[0], intercept=key[1], window=window)
        try:
            run.tables[key] = level_table(run.layout, own)
        except ValueError as error:
            raise FrameReadError(f"`{run.path}`: {error}") from error
    return run.tables[key]


def _modality_lookup(header: "Dataset", layout: PixelLayout) -> Lookup | None:
    # for XA and RF, this table maps back to X-ray intensity for subtraction and is not meant for display
    # (PS3.3 C.8.7.1.1.2, PS3.4 N.2.5)
    if header.get("Modality") in ("XA", "RF") and header.get("PixelIntensityRelationship") in ("LOG", "DISP"):
        return None
    return _first_lookup(header, "ModalityLUTSequence", layout)


def _first_lookup(header: "Dataset", keyword: str, layout: PixelLayout) -> Lookup | None:
    for item in header.get(keyword) or ():
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        if layout.is_signed and first >= 1 << 15:
            first -= 1 << 16  # pydicom may have read it as unsigned
        data = item.LUTData
        if isinstance(data, bytes):
            data = np.frombuffer(data, dtype="<u2" if len(data) >= 2 * (count or 1 << 16) else "u1").tolist()
        return Lookup(first, bits, tuple(data))
    return None


def _padding(header: "Dataset", layout: PixelLayout) -> tuple[int, int] | None:
    value = _whole(header.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _whole(header.get("PixelPaddingRangeLimit"))
    ends = sorted((value, value if limit is None else limit))
    # always 16 bits, whatever the pixel depth, and often read with the wrong sign
    top = 1 << 16
    low, high = (end - top if layout.is_signed and end >= top // 2 else end for end in ends)
    return (low, high) if layout.is_signed else (low % top, high % top)


# Metadata


def _metadata(header: "Dataset", options: ReadOptions, syntax: str) -> FrameMetadata:
    ids: dict[str, Any] = {name: hashed_id(header.get(tag), name, options.salt) for name, tag in ID_TAGS.items()}
    lossy = header.get("LossyImageCompression")
    known = None if lossy is None else lossy == "01"
    return FrameMetadata(
        num_frames=_num_frames(header),
        photometric_interpretation=str(header.get("PhotometricInterpretation") or "") or None,
        modality=str(header.get("Modality") or "") or None,
        is_lossy=True if syntax in LOSSY_SYNTAXES else known,
        **ids,
    )


def _metadata_of_frame(run: _Run, index: int) -> FrameMetadata:
    header = run.header
    spacing = _pair(_value(header, "PixelSpacing", index))
    at_detector = _pair(_value(header, "ImagerPixelSpacing", index))
    calibration = header.get("PixelSpacingCalibrationType")
    if spacing == at_detector and not calibration:
        spacing = None  # a copy of Imager Pixel Spacing, so not calibrated (PS3.3 10.7.1.3)
    return replace(
        run.metadata,
        frame_time_ms=_frame_time(header, index),
        imager_pixel_spacing_mm=at_detector,
        pixel_spacing_mm=spacing,
        pixel_spacing_calibration=calibration if calibration in ("GEOMETRY", "FIDUCIAL") else None,
        primary_angle=_number(_value(header, "PositionerPrimaryAngle", index)),
        secondary_angle=_number(_value(header, "PositionerSecondaryAngle", index)),
        window_center=_number(_value(header, "WindowCenter", index)),
        window_width=_number(_value(header, "WindowWidth", index)),
        rescale_slope=_number(_value(header, "RescaleSlope", index)),
        rescale_intercept=_number(_value(header, "RescaleIntercept", index)),
    )


def _value(header: "Dataset", keyword: str, index: int) -> Any:
    """Value for one frame: per-frame if present, otherwise shared, otherwise top-level."""
    macro = FUNCTIONAL_GROUPS.get(keyword, "")
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    for group in (*own[index : index + 1], *(header.get("SharedFunctionalGroupsSequence") or ())):
        for item in group.get(macro, None) or ():
            if item.get(keyword) is not None:
                return item.get(keyword)
    return header.get(keyword)


def _frame_time(header: "Dataset", index: int) -> float | None:
    vector = _numbers(header.get("FrameTimeVector"))
    if index < len(vector):
        return vector[index]
    time = _number(header.get("FrameTime"))
    if time is not None and time > 0:
        return time
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = _number(header.get(keyword))
        if rate is not None and rate > 0:
            return 1000 / rate
    return None


def _numbers(value: Any) -> list[float]:
    """Finite numbers; a malformed value counts as unknown."""
    if value is None or value == "":
        return []
    try:
        found = [float(part) for part in (value if _is_several(value) else [value])]
    except (TypeError, ValueError):
        return []
    return found if np.isfinite(found).all() else []


def _is_several(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)


def _number(value: Any) -> float | None:
    return next(iter(_numbers(value)), None)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _pair(value: Any) -> tuple[float, float] | None:
    numbers = _numbers(value)
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None
