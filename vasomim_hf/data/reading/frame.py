"""What a frame is, whatever kind of file it comes from: grey levels, their bit depth and what is known of the run."""

import hashlib
import hmac
from dataclasses import dataclass, field

import numpy as np
from transformers.utils import logging

from ...image_processing_reading import BIT_DEPTHS


logger = logging.get_logger(__name__)


class FrameReadError(ValueError):
    """A file cannot be read as a frame; the message names it, what was found and what to do."""


@dataclass(frozen=True)
class ReadOptions:
    """How frames are read.

    Args:
        bits_stored (`int`, *optional*):
            Bits that carry the grey level in 16-bit images and NPZ arrays, 8 to 16. `None` takes the smallest of 8, 10,
            12, 14 and 16 that holds the largest level of the file. DICOM files state it themselves and ignore this.
        salt (`str`, *optional*):
            Your own secret, the key of the hashes that stand for patient, study and series. The same salt gives the same
            ids in every run. `None` leaves the three out: nothing stable can be said of a patient without a secret,
            since anyone can hash a list of patient numbers. Take 16 random characters or more.
        apply_window (`bool`, *optional*, defaults to `False`):
            Apply the VOI lookup table or window of a DICOM file. Off, because the image processor scales by bit depth
            and a window throws grey levels away.
        modalities (`tuple[str, ...]`, *optional*, defaults to `("XA",)`):
            DICOM modalities that are read; another one is an error. `None` reads all.
        allow_burned_in (`bool`, *optional*, defaults to `False`):
            Read DICOM files that say of themselves that a patient can be recognised from text in the picture.
        npz_key (`str`, *optional*):
            Array of an NPZ file that holds the frames. `None` takes `pixel_array`, else the only array of two or three
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
    """What a file says of a frame and its run. Nothing here identifies a patient; what is unknown is `None`.

    Args:
        num_frames (`int`): Frames in the file.
        frame_time_ms (`float`, *optional*):
            Milliseconds from the frame before to this one. Where a file lists them, the entry of this frame, which is 0
            for the first; else the same for all frames.
        imager_pixel_spacing_mm (`tuple[float, float]`, *optional*): Distance of rows and of columns at the detector.
        pixel_spacing_mm (`tuple[float, float]`, *optional*): The same in the patient, where the file is calibrated.
        pixel_spacing_calibration (`str`, *optional*): How it was calibrated, `"GEOMETRY"` or `"FIDUCIAL"`.
        primary_angle (`float`, *optional*): Positioner angle in degrees, LAO positive, at the start of the run.
        secondary_angle (`float`, *optional*): Positioner angle in degrees, cranial positive, at the start of the run.
        window_center (`float`, *optional*): Centre of the first window, in levels after the modality transformation.
        window_width (`float`, *optional*): Width of the first window.
        photometric_interpretation (`str`, *optional*): As stored; the levels of a frame are always black = 0.
        modality (`str`, *optional*): Such as `"XA"`.
        rescale_slope (`float`, *optional*): Of the modality transformation, applied already.
        rescale_intercept (`float`, *optional*): The same.
        level_offset (`float`): What was added to the levels after the modality transformation to have none below zero.
        is_lossy (`bool`, *optional*): Whether the file says that its pixels went through lossy compression.
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
    """One grey frame, not scaled.

    Args:
        pixels (`np.ndarray` of shape `(height, width)`):
            `uint8` or `uint16`, 0 is black and contrast agent is dark; levels 0 to `2**bits_stored - 1`.
        bits_stored (`int`): Bits that carry the grey level, 8 to 16.
        index (`int`): Place in the file, from 0.
        metadata (`FrameMetadata`): What else the file says.
    """

    pixels: np.ndarray = field(repr=False)
    bits_stored: int
    index: int
    metadata: FrameMetadata


def bits_for(highest: int, bits_stored: int | None) -> int:
    """Bit depth of a run whose file does not state it: as the user says, else inferred with a log line.

    Args:
        highest (`int`): Largest level of the run, >= 0.
        bits_stored (`int`, *optional*): What the user says.

    Returns:
        `int`: 8 to 16.

    Raises:
        ValueError: If the levels do not fit.

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
            f"Bit depth unknown: {bits} bits are assumed, the smallest of {BIT_DEPTHS} that hold the levels of the file. "
            "Pass the true depth as `bits_stored`."
        )
    return bits


def hashed_id(value: object, kind: str, salt: str | None) -> str | None:
    """What stands for a patient, a study or a series: HMAC-SHA256 under the user's salt, of which 128 bits are kept.

    Args:
        value (`object`): Id in the file; `None` and blanks are no id.
        kind (`str`): What it identifies, so that the same number of a patient and a study gives two ids.
        salt (`str`, *optional*): The key; without one there is no id.

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
