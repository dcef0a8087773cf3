"""Sources of frames for training: a folder of files, a list of them, or a `datasets` data set."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..import_utils import require
from .locations import check_location, is_on_hub, is_saved_dataset, load_split
from .reading.files import UNREADABLE, decode_frame, frame_from_image, list_frames, read_frame, scan_folder
from .reading.masks import UnreadableMaskError, to_mask


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

# column of a data set with the bit depth of each frame
BITS_COLUMN = "bits_stored"
# folder names that a frame list may omit: ARCADE's "stenosis/train/10" is stenosis/train/images/10.jpg
SILENT_FOLDERS = ("images",)
# bytes sampled per file to distinguish files with the same name and size
SAMPLE_SIZE = 4096
# formats that end with checksums of their content
CHECKED_SUFFIXES = (".png", ".npz", ".zip")


class FrameSource(Protocol):
    """Frames by index, each with a name and optionally an existing vessel mask."""

    names: list[str]
    description: str

    def __len__(self) -> int: ...

    def signature(self) -> list:
        """JSON-serialisable identification of the frames: equal lists mean equal frames."""
        ...

    def frame(self, index: int) -> np.ndarray:
        """A frame of shape `(height, width)`, `uint8`; raises one of `UNREADABLE` if it cannot be read."""
        ...

    def vesselness(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """Existing mask of shape `size`, `bool`, or `None` if the filter must compute it.

        Raises `MaskError` if it is invalid, and `UnreadableMaskError`, an `OSError`, if it cannot be read.
        """
        ...


class FolderSource:
    """Frames in files below a folder.

    Args:
        folder (`str` or `Path`): Searched recursively for frames; other files are ignored.
        frame_list (`str` or `Path`, *optional*): File with the names of the frames to use, see [`read_frame_list`].
        frame_list_key (`str`, *optional*): Key of the list, if the file is a JSON object.
        masks (`str` or `Path`, *optional*): Folder of existing vessel masks: PNG files with the relative paths of the frames.
            If inside `folder`, its files are not frames.
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`read_frame`].
        leave_out (sequence of paths, *optional*): Folders inside `folder` to exclude, such as output folders of runs.

    Raises:
        ValueError: If a listed frame or a mask is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        frame_list: str | Path | None = None,
        frame_list_key: str | None = None,
        masks: str | Path | None = None,
        bits_stored: int | None = None,
        leave_out: Sequence[str | Path] = (),
    ):
        self.folder = Path(folder)
        self.description = f"folder {folder}"
        self.masks = None if masks is None else Path(masks)
        self.bits_stored = bits_stored
        paths = _without(self.folder, list_frames(self.folder), leave_out)
        if self.masks is not None:
            paths = _without(self.folder, paths, [self.masks])
        if frame_list is not None:
            paths = _choose(self.folder, paths, read_frame_list(frame_list, frame_list_key), str(frame_list))
        self.names = [path.relative_to(self.folder).as_posix() for path in paths]
        if self.masks is not None:
            self._check_masks()

    def __len__(self) -> int:
        return len(self.names)

    def signature(self) -> list:
        """Name, size and a sample of the content of every file; no times, because copying changes them."""
        files: list = [["bits_stored", self.bits_stored]]
        files += [[name, *size_and_sample(self.folder / name)] for name in self.names]
        if self.masks is not None:
            files += [["mask", *size_and_sample(self._mask_path(name))] for name in self.names]
        return files

    def frame(self, index: int) -> np.ndarray:
        """Read a frame."""
        return read_frame(self.folder / self.names[index], self.bits_stored)

    def vesselness(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """Read the existing mask, if there is a mask folder."""
        if self.masks is None:
            return None
        path = self._mask_path(self.names[index])
        return to_mask(path, str(path), size)

    def _mask_path(self, name: str) -> Path:
        return (self.masks / name).with_suffix(".png")

    def _check_masks(self) -> None:
        missing = [name for name in self.names if not self._mask_path(name).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.names)} frames have no mask in {self.masks}; the first missing file is "
                f"{self._mask_path(missing[0])}. A mask must have the relative path of its frame, with suffix .png."
            )


class DatasetSource:
    """Frames in a `datasets` data set.

    Args:
        dataset (`datasets.Dataset`): Data set with an `Image` column.
        image_column (`str`, defaults to `"image"`): Column of the frames.
        vesselness_column (`str`, defaults to `"vesselness"`): Column of existing masks; optional.
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`read_frame`]; `None` uses the column
            `bits_stored`, if it exists.
        description (`str`, defaults to `"dataset"`): Name in messages.

    Raises:
        ValueError: If the image column does not exist.
    """

    def __init__(
        self,
        dataset: "Dataset",
        image_column: str = "image",
        vesselness_column: str = "vesselness",
        bits_stored: int | None = None,
        description: str = "dataset",
    ):
        if image_column not in dataset.column_names:
            raise ValueError(
                f"{description} has no column `{image_column}`, only {dataset.column_names}. Set image_column."
            )
        self.dataset = dataset
        self.image_column = image_column
        self.vesselness_column = vesselness_column if vesselness_column in dataset.column_names else None
        # selected separately, because `datasets` decodes whole rows and a fault in another column must not matter
        self._frames = _encoded(dataset.select_columns([image_column]), image_column)
        self._masks = dataset.select_columns([vesselness_column]) if self.vesselness_column else None
        self.bits_stored = bits_stored
        states_bits = bits_stored is None and BITS_COLUMN in dataset.column_names
        self._bits = dataset.select_columns([BITS_COLUMN]) if states_bits else None
        self.description = description
        self.names = [str(index) for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.names)

    def signature(self) -> list:
        """Fingerprint of the data set and the columns in use."""
        return [self.dataset._fingerprint, len(self), self.image_column, self.vesselness_column, self.bits_stored]

    def frame(self, index: int) -> np.ndarray:
        """Decode a frame."""
        image = self._frames[index][self.image_column]
        if image is None:
            raise ValueError(f"row {index} has no image in the column `{self.image_column}`")
        bits_stored = self.bits_stored if self._bits is None else self._bits[index][BITS_COLUMN]
        name = f"row {index} of {self.description}"
        if not isinstance(image, dict):
            return frame_from_image(image, name, bits_stored)
        if image["bytes"] is not None:
            return decode_frame(image["bytes"], name, bits_stored)
        if image["path"] is None:
            raise ValueError(f"row {index} has no image in the column `{self.image_column}`")
        if "://" not in image["path"]:
            return read_frame(image["path"], bits_stored)
        opened = require("datasets", "data").Image().decode_example(image)
        return frame_from_image(opened, name, bits_stored)

    def vesselness(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """Decode the existing mask, if there is a mask column."""
        if self._masks is None:
            return None
        name = f"in row {index} of {self.description}"
        try:
            mask = self._masks[index][self.vesselness_column]
        except UNREADABLE as error:
            raise _unreadable_mask(name, error) from error
        if mask is None:
            raise _unreadable_mask(name, f"the column `{self.vesselness_column}` is empty in this row")
        return to_mask(mask, name, size)


def _encoded(frames: "Dataset", column: str) -> "Dataset":
    """Disable decoding: in an image decoded by `datasets`, a loss of bit depth can no longer be detected."""
    datasets = require("datasets", "data")
    feature = frames.features[column]
    is_plain = isinstance(feature, datasets.Image) and feature.mode is None and frames.format["type"] is None
    return frames.cast_column(column, datasets.Image(decode=False)) if is_plain else frames


@dataclass(frozen=True)
class SourceOptions:
    """Options of a frame source.

    Args:
        split (`str`, defaults to `"train"`): Split of a data set.
        image_column, vesselness_column (`str`): Columns of a data set, see [`DatasetSource`].
        frame_list, frame_list_key, masks, leave_out (*optional*): For a folder, see [`FolderSource`].
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`read_frame`].
    """

    split: str = "train"
    image_column: str = "image"
    vesselness_column: str = "vesselness"
    frame_list: str | None = None
    frame_list_key: str | None = None
    masks: str | None = None
    leave_out: tuple[str, ...] = ()
    bits_stored: int | None = None


def open_source(data: str, options: SourceOptions | None = None) -> FrameSource:
    """Open the source that `data:` refers to.

    Args:
        data (`str`):
            A folder of frames; a folder written by `save_to_disk`, or one that contains Parquet files and no frames; or
            `hf://datasets/owner/name`, optionally with `@revision`, for a data set on the Hub.
        options (`SourceOptions`, *optional*): Options.

    Returns:
        `FrameSource`: The frames.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If an option does not apply to the kind of source.
    """
    options = options or SourceOptions()
    check_location(data)
    folder = Path(data)
    if not is_on_hub(data) and _is_folder_of_frames(folder, options.leave_out):
        listed = (options.frame_list, options.frame_list_key)
        return FolderSource(folder, *listed, options.masks, options.bits_stored, options.leave_out)
    if options.frame_list is not None or options.masks is not None:
        raise ValueError(
            f"`frame_list` and `masks` apply to a folder of frames, but {data} is a dataset. Filter it beforehand, "
            f"and add masks as the column `{options.vesselness_column}`."
        )
    columns = (options.image_column, options.vesselness_column)
    return DatasetSource(load_split(data, options.split), *columns, options.bits_stored, data)


def _is_folder_of_frames(folder: Path, leave_out: Sequence[str]) -> bool:
    if is_saved_dataset(folder) or folder.is_file():
        return False
    if next(folder.rglob("*.parquet"), None) is None:
        return True
    # a Parquet file next to frames is a table about them
    return bool(_without(folder, scan_folder(folder).frames, leave_out))


def _without(folder: Path, paths: Sequence[Path], leave_out: Sequence[str | Path]) -> list[Path]:
    """Paths below a folder without those in excluded sub-folders; logs the number of excluded ones."""
    root = folder.resolve()
    inside = [path for path in (Path(other).resolve() for other in leave_out) if root in path.parents]
    prefixes = [folder / path.relative_to(root) for path in inside]
    kept = [path for path in paths if not any(path.is_relative_to(prefix) for prefix in prefixes)]
    if len(kept) < len(paths):
        names = ", ".join(str(prefix) for prefix in prefixes)
        logger.info("%d images in %s are not used as frames", len(paths) - len(kept), names)
    return kept


def read_frame_list(path: str | Path, key: str | None = None) -> list[str]:
    """Read the names of frames to use.

    Args:
        path (`str` or `Path`):
            `.json`: a list, or an object with a list under `key`. Otherwise text with one name per line, where `#`
            starts a comment.
        key (`str`, *optional*): Key of the list in a JSON object.

    Returns:
        `list[str]`: Paths relative to the data folder. The suffix may be omitted, as may a folder `images` in between
        (ARCADE's frame `stenosis/train/10` is the file `stenosis/train/images/10.png`).

    Raises:
        ValueError: If the list does not exist or is empty.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        names = _list_in_json(json.loads(text), key, path)
    else:
        names = [line.partition("#")[0].strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{path} names no frames.")
    return names


def _list_in_json(content: object, key: str | None, path: Path) -> list[str]:
    if isinstance(content, dict):
        lists = [k for k, v in content.items() if isinstance(v, list) and all(isinstance(item, str) for item in v)]
        if key not in lists:
            raise ValueError(f"{path} has no list of names {key!r}. Set frame_list_key to one of {lists}.")
        content = content[key]
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise ValueError(f"{path} must contain a list of frame names, or an object with such lists.")
    return content


def _choose(folder: Path, paths: list[Path], names: list[str], list_name: str) -> list[Path]:
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        for name in _spellings(path.relative_to(folder)):
            by_name.setdefault(name, []).append(path)
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(names)} frames in {list_name} are not in {folder}; the first is "
            f"{missing[0]!r}. Names are paths relative to the data folder, with or without suffix."
        )
    ambiguous = next((name for name in names if len(by_name[name]) > 1), None)
    if ambiguous is not None:
        found = ", ".join(str(path) for path in by_name[ambiguous])
        raise ValueError(f"{ambiguous!r} in {list_name} is ambiguous: it matches {found}. Use the full path.")
    return [by_name[name][0] for name in dict.fromkeys(names)]


def _spellings(path: Path) -> set[str]:
    """Names by which a list may refer to a file."""
    short = [part for part in path.with_suffix("").parts[:-1] if part not in SILENT_FOLDERS]
    return {path.as_posix(), path.with_suffix("").as_posix(), Path(*short, path.stem).as_posix()}


def _unreadable_mask(name: str, reason: object) -> UnreadableMaskError:
    return UnreadableMaskError(f"The mask {name} cannot be read: {reason}")


def size_and_sample(path: Path) -> tuple[int, str]:
    """Size and content digest, to distinguish files of the same name.

    For formats that end with a checksum, two samples suffice, which makes large folders fast; all others are read
    completely, since an edited BMP may differ in a few bytes anywhere.

    Args:
        path (`Path`): File.

    Returns:
        `tuple[int, str]`: Size in bytes, and hexadecimal digest.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if Path(path).suffix.lower() not in CHECKED_SUFFIXES:
            return size, hashlib.file_digest(file, "sha256").hexdigest()[:16]
        file.seek(size // 2)
        middle = file.read(SAMPLE_SIZE)
        file.seek(max(0, size - SAMPLE_SIZE))
        return size, hashlib.sha256(middle + file.read()).hexdigest()[:16]
