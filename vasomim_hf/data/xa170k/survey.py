"""The first pass over the frames of XA-170K: every frame is read once, so that a build knows what it will hold.

Sizes, digests and near-duplicate signatures of a fixed range of frames go to a file of their own, so that an interrupted
survey goes on where it was.
"""

import errno
import json
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from tqdm.auto import tqdm

from ...folders import atomic_file
from ...import_utils import require
from ..faults import Fault, FaultReport
from ..frame_digest import frame_digest
from ..near_duplicates import SIGNATURE_SIZE, frame_signature
from ..parquet.png import encode_png
from ..parquet.write import BUILD_NAME, run_jobs
from ..reading.files import UNREADABLE
from .sources import XA170KSource


FRAMES_PER_CHUNK = 500
# A worker process takes about as long to start as this many frames take to survey
MIN_FRAMES_FOR_PROCESSES = 2000

# What becomes of a frame
UNREADABLE_FRAME, FILTERED, READY = 0, 1, 2


@dataclass(frozen=True)
class Survey:
    """What is known of each item of a source.

    Args:
        state (`np.ndarray` of shape `(num_items,)`): `uint8`: 0 cannot be read, 1 the filter makes its mask, 2 it has one.
        sizes (`np.ndarray` of shape `(num_items, 2)`): `int32`, height and width in pixels, 0 where it cannot be read.
        digests (`np.ndarray` of shape `(num_items, 32)`): `uint8`, see [`~frame_digest.frame_digest`].
        signatures (`np.ndarray` of shape `(num_items, SIGNATURE_SIZE)`): `uint8`, see [`~near_duplicates.frame_signature`].
        packed_share (`np.ndarray` of shape `(num_chunks,)`): `float32`, packed bytes for each pixel, of one frame a chunk.
        faults (`tuple[Fault, ...]`): Frames that cannot be read, and masks that are not used.
    """

    state: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray
    signatures: np.ndarray
    packed_share: np.ndarray
    faults: tuple[Fault, ...]

    @property
    def readable(self) -> np.ndarray:
        """Indices of the items that can be read, shape `(num_readable,)`, `int64`, ascending."""
        return np.flatnonzero(self.state != UNREADABLE_FRAME)

    def packed_bytes(self) -> int:
        """About how many bytes the frames take as Parquet, from those that were packed to see."""
        pixels = int(self.sizes.astype(np.int64).prod(axis=1).sum())
        shares = self.packed_share[self.packed_share > 0]
        return int(pixels * float(shares.mean())) if len(shares) else 0


def survey_frames(
    source: XA170KSource, output: Path, key: str, *, num_workers: int | None = None, show_progress: bool = True
) -> Survey:
    """Read every frame of a source once, or what an interrupted survey left to do.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): The frames.
        output (`Path`): Folder of the data set; the survey is in its sub-folder `.build`.
        key (`str`): Digest of the source; without `-`; parts of another survey are not used.
        num_workers (`int`, *optional*): Processes; as many as cores by default.
        show_progress (`bool`, defaults to `True`): Whether a terminal shows a progress bar.

    Returns:
        [`Survey`]: What is known of each item.

    Raises:
        OSError: If a part cannot be written. Finished parts stay, and the next call goes on.
    """
    job = _SurveyJob(source, output / BUILD_NAME, key)
    chunks = range(-(-len(source.items) // FRAMES_PER_CHUNK))
    todo = [chunk for chunk in chunks if job.read(chunk) is None]
    workers = num_workers if len(todo) * FRAMES_PER_CHUNK >= MIN_FRAMES_FOR_PROCESSES else 1
    with tqdm(total=len(source.items), desc="survey", unit="frame", disable=None if show_progress else True) as bar:
        bar.update(sum(len(job.items(chunk)) for chunk in chunks) - sum(len(job.items(chunk)) for chunk in todo))
        for chunk in run_jobs(job, todo, workers):
            bar.update(len(job.items(chunk)))
    return _join([part for chunk in chunks if (part := job.read(chunk)) is not None])


def survey_keys(output: Path) -> set[str]:
    """Keys of the surveys that were begun in a folder.

    Args:
        output (`Path`): Folder of the data set.

    Returns:
        `set[str]`: The keys, at most one if all is well.
    """
    return {path.name.split("-")[1] for path in (output / BUILD_NAME).glob("survey-*.npz")}


@dataclass
class _SurveyJob:
    """Surveys one chunk; sent to every worker once."""

    source: XA170KSource
    folder: Path
    key: str

    def items(self, chunk: int) -> range:
        return range(chunk * FRAMES_PER_CHUNK, min((chunk + 1) * FRAMES_PER_CHUNK, len(self.source.items)))

    def path(self, chunk: int) -> Path:
        return self.folder / f"survey-{self.key}-{chunk:05d}.npz"

    def read(self, chunk: int) -> Survey | None:
        try:
            with np.load(self.path(chunk), allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
        except (*UNREADABLE, BadZipFile):
            return None
        faults = json.loads(content.pop("faults").tobytes())
        return Survey(**content, faults=tuple(Fault(*fault) for fault in faults))

    def __call__(self, chunk: int) -> None:
        part = self._survey(self.items(chunk))
        content = {field.name: getattr(part, field.name) for field in fields(part)}
        content["faults"] = np.frombuffer(json.dumps(part.faults).encode(), dtype=np.uint8)
        with atomic_file(self.path(chunk)) as temporary:
            np.savez(temporary, **content)

    def _survey(self, indices: range) -> Survey:
        part = _empty(len(indices))
        report = FaultReport()
        for row, index in enumerate(indices):
            try:
                self._look_at(index, row, part, report)
            except UNREADABLE as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                report.add(self.source.items[index].name, error)
        return Survey(part.state, part.sizes, part.digests, part.signatures, part.packed_share, tuple(report))

    def _look_at(self, index: int, row: int, part: Survey, report: FaultReport) -> None:
        item = self.source.items[index]
        frame = self.source.read(item)
        part.sizes[row] = frame.shape
        part.digests[row] = np.frombuffer(frame_digest(frame), np.uint8)
        part.signatures[row] = frame_signature(frame)
        if part.packed_share[0] == 0:
            part.packed_share[0] = _packed_size(frame) / frame.size
        part.state[row] = FILTERED
        try:
            if self.source.read_vesselness(item, frame.shape) is not None:
                part.state[row] = READY
        except UNREADABLE as error:
            report.add(item.name, f"{error} Its ready mask is not used, the filter makes one.")


def _empty(num: int) -> Survey:
    return Survey(
        state=np.zeros(num, np.uint8),
        sizes=np.zeros((num, 2), np.int32),
        digests=np.zeros((num, 32), np.uint8),
        signatures=np.zeros((num, SIGNATURE_SIZE), np.uint8),
        packed_share=np.zeros(1, np.float32),
        faults=(),
    )


def _packed_size(frame: np.ndarray) -> int:
    codec = require("pyarrow", "data").Codec("zstd", compression_level=1)
    # and its mask, which is seldom above an eightieth of a byte a pixel
    return len(codec.compress(encode_png(frame))) + frame.size // 80


def _join(parts: list[Survey]) -> Survey:
    arrays = ("state", "sizes", "digests", "signatures", "packed_share")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return Survey(**joined, faults=tuple(fault for part in parts for fault in part.faults))
