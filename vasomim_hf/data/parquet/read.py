"""Crops directly from Parquet shards: no Arrow copy, no cache, a few row groups in memory.

Each row of a shard has a frame and its vessel mask, as image files in the columns `image` and `vesselness`. Row groups
are read as a whole, so a fully random order would read each group a hundred times; [`stream_order`] avoids this.
"""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ...import_utils import require
from ..crops import CROP_SCALE
from ..frame_cache import FrameCacheDataset
from ..locations import HUB_PREFIX, check_location, hub_name, is_on_hub
from ..reading.files import UNREADABLE, FrameReadError, decode_frame
from ..reading.masks import to_mask
from ..sources import BITS_COLUMN
from .folder import find_parquet
from .row_order import BUFFER_ROW_GROUPS, NUM_LANES, StreamOptions, stream_order


if TYPE_CHECKING:
    from pyarrow import ChunkedArray
    from pyarrow.parquet import FileMetaData, ParquetFile

Result = TypeVar("Result")


def find_shards(data: str, split: str = "train") -> dict[str, str]:
    """Find the Parquet files of a split, as `datasets.load_dataset` does.

    Args:
        data (`str`): A Parquet file, a folder of them, or `hf://datasets/OWNER/NAME`, optionally with `@REVISION`.
        split (`str`, defaults to `"train"`): Split; its files are determined by file names and the card.

    Returns:
        `dict[str, str]`: Path or `hf://` URL by name relative to `data`, in the order of the data.

    Raises:
        FileNotFoundError: If the file or folder does not exist.
        ValueError: If the data are not Parquet, or the split does not exist.
    """
    if data.endswith(".parquet") and Path(data).is_file():
        return {Path(data).name: data}
    check_location(data)
    name, revision = hub_name(data) if is_on_hub(data) else (data, None)
    files = find_parquet(name, split, revision=revision)
    return {_short_name(path, data, is_on_hub(data)): path for path in files}


def _short_name(path: str, data: str, is_hub: bool) -> str:
    # hf://datasets/OWNER/NAME@COMMIT/data/train-00000.parquet: same name as in a local copy
    return path.removeprefix(HUB_PREFIX).split("/", 2)[2] if is_hub else os.path.relpath(path, Path(data).resolve())


class _Shard(NamedTuple):
    name: str
    path: str
    size: int
    metadata: "FileMetaData"


class _RowGroup:
    """Encoded frames and masks of a row group, as views of the column buffers."""

    def __init__(
        self, images: list[memoryview | None], masks: list[memoryview | None], bits_stored: list[int | None] | None
    ):
        self.images = images
        self.masks = masks
        self.bits_stored = bits_stored
        self.num_left = len(images)


class ParquetFrames:
    """Frames and vessel masks of Parquet shards by index, with the interface of a `FrameCache`.

    Footers are read immediately, everything else on demand and separately in each process. Row groups stay in memory
    until all of their rows have been read, or too many others have been loaded since.

    Args:
        shards (`dict[str, str]`): Path or URL by file name, from [`find_shards`].
        image_column (`str`, defaults to `"image"`): Column of the frames.
        vesselness_column (`str`, defaults to `"vesselness"`): Column of existing masks, of the size of their frames.
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`to_uint8`]; `None` uses the column
            `bits_stored`, if it exists.
        max_row_groups (`int`, *optional*): Maximum number of row groups in memory per process; `None` is sufficient for
            [`stream_order`] with default options.

    Raises:
        ValueError: If a column is missing, or there are no rows.

    Example:
        >>> frames = ParquetFrames(find_shards("data/xa170k"))  # doctest: +SKIP
        >>> frames.frame(0).shape, frames.vesselness(0).shape  # doctest: +SKIP
        ((512, 512), (512, 512))
    """

    def __init__(
        self,
        shards: dict[str, str],
        image_column: str = "image",
        vesselness_column: str = "vesselness",
        bits_stored: int | None = None,
        max_row_groups: int | None = None,
    ):
        self.bits_stored = bits_stored
        self.max_row_groups = max_row_groups
        self._shards = [_read_footer(name, path) for name, path in shards.items()]
        self.columns = (image_column, vesselness_column)
        self._leaves = [[_leaf(shard, column) for column in self.columns] for shard in self._shards]
        self._states_bits = bits_stored is None and all(_states_bits(shard) for shard in self._shards)
        self._groups = [(n, g) for n, s in enumerate(self._shards) for g in range(s.metadata.num_row_groups)]
        sizes = [self._shards[n].metadata.row_group(g).num_rows for n, g in self._groups]
        self._firsts = np.cumsum([0, *sizes])
        if self._firsts[-1] == 0:
            raise ValueError(f"The Parquet files {sorted(shards)[:3]} have no rows. Check the folder and train_split.")
        self._rows = np.arange(self._firsts[-1])
        self.key = self._key()
        self._forget()

    def _key(self) -> str:
        """Digest of file names, sizes and compressed columns, independent of the location."""
        what: list = [self.columns, self.bits_stored]
        for shard in self._shards:
            groups = [shard.metadata.row_group(g) for g in range(shard.metadata.num_row_groups)]
            packed = [[group.column(i).total_compressed_size for i in range(group.num_columns)] for group in groups]
            what.append([shard.name, shard.size, [group.num_rows for group in groups], packed])
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: dict[int, ParquetFile] = {}
        self._loaded: OrderedDict[int, _RowGroup] = OrderedDict()
        self._last: tuple[int, np.ndarray] | None = None
        self._counted: int | None = None

    def __getstate__(self) -> dict:
        return {
            **self.__dict__,
            "_process": None,
            "_files": {},
            "_loaded": OrderedDict(),
            "_last": None,
            "_counted": None,
        }

    def __len__(self) -> int:
        return len(self._rows)

    def select(self, indices: Sequence[int]) -> "ParquetFrames":
        """The same files with only these rows, in this order."""
        chosen = object.__new__(ParquetFrames)
        chosen.__dict__.update(self.__getstate__())
        chosen._rows = self._rows[list(indices)]
        return chosen

    @property
    def row_groups(self) -> tuple[int, ...]:
        """Number of rows in each consecutive row group, as required by [`stream_order`]."""
        groups = np.searchsorted(self._firsts, self._rows, side="right")
        bounds = np.flatnonzero(np.diff(groups)) + 1
        return tuple(np.diff([0, *bounds, len(groups)]).tolist())

    def name(self, index: int) -> str:
        """File and row of a frame."""
        group, row = self._place(index)
        shard, number = self._groups[group]
        first = self._groups.index((shard, 0))
        return f"{self._shards[shard].name}, row {self._firsts[group] - self._firsts[first] + row}"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        height, width = self._pixels(index).shape
        return height, width

    def frame(self, index: int) -> np.ndarray:
        """A frame of shape `(height, width)`, `uint8`.

        Raises:
            FrameReadError: If the row has no readable frame.
        """
        pixels = self._pixels(index)
        if self._counted != index:
            self._counted = index
            self._count(self._place(index)[0])
        return pixels

    def _pixels(self, index: int) -> np.ndarray:
        if self._last is None or self._last[0] != index:
            # a lambda, because `_decode` first loads the row group with the bit depth
            self._last = (
                index,
                self._decode(index, 0, lambda data: decode_frame(data, "the file", self._bits_stored(index))),
            )
        return self._last[1]

    def vesselness(self, index: int, top: int = 0, height: int | None = None) -> np.ndarray:
        """Vessel mask of a frame, or `height` rows of it from row `top`: `(height, width)`, `uint8`, 0 or 1.

        Raises:
            FrameReadError: If the row has no readable mask, or one of a different size than its frame.
        """
        size = self.size(index)
        rows = slice(top, size[0] if height is None else top + height)
        return self._decode(index, 1, lambda data: to_mask(bytes(data), "of the row", size))[rows].view(np.uint8)

    def _bits_stored(self, index: int) -> int | None:
        group, row = self._place(index)
        stated = self._loaded[group].bits_stored
        return self.bits_stored if stated is None else stated[row]

    def _count(self, group: int) -> None:
        # if each row is read once, as in training, this releases a group early
        self._loaded[group].num_left -= 1
        if self._loaded[group].num_left == 0:
            del self._loaded[group]

    def _decode(self, index: int, column: int, decode: Callable[[memoryview], Result]) -> Result:
        try:
            return decode(self._encoded(index, column))
        except UNREADABLE as error:
            raise FrameReadError(
                f"{self.name(index)}: the column `{self.columns[column]}` cannot be read ({error}). Repair or remove "
                "the row; without `streaming`, unreadable frames are skipped."
            ) from error

    def _place(self, index: int) -> tuple[int, int]:
        row = self._rows[index]
        group = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return group, int(row - self._firsts[group])

    def _encoded(self, index: int, column: int) -> memoryview:
        group, row = self._place(index)
        if self._process != os.getpid():
            # a forked process shares file positions and connections with its parent and must not use them
            self._forget()
        if group not in self._loaded:
            self._loaded[group] = self._load(group)
            while len(self._loaded) > (self.max_row_groups or _usual_row_groups()):
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(group)
        loaded = self._loaded[group]
        data = (loaded.masks if column else loaded.images)[row]
        if data is None:
            raise ValueError("it is empty in this row")
        return data

    def _load(self, group: int) -> _RowGroup:
        shard, number = self._groups[group]
        if shard not in self._files:
            self._files[shard] = _open(self._shards[shard])
        columns = self._leaves[shard] + [BITS_COLUMN] * self._states_bits
        table = self._files[shard].read_row_group(number, columns=columns, use_threads=False)
        images, masks = (_views(table.column(column)) for column in self.columns)
        return _RowGroup(images, masks, table.column(BITS_COLUMN).to_pylist() if self._states_bits else None)


def _usual_row_groups() -> int:
    """Row groups in use at once with [`stream_order`], plus two per lane, since some are finished late."""
    worker = get_worker_info()
    lanes = NUM_LANES if worker is None else NUM_LANES // math.gcd(worker.num_workers, NUM_LANES)
    return lanes * (BUFFER_ROW_GROUPS + 2)


def _read_footer(name: str, path: str) -> _Shard:
    parquet = require("pyarrow.parquet", "data")
    if "://" not in path:
        return _Shard(name, path, os.path.getsize(path), parquet.read_metadata(path))
    with _open_remote(path) as file:
        return _Shard(name, path, file.size, parquet.read_metadata(file))


def _open(shard: _Shard) -> "ParquetFile":
    parquet = require("pyarrow.parquet", "data")
    if "://" not in shard.path:
        return parquet.ParquetFile(shard.path, metadata=shard.metadata, memory_map=True)
    # both columns of a row group are adjacent: one request
    return parquet.ParquetFile(_open_remote(shard.path), metadata=shard.metadata, pre_buffer=True)


def _open_remote(path: str) -> Any:
    file_system, place = require("fsspec.core", "data").url_to_fs(path)
    return file_system.open(place, "rb", cache_type="none")


def _states_bits(shard: _Shard) -> bool:
    schema = shard.metadata.schema.to_arrow_schema()
    return BITS_COLUMN in schema.names and str(schema.field(BITS_COLUMN).type).startswith(("int", "uint"))


def _leaf(shard: _Shard, column: str) -> str:
    """Path of the bytes of a column: at the top level, or inside an `Image` feature."""
    schema = shard.metadata.schema.to_arrow_schema()
    if column not in schema.names:
        raise ValueError(
            f"{shard.name} has no column `{column}`, but {schema.names}. Frames and ready vessel masks are needed: "
            "set image_column and vesselness_column, or train without `streaming`, so that the filter makes the "
            "masks."
        )
    kind = schema.field(column).type
    if str(kind) in ("binary", "large_binary"):
        return column
    if not str(kind).startswith("struct<") or "bytes" not in {kind.field(i).name for i in range(kind.num_fields)}:
        raise ValueError(f"The column `{column}` of {shard.name} holds {kind}, and images were expected.")
    return f"{column}.bytes"


def _views(column: "ChunkedArray") -> list[memoryview | None]:
    """The bytes of each row, without copying."""
    views: list[memoryview | None] = []
    for chunk in column.chunks:
        array = chunk.flatten()[0] if str(chunk.type).startswith("struct<") else chunk
        offset_type = np.int64 if str(array.type) == "large_binary" else np.int32
        _, offsets, values = array.buffers()
        bounds = np.frombuffer(offsets, offset_type)[array.offset : array.offset + len(array) + 1].tolist()
        # pyarrow's bytes are signed, and compare unequal to unsigned ones
        data = memoryview(values if values is not None else b"").cast("B")
        part: list[memoryview | None] = [data[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        if array.null_count:
            part = [view if valid else None for view, valid in zip(part, array.is_valid().to_pylist(), strict=True)]
        views += part
    return views


class ParquetCropStream(torch.utils.data.IterableDataset):
    """Crops of all frames in an order that reads Parquet by row group.

    Loader processes and ranks share the rows without overlap. With `StreamOptions.batch_size` equal to that of the
    `DataLoader`, the batches are the same for any number of loader processes. A crop is a function of `(seed, epoch,
    row)`, equal to that of `FrameCacheDataset` on the same rows.

    Args:
        frames (`ParquetFrames`): Source of the frames.
        size (`tuple[int, int]`): Height and width of the crops in pixels.
        options (`StreamOptions`, *optional*): Rank, batch size, shuffling and seed.
        crop_scale (`tuple[float, float]`, defaults to `(0.2, 1.0)`): Minimum and maximum fraction of the frame's area.
        flip_probability (`float`, defaults to 0.5): Probability of a horizontal flip.

    Example:
        >>> stream = ParquetCropStream(frames, (224, 224), StreamOptions(batch_size=64))  # doctest: +SKIP
        >>> loader = DataLoader(stream, batch_size=64, num_workers=4)  # doctest: +SKIP
        >>> stream.set_epoch(1)  # before each epoch  # doctest: +SKIP
        >>> stream.skip_to(640)  # resume an interrupted epoch  # doctest: +SKIP
    """

    def __init__(
        self,
        frames: ParquetFrames,
        size: tuple[int, int],
        options: StreamOptions | None = None,
        crop_scale: tuple[float, float] = CROP_SCALE,
        flip_probability: float = 0.5,
    ):
        self.frames = frames
        self.options = options or StreamOptions()
        self.crops = FrameCacheDataset(frames, size, self.options.seed, crop_scale, flip_probability)
        self._row_groups = frames.row_groups
        # shared memory, so that persistent loader processes see the next epoch
        self._state = torch.zeros(2, dtype=torch.long).share_memory_()
        self._done = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next iteration."""
        return int(self._state[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which starts at the first row."""
        self._state[0], self._state[1], self._done = epoch, 0, 0

    def skip_to(self, position: int) -> None:
        """Start the next iteration at a position in this rank's sequence, a multiple of the batch size; skips without
        reading.

        Args:
            position (`int`): Number of rows already seen.

        Raises:
            ValueError: If it is not a multiple of the batch size.
        """
        if position < 0 or position % self.options.batch_size:
            raise ValueError(f"Expected a multiple of batch_size={self.options.batch_size}, got {position}.")
        self._state[1], self._done = position, 0

    def state_dict(self) -> dict[str, int]:
        """Position of this copy: in a loader process, that of the process."""
        return {"epoch": self.epoch, "start": int(self._state[1]), "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a [`state_dict`], with the same number of loader processes."""
        self._state[0], self._state[1], self._done = state["epoch"], state["start"], state["done"]

    def __len__(self) -> int:
        """Number of rows of this rank per epoch."""
        return len(stream_order(self._row_groups, self.options, self.epoch))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch = self.epoch
        rows = self._own_rows(epoch)
        for index in rows[self._done :].tolist():
            self._done += 1
            yield self.crops[epoch, index]
        self._done = 0

    def _own_rows(self, epoch: int) -> np.ndarray:
        """Every n-th batch of the sequence, as `DataLoader` requests from this process."""
        order = stream_order(self._row_groups, self.options, epoch)[int(self._state[1]) :]
        worker = get_worker_info()
        if worker is None:
            return order
        batch = np.arange(len(order)) // self.options.batch_size
        return order[batch % worker.num_workers == worker.id]
