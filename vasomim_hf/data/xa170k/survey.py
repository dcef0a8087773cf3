"""First pass over the frames of XA-170K, which collects the information that a build needs in advance.

Sizes, digests and near-duplicate signatures are saved in one file per range of frames, so an interrupted survey can
resume.
"""

import errno
import json
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ...folders import atomic_file
from ...import_utils import require
from ...progress import Progress
from ..faults import Fault, FaultReport
from ..frame_digest import frame_digest
from ..near_duplicates import SIGNATURE_SIZE, frame_signature
from ..parquet.png import encode_png
from ..parquet.write import BUILD_NAME, run_jobs
from ..reading.files import UNREADABLE
from .sources import XA170KSource


FRAMES_PER_CHUNK = 500
# starting a worker process takes about as long as surveying this many frames
MIN_FRAMES_FOR_PROCESSES = 2000

# states of a frame
UNREADABLE_FRAME, FILTERED, READY = 0, 1, 2


@dataclass(frozen=True)
class Survey:
    """Properties of the items of a source.

    Args:
        state (`np.ndarray` of shape `(num_items,)`): `uint8`: 0 unreadable, 1 needs a mask from the filter, 2 has a mask.
        sizes (`np.ndarray` of shape `(num_items, 2)`): `int32`, height and width in pixels, 0 if unreadable.
        digests (`np.ndarray` of shape `(num_items, 32)`): `uint8`, see [`~frame_digest.frame_digest`].
        signatures (`np.ndarray` of shape `(num_items, SIGNATURE_SIZE)`): `uint8`, see [`~near_duplicates.frame_signature`].
        packed_share (`np.ndarray` of shape `(num_chunks,)`): `float32`, compressed bytes per pixel, sampled once per chunk.
        faults (`tuple[Fault, ...]`): Unreadable frames and unused masks.
    """

    state: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray
    signatures: np.ndarray
    packed_share: np.ndarray
    faults: tuple[Fault, ...]

    @property
    def readable(self) -> np.ndarray:
        """Indices of the readable items, shape `(num_readable,)`, `int64`, ascending."""
        return np.flatnonzero(self.state != UNREADABLE_FRAME)

    def packed_bytes(self) -> int:
        """Estimated size of the frames as Parquet, from the sampled compression."""
        pixels = int(self.sizes.astype(np.int64).prod(axis=1).sum())
        shares = self.packed_share[self.packed_share > 0]
        return int(pixels * float(shares.mean())) if len(shares) else 0


def survey_frames(
    source: XA170KSource, output: Path, key: str, *, num_workers: int | None = None, show_progress: bool = True
) -> Survey:
    """Read every frame of a source once; resumes an interrupted survey.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): Frames.
        output (`Path`): Folder of the data set; the survey is in its sub-folder `.build`.
        key (`str`): Digest of the source, without `-`; files of other surveys are ignored.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar in a terminal.

    Returns:
        [`Survey`]: Properties of each item.

    Raises:
        OSError: If a file cannot be written. Finished files stay, and the next call resumes.
    """
    job = _SurveyJob(source, output / BUILD_NAME, key)
    chunks = range(-(-len(source.items) // FRAMES_PER_CHUNK))
    todo = [chunk for chunk in chunks if job.read(chunk) is None]
    workers = num_workers if len(todo) * FRAMES_PER_CHUNK >= MIN_FRAMES_FOR_PROCESSES else 1
    with Progress(what="survey", total=len(source.items), is_shown=show_progress) as bar:
        bar.update(sum(len(job.items(chunk)) for chunk in chunks) - sum(len(job.items(chunk)) for chunk in todo))
        for chunk in run_jobs(job, todo, workers):
            bar.update(len(job.items(chunk)))
    return _join([part for chunk in chunks if (part := job.read(chunk)) is not None])


def survey_keys(output: Path) -> set[str]:
    """Keys of the surveys started in a folder.

    Args:
        output (`Path`): Folder of the data set.

    Returns:
        `set[str]`: Keys; normally at most one.
    """
    return {path.name.split("-")[1] for path in (output / BUILD_NAME).glob("survey-*.npz")}


@dataclass
class _SurveyJob:
    """Surveys one chunk; sent to each worker once."""

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
                self._survey_frame(index, row, part, report)
            except UNREADABLE as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                report.add(self.source.items[index].name, error)
        return Survey(part.state, part.sizes, part.digests, part.signatures, part.packed_share, tuple(report))

    def _survey_frame(self, index: int, row: int, part: Survey, report: FaultReport) -> None:
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
            report.add(item.name, f"{error} Its existing mask is not used; the filter computes one.")


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
    # plus the mask, which rarely exceeds 1/80 byte per pixel
    return len(codec.compress(encode_png(frame))) + frame.size // 80


def _join(parts: list[Survey]) -> Survey:
    arrays = ("state", "sizes", "digests", "signatures", "packed_share")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return Survey(**joined, faults=tuple(fault for part in parts for fault in part.faults))
