"""Definition of a frame, independent of the file format: grey levels, bit depth and metadata."""

import hashlib
import hmac
from dataclasses import dataclass, field

import numpy as np
from transformers.utils import logging

from ...image_processing_reading import BIT_DEPTHS


logger = logging.get_logger(__name__)


class FrameReadError(ValueError):
    """A file cannot be read as a frame. The message names the file, the problem and a remedy."""


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading frames.

    Args:
        bits_stored (`int`, *optional*):
            Number of bits used for the grey level in 16-bit images and NPZ arrays, 8 to 16. `None` infers the smallest
            of 8, 10, 12, 14 and 16 that fits the maximum of the file. Ignored for DICOM files, which state it.
        salt (`str`, *optional*):
            Secret key for hashing patient, study and series ids. The same salt always gives the same ids. `None` omits
            the three ids: without a secret, anyone could hash a list of patient numbers and compare. Use at least 16
            random characters.
        apply_window (`bool`, *optional*, defaults to `False`):
            Whether to apply the VOI lookup table or window of a DICOM file. Off by default, because the image
            processor scales by bit depth, and a window discards grey levels.
        modalities (`tuple[str, ...]`, *optional*, defaults to `("XA",)`):
            DICOM modalities to accept; others are an error. `None` accepts all.
        allow_burned_in (`bool`, *optional*, defaults to `False`):
            Whether to read DICOM files marked as having identifying text burned in.
        npz_key (`str`, *optional*):
            Array of an NPZ file with the frames. `None` uses `pixel_array`, otherwise the only array with two or three
            axes.

    Raises:
        ValueError: If an option is out of range.
    """

    bits_stored: int | None = None
    salt: str | None = field(default=None, repr=False)
    apply_window: bool = False
    modalities: tuple[str, ...] | None = ("XA",)
    allow_burned_in: bool = False
    npz_key: str | None = None

    def __post_init__(self) -> None:
        if self.bits_stored is not None and not 8 <= self.bits_stored <= 16:
            raise ValueError(f"`bits_stored` must be in 8..16, or None to infer it, got {self.bits_stored}.")
        if self.salt is not None and not self.salt:
            raise ValueError(
                "`salt` must not be empty: ids hashed without a secret can be guessed. Pass None for no ids."
            )
        if isinstance(self.modalities, str):
            raise ValueError(f"`modalities` must be a tuple such as ('XA',), got the string {self.modalities!r}.")


@dataclass(frozen=True)
class FrameMetadata:
    """Metadata of a frame and its cine. Nothing here identifies a patient; unknown values are `None`.

    Args:
        num_frames (`int`): Number of frames in the file.
        frame_time_ms (`float`, *optional*):
            Milliseconds since the previous frame. If a file lists them, the entry of this frame, which is 0 for the
            first; otherwise the same for all frames.
        imager_pixel_spacing_mm (`tuple[float, float]`, *optional*): Row and column spacing at the detector.
        pixel_spacing_mm (`tuple[float, float]`, *optional*): Row and column spacing in the patient, if calibrated.
        pixel_spacing_calibration (`str`, *optional*): Calibration method, `"GEOMETRY"` or `"FIDUCIAL"`.
        primary_angle (`float`, *optional*): Positioner angle in degrees, LAO positive, at the start of the cine.
        secondary_angle (`float`, *optional*): Positioner angle in degrees, cranial positive, at the start of the cine.
        window_center (`float`, *optional*): Centre of the first window, in values after the modality transformation.
        window_width (`float`, *optional*): Width of the first window.
        photometric_interpretation (`str`, *optional*): As stored; in the pixels of a frame, 0 is always black.
        modality (`str`, *optional*): Modality, such as `"XA"`.
        rescale_slope (`float`, *optional*): Slope of the modality transformation, already applied.
        rescale_intercept (`float`, *optional*): Intercept of the modality transformation, already applied.
        level_offset (`float`): Offset added after the modality transformation so that no value is negative.
        is_lossy (`bool`, *optional*): Whether the file states that its pixels were compressed lossily.
        patient_id, study_id, series_id (`str`, *optional*): Keyed hashes; `None` without a salt.
    """

    num_frames: int = 1
    frame_time_ms: float | None = None
    imager_pixel_spacing_mm: tuple[float, float] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    pixel_spacing_calibration: str | None = None
    primary_angle: float | None = None
    secondary_angle: float | None = None
    window_center: float | None = None
    window_width: float | None = None
    photometric_interpretation: str | None = None
    modality: str | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    level_offset: float = 0.0
    is_lossy: bool | None = None
    patient_id: str | None = None
    study_id: str | None = None
    series_id: str | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """A grey frame at its original bit depth.

    Args:
        pixels (`np.ndarray` of shape `(height, width)`):
            `uint8` or `uint16`, 0 is black and contrast agent is dark; values from 0 to `2**bits_stored - 1`.
        bits_stored (`int`): Number of bits used for the grey level, 8 to 16.
        index (`int`): Index in the file, from 0.
        metadata (`FrameMetadata`): Metadata of the file.
    """

    pixels: np.ndarray = field(repr=False)
    bits_stored: int
    index: int
    metadata: FrameMetadata


def bits_for(highest: int, bits_stored: int | None) -> int:
    """Bit depth of a cine whose file does not state it: set by the user, or inferred with a warning.

    Args:
        highest (`int`): Maximum value of the cine, >= 0.
        bits_stored (`int`, *optional*): Bit depth given by the user.

    Returns:
        `int`: 8 to 16.

    Raises:
        ValueError: If the values do not fit.

    Example:
        >>> bits_for(1000, 12)
        12
    """
    bits = bits_stored or next((bits for bits in BIT_DEPTHS if not highest >> bits), BIT_DEPTHS[-1])
    if highest >> bits:
        raise ValueError(
            f"levels reach {highest}, which {bits} bits cannot hold (at most {(1 << bits) - 1}). "
            "Pass the true depth as `bits_stored`, or scale the levels to 16 bits."
        )
    if bits_stored is None:
        logger.warning_once(
            f"Bit depth unknown: {bits} bits are assumed, the smallest of {BIT_DEPTHS} that fits the maximum of the "
            "file. Pass the true depth as `bits_stored`."
        )
    return bits


def hashed_id(value: object, kind: str, salt: str | None) -> str | None:
    """Pseudonym of a patient, study or series: HMAC-SHA256 with the user's salt, truncated to 128 bits.

    Args:
        value (`object`): Id in the file; `None` and blank strings are not ids.
        kind (`str`): Kind of id, so that the same number for a patient and a study gives different pseudonyms.
        salt (`str`, *optional*): Key; without one there is no pseudonym.

    Returns:
        `str`: 32 hexadecimal digits, or `None`.

    Example:
        >>> hashed_id("P-1", "patient_id", "secret") == hashed_id(" P-1", "patient_id", "secret")
        True
        >>> hashed_id("P-1", "patient_id", None)
    """
    text = str(value).strip() if value is not None else ""
    if salt is None or not text:
        return None
    return hmac.new(salt.encode(), f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:32]
