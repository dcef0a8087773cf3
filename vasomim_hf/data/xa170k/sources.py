"""Sources of the frames of XA-170K: the authors' zip on the Hub or on disk, that zip extracted, or the originals.

Nothing is extracted: members of a zip are read one at a time, as are series of frames.
"""

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

from ..faults import FaultReport
from ..locations import HUB_PREFIX
from ..reading.files import decode_frame
from ..reading.masks import to_mask
from .archives import BLOCK_SIZE, DamagedArchiveError, FolderStore, Store, ZipStore
from .layouts import (
    KNOWN_COUNTS,
    MASK_FOLDERS,
    SEPARATOR,
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
    """Options for finding and reading the frames.

    Args:
        layout (`str`, *optional*): One of `SOURCES`, for a folder or zip with a single collection that cannot be recognised,
            such as a plain folder of images; `None` detects it.
        sources (`tuple[str, ...]`, *optional*): Collections to use, some of `SOURCES`; missing ones are reported. `None`
            uses all that are found, and expects all four unless the source is a single original collection.
        all_cadica_frames (`bool`): Whether to use every frame of CADICA instead of the selected key frames.
        use_masks (`bool`): Whether to use existing masks in `<source>_frangi` or `<source>_filter_92` next to the frames.
        archive (`str`): Name of the zip in a Hub repository.
        stream (`bool`): Whether to read a zip on the Hub over the network instead of downloading it.
        cache_dir (`str` or `Path`, *optional*): Folder for downloads; `None` is the cache of the Hub client.
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
            raise ValueError(f"XA-170K has no collection {unknown[0]!r}. Choose from {', '.join(SOURCES)}.")


class XA170KSource:
    """Frames of XA-170K and how to read them. Picklable: files are opened on first access.

    Args:
        description (`str`): Name for messages.
        stores (`dict[str, Store]`): Stores by the first part of `FrameItem.location`.
        items (`list[FrameItem]`): Sorted by name, without duplicates.
        masks (`dict[str, str]`): Location of the existing mask by frame name.
        report (`FaultReport`): Faults found so far.
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
        """Identification of the frames, JSON-serialisable: equal lists mean equal frames, wherever they are stored.

        Contains names, sizes, and checksums of a zip or digests of files on disk; no times, because copying changes them.
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
        """Local folders of the frames, removed from reports."""
        return set().union(*(store.places() for store in self._stores.values()))

    def read(self, item: FrameItem) -> np.ndarray:
        """Read a frame.

        Args:
            item (`FrameItem`): One of `items`.

        Returns:
            `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

        Raises:
            OSError: If its file no longer exists.
            FrameReadError: If it cannot be read.
        """
        store, path = self._find(item.location)
        if path.lower().endswith(".npz"):
            key = item.location.partition(SEPARATOR)[0]
            return self._series.read(key, store, path, int(item.name.rpartition("#")[2]))
        return decode_frame(store.read(path), path)

    def read_vesselness(self, item: FrameItem, size: tuple[int, int]) -> np.ndarray | None:
        """Read the existing vesselness mask of a frame.

        Args:
            item (`FrameItem`): One of `items`.
            size (`tuple[int, int]`): Height and width of the frame.

        Returns:
            `np.ndarray` of shape `size`, `bool`, or `None` if there is none and the filter must compute it.

        Raises:
            MaskError: If it cannot be read or does not match; the filter must then compute it.
        """
        if item.name not in self._masks:
            return None
        store, path = self._find(self._masks[item.name])
        return to_mask(store.read(path), path, size)

    def _find(self, location: str) -> tuple[Store, str]:
        key, _, path = location.partition(SEPARATOR)
        return self._stores[key], path


# Finding the frames
# ---------------------------------------------------------------------------------------------------


def open_xa170k_source(source: str | Path, options: XA170KOptions | None = None) -> XA170KSource:
    """Find the frames of XA-170K.

    Supported are the authors' zip (`dataset/{cadica,syntax,xcad,coronarydominance}/*.png`, with or without an outer folder)
    and that zip extracted, with or without `<source>_frangi` or `<source>_filter_92` masks next to the frames; and the
    originals, in one folder or alone, extracted or as zip: the folder trees of CADICA and XCAD, the `.npz` series of
    CoronaryDominance, and SYNTAX, whose layout is unknown, so all of its images are used.

    Args:
        source (`str` or `Path`):
            A folder, a zip, or a Hub repository that contains a zip, as `owner/name` or `hf://datasets/owner/name`,
            optionally with `@revision`.
        options (`XA170KOptions`, *optional*): Options for finding the frames.

    Returns:
        `XA170KSource`: Frames, sorted by name, and faults.

    Raises:
        FileNotFoundError: If the folder, zip or repository does not exist.
        ValueError: If it contains no frames of XA-170K, or is a damaged zip.
    """
    options = options or XA170KOptions()
    search = _Search(str(source), options)
    path = Path(source)
    if path.is_dir():
        search.folder(path)
    elif path.is_file():
        _check_not_packed(path)
        _search_alone(search, path.name, ZipStore(path.resolve()), path.stem)
    else:
        _search_alone(search, "hub", _hub_archive(str(source), options), "")
    return search.result()


def _search_alone(search: "_Search", key: str, store: ZipStore, name: str) -> None:
    try:
        search.archive(key, store, name)
    except DamagedArchiveError as error:
        # unlike reports, this error is not published, and the user needs the path to delete the file
        place = f" Path: {os.path.realpath(store.path)}." if store.places() else ""
        raise ValueError(f"{error}{place}") from error


def _check_not_packed(path: Path) -> None:
    if path.suffix.lower() == ".7z":
        raise ValueError(f"{path} {stray_reason(path.name)}.")


class _Search:
    """Collects frames from one or more stores."""

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
        """Add the contents of a folder and of zips in it."""
        root = root.resolve()
        paths = self._listed("folder", FolderStore(root))
        archives = [path for path in paths if path.lower().endswith(".zip")]
        self._add("folder", [path for path in paths if not path.lower().endswith(".zip")], root.name)
        for path in archives:
            try:
                self.archive(path, ZipStore(root / path), Path(path).stem, f"{path[:-4]}/")
            except (ValueError, OSError) as error:
                self.report.add(path, error)

    def archive(self, key: str, store: ZipStore, name: str, prefix: str = "") -> None:
        """Add the contents of a zip; `name` is its display name, `prefix` a path prefix for its members."""
        key = key.replace(SEPARATOR, "__")
        self._add(key, self._listed(key, store), name, prefix)

    def _listed(self, key: str, store: Store) -> list[str]:
        self.stores[key] = store
        listing = store.listing()
        self.report.extend(listing.faults)
        if listing.hidden:
            some = f"{len(listing.hidden)} hidden files or files of the operating system are ignored"
            self.report.add(sorted(listing.hidden)[0], some)
        return sorted(listing.paths)

    def _add(self, key: str, paths: list[str], name: str, prefix: str = "") -> None:
        found, strays = self._collect(paths, name, prefix)
        for path in strays:
            self.report.add(path, stray_reason(path))
        for source in SOURCES:
            if source in found and source in (self.options.sources or SOURCES):
                self._add_collection(key, found[source])

    def _collect(self, paths: list[str], name: str, prefix: str) -> tuple[dict[str, Collection], list[str]]:
        found, strays = collect(paths, prefix)
        layout = self.options.layout
        if layout in found:
            return {layout: found[layout]}, strays
        source = layout or source_of(name)
        if source is None or (found and layout is None):
            # tables that accompany a single original collection
            known = set(found) == {source}
            return found, [path for path in strays if not known or path.lower().endswith(".7z")]
        self.is_one_whole = True
        return {source: whole(source, paths)}, []

    def _add_collection(self, key: str, collection: Collection) -> None:
        lister = Lister(key, self.stores[key], self.options.all_cadica_frames, self.report)
        self.collections.append((key, collection))
        frames = sorted(lister.frames(collection), key=lambda item: (item.name, item.location))
        if frames and all(item.name in self.items for item in frames):
            self.report.add(key, f"skipped: its {len(frames)} frames of {collection.source} were found elsewhere")
            return
        taken = {name.casefold(): name for name in self.items}
        for item in frames:
            other = taken.setdefault(item.name.casefold(), item.name)
            if item.name in self.items or other != item.name:
                self.report.add(item.location, f"skipped: {other} has the same name, or one that differs only in case")
            else:
                self.items[item.name] = item
        if self.options.use_masks and collection.masks:
            self._add_masks(key, collection, frames)

    def _add_masks(self, key: str, collection: Collection, frames: Iterable[FrameItem]) -> None:
        source, folders = collection.source, " or ".join(f"{collection.source}_{name}" for name in collection.masks)
        by_key = {
            inner: path for name in reversed(MASK_FOLDERS) for inner, path in collection.masks.get(name, {}).items()
        }
        for item in frames:
            path = by_key.pop(mask_key(item.name.removeprefix(f"{source}/")), None)
            if path is None:
                self.report.add(item.name, f"has no mask in {folders}; the filter computes it")
            else:
                self.masks[item.name] = f"{key}{SEPARATOR}{path}"
        for path in by_key.values():
            self.report.add(path, "is a mask without a frame")

    def result(self) -> XA170KSource:
        """Create the source from all collected frames.

        Returns:
            `XA170KSource`: Frames.

        Raises:
            ValueError: If there are none.
        """
        self._report_missing()
        if not self.items:
            raise ValueError(
                f"{self.description} contains no frames of XA-170K. Expected folders {', '.join(SOURCES)} with "
                "images, or the originals of these collections; for a folder of images with another name, specify "
                f"the collection with `layout`. Faults: {self.report or 'none'}."
            )
        items = sorted(self.items.values(), key=lambda item: item.name)
        return XA170KSource(self.description, self.stores, items, self.masks, self.report)

    def _report_missing(self) -> None:
        found = {item.source for item in self.items.values()}
        layouts = {layout_of(collection) for _, collection in self.collections}
        is_original = self.is_one_whole or bool(layouts - {"flat"})
        expected = self.options.sources or (tuple(found) if len(found) == 1 and is_original else SOURCES)
        for source in expected:
            if source not in found:
                self.report.add(source, f"is missing: expected {KNOWN_COUNTS[source]} frames")
        if is_original and "syntax" in found:
            logger.warning("%s: the layout of SYNTAX is unknown, so all of its images are used", self.description)


# Hub
# ------------------------------------------------------------------------------------------------------------------


def _hub_archive(source: str, options: XA170KOptions) -> ZipStore:
    found = _REPOSITORY.fullmatch(source.removeprefix(HUB_PREFIX))
    if found is None:
        raise FileNotFoundError(
            f"{source} is not an existing folder or zip. For a Hub repository use owner/name or "
            f"{HUB_PREFIX}owner/name, for example {AUTHORS_REPOSITORY}."
        )
    repository, revision = found[1], found[2]
    try:
        return (_streamed if options.stream else _downloaded)(repository, revision, options)
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{source} does not exist locally, and the Hub cannot be reached ({error})."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is not a local folder or zip, and the Hub has no {options.archive} in a dataset {repository} "
            f"{f'at {revision} ' if revision else ''}({type(error).__name__}: {error}). Check the name; if the zip "
            "has another name, pass it as `archive`. Load Parquet files with `datasets.load_dataset`."
        ) from error


def _downloaded(repository: str, revision: str | None, options: XA170KOptions) -> ZipStore:
    return ZipStore(
        hf_hub_download(
            repository, options.archive, repo_type="dataset", revision=revision, cache_dir=options.cache_dir
        )
    )


def _streamed(repository: str, revision: str | None, options: XA170KOptions) -> ZipStore:
    # pinned to a commit, so every process reads the same version
    commit = HfApi().dataset_info(repository, revision=revision).sha
    path = f"{HUB_PREFIX}{repository}@{commit}/{options.archive}"
    opener = partial(_open_on_hub, path.removeprefix("hf://"))
    opener().close()
    return ZipStore(path, opener)


def _open_on_hub(path: str) -> BinaryIO:
    return HfFileSystem().open(path, block_size=BLOCK_SIZE)
