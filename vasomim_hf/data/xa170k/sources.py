"""The frames of XA-170K, wherever they are: the authors' zip on the Hub or on disk, that zip unpacked, or the originals.

Nothing is unpacked: a zip is read member by member, a series of frames series by series.
"""

import io
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image

from ..faults import FaultReport
from ..reading.files import UNREADABLE, decode_frame
from ..sources import HUB_PREFIX, mask_from_image
from .archives import BLOCK_SIZE, DamagedArchiveError, FolderStore, Store, ZipStore
from .layouts import (
    BETWEEN,
    KNOWN_COUNTS,
    MASK_FOLDERS,
    SOURCES,
    Collection,
    FrameItem,
    Lister,
    collect,
    layout_of,
    mask_key,
    source_of,
    stray_reason,
    whole,
)
from .series import SeriesReader


__all__ = [
    "AUTHORS_REPOSITORY",
    "KNOWN_COUNTS",
    "SOURCES",
    "FrameItem",
    "XA170KOptions",
    "XA170KSource",
    "open_xa170k_source",
]

logger = logging.getLogger(__name__)

AUTHORS_REPOSITORY = "waha2000huang/XA-170K"
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+?)(?:@(.+))?")


@dataclass(frozen=True)
class XA170KOptions:
    """What may be said about the frames besides where they are.

    Args:
        layout (`str`, *optional*): One of `SOURCES`, where a folder or a zip holds one collection and does not look like
            it, such as a folder of images; `None` finds out by looking.
        sources (`tuple[str, ...]`, *optional*): Which collections are wanted, some of `SOURCES`; others are passed over
            and a wanted one that is missing is reported. `None` takes what is there, and misses none of the four unless
            what is there is a single original.
        all_cadica_frames (`bool`): Whether to take every frame of CADICA, not only the selected key frames.
        use_masks (`bool`): Whether masks in `<source>_frangi` or `<source>_filter_92` beside the frames are used.
        archive (`str`): Name of the zip in a repository of the Hub.
        stream (`bool`): Whether members of a zip on the Hub are read over the network, without downloading the zip.
        cache_dir (`str` or `Path`, *optional*): Where downloads are kept; `None` is the Hub client's own cache.
    """

    layout: str | None = None
    sources: tuple[str, ...] | None = None
    all_cadica_frames: bool = False
    use_masks: bool = True
    archive: str = "xa170k.zip"
    stream: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        named = [name for name in (self.layout, *(self.sources or ())) if name is not None]
        unknown = sorted(set(named) - set(SOURCES))
        if unknown:
            raise ValueError(f"There is no collection {unknown[0]!r} in XA-170K. Name one of {', '.join(SOURCES)}.")


class XA170KSource:
    """Frames of XA-170K and how to read them. It can be pickled: files are opened when something is read.

    Args:
        description (`str`): How messages call it.
        stores (`dict[str, Store]`): Where the bytes are, by the first part of `FrameItem.location`.
        items (`list[FrameItem]`): Sorted by name, every name once.
        masks (`dict[str, str]`): Location of the ready mask by name of the frame.
        report (`FaultReport`): What was found amiss.
    """

    def __init__(
        self,
        description: str,
        stores: dict[str, Store],
        items: list[FrameItem],
        masks: dict[str, str],
        report: FaultReport,
    ):
        self.description = description
        self.items = items
        self.report = report
        self._stores = stores
        self._masks = masks
        self._series = SeriesReader()

    def __len__(self) -> int:
        return len(self.items)

    def signature(self) -> list:
        """What the frames are, as JSON: equal lists mean equal frames, wherever they lie.

        Names, sizes, and check sums of a zip or digests of the content on disk; no times, which a copy changes.
        """
        known: dict[str, list] = {}
        return [self._signature_of(item, known) for item in self.items]

    def _signature_of(self, item: FrameItem, known: dict[str, list]) -> list:
        places = [item.location, *([self._masks[item.name]] if item.name in self._masks else [])]
        for place in places:
            if place not in known:
                known[place] = self._fingerprint(place)
        return [item.name, item.patient_id, item.study_id, item.frame_index, *(known[place] for place in places)]

    def _fingerprint(self, place: str) -> list:
        store, path = self._find(place)
        try:
            return store.fingerprint(path)
        except OSError:
            return ["unreadable"]  # the survey reports it

    def places(self) -> set[str]:
        """Folders of this machine that the frames lie in, which reports leave out."""
        return set().union(*(store.places() for store in self._stores.values()))

    def read(self, item: FrameItem) -> np.ndarray:
        """Read a frame.

        Args:
            item (`FrameItem`): One of `items`.

        Returns:
            `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

        Raises:
            OSError: If its file is gone.
            FrameReadError: If it cannot be read.
        """
        store, path = self._find(item.location)
        if path.lower().endswith(".npz"):
            key = item.location.partition(BETWEEN)[0]
            return self._series.read(key, store, path, int(item.name.rpartition("#")[2]))
        return decode_frame(store.read(path), path)

    def read_vesselness(self, item: FrameItem, size: tuple[int, int]) -> np.ndarray | None:
        """Read the ready vesselness mask of a frame.

        Args:
            item (`FrameItem`): One of `items`.
            size (`tuple[int, int]`): Height and width of the frame.

        Returns:
            `np.ndarray` of shape `size`, `bool`, or `None` where there is none and the filter has to make it.

        Raises:
            ValueError: If it cannot be read or does not fit; the filter has to make it then, too.
        """
        if item.name not in self._masks:
            return None
        store, path = self._find(self._masks[item.name])
        try:
            with Image.open(io.BytesIO(store.read(path))) as image:
                image.load()
                return mask_from_image(image, size, path)
        except ValueError:
            raise
        except UNREADABLE as error:
            raise ValueError(f"The mask {path} cannot be read ({type(error).__name__}: {error}).") from error

    def _find(self, location: str) -> tuple[Store, str]:
        key, _, path = location.partition(BETWEEN)
        return self._stores[key], path


# Finding the frames -------------------------------------------------------------------------------------------------


def open_xa170k_source(source: str | Path, options: XA170KOptions | None = None) -> XA170KSource:
    """Find the frames of XA-170K.

    Known are the zip of the authors (`dataset/{cadica,syntax,xcad,coronarydominance}/*.png`, with another folder around
    them or none) and that zip unpacked, with `<source>_frangi` or `<source>_filter_92` masks beside the frames or not;
    and the originals, together in one folder or one alone, unpacked or as zip: CADICA's tree, XCAD's, the `.npz` series
    of CoronaryDominance, and SYNTAX, whose layout is not known, so that each of its images is taken.

    Args:
        source (`str` or `Path`):
            A folder, a zip, or a repository of the Hub that holds a zip, written `owner/name` or
            `hf://datasets/owner/name`, with `@revision` behind it or not.
        options (`XA170KOptions`, *optional*): What else is known.

    Returns:
        `XA170KSource`: The frames, sorted by name, and what was found amiss.

    Raises:
        FileNotFoundError: If there is no such folder, zip or repository.
        ValueError: If it holds no frame of XA-170K, or is a damaged zip.
    """
    options = options or XA170KOptions()
    search = _Search(str(source), options)
    path = Path(source)
    if path.is_dir():
        search.folder(path)
    elif path.is_file():
        _refuse_packed(path)
        _search_alone(search, path.name, ZipStore(path.resolve()), path.stem)
    else:
        _search_alone(search, "hub", _hub_archive(str(source), options), "")
    return search.result()


def _search_alone(search: "_Search", key: str, store: ZipStore, name: str) -> None:
    try:
        search.archive(key, store, name)
    except DamagedArchiveError as error:
        # This ends up in no report, and where a file on disk is has to be known for it to be removed
        place = f" It is {os.path.realpath(store.path)}." if store.places() else ""
        raise ValueError(f"{error}{place}") from error


def _refuse_packed(path: Path) -> None:
    if path.suffix.lower() == ".7z":
        raise ValueError(f"{path} {stray_reason(path.name)}.")


class _Search:
    """Gathers the frames of one or several stores."""

    def __init__(self, description: str, options: XA170KOptions):
        self.description = description
        self.options = options
        self.stores: dict[str, Store] = {}
        self.collections: list[tuple[str, Collection]] = []
        self.items: dict[str, FrameItem] = {}
        self.masks: dict[str, str] = {}
        self.report = FaultReport()
        self.is_one_whole = False

    def folder(self, root: Path) -> None:
        """Take what is in a folder, and in zips in it."""
        root = root.resolve()
        paths = self._listed("folder", FolderStore(root))
        archives = [path for path in paths if path.lower().endswith(".zip")]
        self._take("folder", [path for path in paths if not path.lower().endswith(".zip")], root.name)
        for path in archives:
            try:
                self.archive(path, ZipStore(root / path), Path(path).stem, f"{path[:-4]}/")
            except (ValueError, OSError) as error:
                self.report.add(path, error)

    def archive(self, key: str, store: ZipStore, name: str, prefix: str = "") -> None:
        """Take what is in a zip; `name` is what it is called, `prefix` the folders that count as standing before it."""
        key = key.replace(BETWEEN, "__")
        self._take(key, self._listed(key, store), name, prefix)

    def _listed(self, key: str, store: Store) -> list[str]:
        self.stores[key] = store
        listing = store.listing()
        self.report.extend(listing.faults)
        if listing.hidden:
            some = f"{len(listing.hidden)} files of the operating system or hidden ones are passed over"
            self.report.add(sorted(listing.hidden)[0], some)
        return sorted(listing.paths)

    def _take(self, key: str, paths: list[str], name: str, prefix: str = "") -> None:
        found, strays = self._collect(paths, name, prefix)
        for path in strays:
            self.report.add(path, stray_reason(path))
        for source in SOURCES:
            if source in found and source in (self.options.sources or SOURCES):
                self._take_collection(key, found[source])

    def _collect(self, paths: list[str], name: str, prefix: str) -> tuple[dict[str, Collection], list[str]]:
        found, strays = collect(paths, prefix)
        layout = self.options.layout
        if layout in found:
            return {layout: found[layout]}, strays
        source = layout or source_of(name)
        if source is None or (found and layout is None):
            # Tables beside an original that is alone
            known = set(found) == {source}
            return found, [path for path in strays if not known or path.lower().endswith(".7z")]
        self.is_one_whole = True
        return {source: whole(source, paths)}, []

    def _take_collection(self, key: str, collection: Collection) -> None:
        lister = Lister(key, self.stores[key], self.options.all_cadica_frames, self.report)
        self.collections.append((key, collection))
        frames = sorted(lister.frames(collection), key=lambda item: (item.name, item.location))
        if frames and all(item.name in self.items for item in frames):
            self.report.add(key, f"left out: its {len(frames)} frames of {collection.source} were found elsewhere")
            return
        taken = {name.casefold(): name for name in self.items}
        for item in frames:
            other = taken.setdefault(item.name.casefold(), item.name)
            if item.name in self.items or other != item.name:
                self.report.add(
                    item.location, f"left out: {other} has the same name, or one that differs in case only"
                )
            else:
                self.items[item.name] = item
        if self.options.use_masks and collection.masks:
            self._take_masks(key, collection, frames)

    def _take_masks(self, key: str, collection: Collection, frames: Iterable[FrameItem]) -> None:
        source, folders = collection.source, " or ".join(f"{collection.source}_{name}" for name in collection.masks)
        by_key = {
            inner: path for name in reversed(MASK_FOLDERS) for inner, path in collection.masks.get(name, {}).items()
        }
        for item in frames:
            path = by_key.pop(mask_key(item.name.removeprefix(f"{source}/")), None)
            if path is None:
                self.report.add(item.name, f"has no mask in {folders}, so that the filter makes it")
            else:
                self.masks[item.name] = f"{key}{BETWEEN}{path}"
        for path in by_key.values():
            self.report.add(path, "is a mask without a frame")

    def result(self) -> XA170KSource:
        """What was found.

        Returns:
            `XA170KSource`: The frames.

        Raises:
            ValueError: If there is none.
        """
        self._say_what_is_missing()
        if not self.items:
            raise ValueError(
                f"{self.description} holds no frame of XA-170K. Expected folders {', '.join(SOURCES)} with images, or the "
                "originals of these collections; for a folder of images that has another name say which collection it is "
                f"with `layout`. Found amiss: {self.report or 'nothing'}."
            )
        items = sorted(self.items.values(), key=lambda item: item.name)
        return XA170KSource(self.description, self.stores, items, self.masks, self.report)

    def _say_what_is_missing(self) -> None:
        found = {item.source for item in self.items.values()}
        layouts = {layout_of(collection) for _, collection in self.collections}
        is_original = self.is_one_whole or bool(layouts - {"flat"})
        expected = self.options.sources or (tuple(found) if len(found) == 1 and is_original else SOURCES)
        for source in expected:
            if source not in found:
                self.report.add(source, f"is missing: {KNOWN_COUNTS[source]} frames were expected")
        if is_original and "syntax" in found:
            logger.warning(
                "%s: the layout of SYNTAX is not known, so that each of its images is taken", self.description
            )


# The Hub ------------------------------------------------------------------------------------------------------------


def _hub_archive(source: str, options: XA170KOptions) -> ZipStore:
    found = _REPOSITORY.fullmatch(source.removeprefix(HUB_PREFIX))
    if found is None:
        raise FileNotFoundError(
            f"There is no folder and no zip {source}. For a repository of the Hub write owner/name or "
            f"{HUB_PREFIX}owner/name, such as {AUTHORS_REPOSITORY}."
        )
    repository, revision = found[1], found[2]
    try:
        return (_streamed if options.stream else _downloaded)(repository, revision, options)
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{source} is not here, and the Hub cannot be asked ({error}).") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is no folder or zip here, and the Hub has no {options.archive} in a dataset {repository} "
            f"{f'at {revision} ' if revision else ''}({type(error).__name__}: {error}). Check the name; another name of "
            "the zip is given as `archive`. Parquet files are read with `datasets.load_dataset`."
        ) from error


def _downloaded(repository: str, revision: str | None, options: XA170KOptions) -> ZipStore:
    return ZipStore(
        hf_hub_download(
            repository, options.archive, repo_type="dataset", revision=revision, cache_dir=options.cache_dir
        )
    )


def _streamed(repository: str, revision: str | None, options: XA170KOptions) -> ZipStore:
    # The commit, so that every process reads the same one
    commit = HfApi().dataset_info(repository, revision=revision).sha
    path = f"{HUB_PREFIX}{repository}@{commit}/{options.archive}"
    opener = partial(_open_on_hub, path.removeprefix("hf://"))
    opener().close()
    return ZipStore(path, opener)


def _open_on_hub(path: str) -> BinaryIO:
    return HfFileSystem().open(path, block_size=BLOCK_SIZE)
