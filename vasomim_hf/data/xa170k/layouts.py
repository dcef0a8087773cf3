"""Folder layouts of the four collections of XA-170K: which files are frames or masks, and the ids in their names.

The layouts follow published code that reads the collections. That of SYNTAX is unknown, so all of its images are used.
The only files opened are CADICA's lists of key frames and the array headers of CoronaryDominance's series.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ..faults import FaultReport
from ..reading.files import FrameReadError
from .archives import Store
from .series import count_frames


SOURCES = ("cadica", "syntax", "xcad", "coronarydominance")
# number of frames that the authors of XA-170K used from each collection
KNOWN_COUNTS = {"cadica": 6594, "syntax": 2943, "xcad": 1621, "coronarydominance": 160320}

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# folder names of existing masks; the first one is used in the authors' README
MASK_FOLDERS = ("frangi", "filter_92")
# separates the name of a store from the path inside it
SEPARATOR = "::"

_NUMBERED = r"(?:[ ._-]*(?:v?\d+|main|master|data|dataset))?"
_COLLECTIONS = {
    "cadica": re.compile(rf"cadica{_NUMBERED}"),
    # figshare id, used as download name
    "syntax": re.compile(rf"(?:syntax|25801447){_NUMBERED}"),
    "xcad": re.compile(rf"xcad{_NUMBERED}"),
    "coronarydominance": re.compile(rf"coronary[ _-]?dominance{_NUMBERED}"),
}
# sub-folders that identify a collection if its own folder has another name
_SUBFOLDERS = {
    "cadica": re.compile(r"(?:non)?selectedvideos"),
    "coronarydominance": re.compile(
        r"(?:left|right)_dominance|main_normal|main_others|real_distribution|domain_shift_dataset"
    ),
}
_MASKS = re.compile(rf"({'|'.join(SOURCES)})_({'|'.join(MASK_FOLDERS)})")
_CADICA_FRAME = re.compile(r"(?P<folder>(?:.*/)?(?P<patient>p\d+)/(?P<video>v\d+))/input/(?P<stem>[^/]+)\.\w+", re.I)
_CADICA_LIST = re.compile(r"(?P<folder>(?:.*/)?p\d+/v\d+)/[^/]*selectedframes\.txt", re.I)
_CADICA_STEM = re.compile(r"(p\d+)_(v\d+)_(\d+)", re.I)
_STUDY_FOLDER = re.compile(r"(?:^|/)(Study[^/]*)/", re.I)
_SERIES_STEM = re.compile(r"(?:^|_)(?P<study>Study\d+_[0-9a-z.]+)_[LR]CA_[^_]+[_#-](?P<frame>\d+)$", re.I)
_STUDY_STEM = re.compile(r"(?:^|_)(Study\d+)(?=$|[_.-])", re.I)
_XCAD_TRAINING = re.compile(r"(?:^|/)train/(?:train)?[ _-]?b/", re.I)
_XCAD_PARTS = re.compile(r"(?:^|/)(?:train|test)/", re.I)
_ARCADE = re.compile(r"(?:^|/)annotations/[^/]*\.json$", re.I)


class Ids(NamedTuple):
    """Origin of a frame, see [`FrameItem`]."""

    patient_id: str | None
    study_id: str | None
    frame_index: int | None


@dataclass(frozen=True, slots=True)
class FrameItem:
    """A frame of XA-170K: its origin and the location of its bytes.

    Args:
        source (`str`): One of `SOURCES`.
        name (`str`): Starts with the source; unique, identical on every machine, and the sort key. Frames of a series
            have an index after `#`: `coronarydominance/Left_Dominance/Study00001_1/LCA/3.npz#00012`.
        patient_id (`str`, *optional*): Patient id of the collection, if the path contains it.
        study_id (`str`, *optional*): Study id of the collection, if the path contains it; for CADICA, the video.
        frame_index (`int`, *optional*): Index of the frame in its cine, if the name contains it.
        location (`str`): Store and path inside it, separated by `::`.
    """

    source: str
    name: str
    patient_id: str | None
    study_id: str | None
    frame_index: int | None
    location: str


@dataclass
class Collection:
    """Files of one collection in one store.

    Args:
        source (`str`): One of `SOURCES`.
        files (`dict[str, str]`): Path in the store by path in the collection.
        masks (`dict[str, dict[str, str]]`): For each of `MASK_FOLDERS`, path in the store by path in the folder without
            its suffix.
    """

    source: str
    files: dict[str, str] = field(default_factory=dict)
    masks: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Lister:
    """Lists the frames among the files of a store.

    Args:
        key (`str`): Name of the store in `FrameItem.location`.
        store (`Store`): Store with the files.
        all_cadica_frames (`bool`): Whether CADICA frames other than key frames are included.
        report (`FaultReport`): Collects skipped files.
    """

    key: str
    store: Store
    all_cadica_frames: bool
    report: FaultReport

    def frames(self, collection: Collection) -> Iterator[FrameItem]:
        """Frames of a collection, unsorted.

        Args:
            collection (`Collection`): Files of the collection.

        Yields:
            `FrameItem`: A frame; faults are added to the report.
        """
        if is_arcade(collection):
            self.report.add(
                "syntax", "skipped: its annotations/*.json show that it is ARCADE, which is not part of XA-170K"
            )
            return
        layouts = {"cadica tree": self._cadica, "xcad tree": self._xcad, "series": self._with_series}
        yield from layouts.get(layout_of(collection), self._flat)(collection.source, collection.files)

    def _item(self, source: str, inner: str, path: str, ids: Ids) -> FrameItem:
        return FrameItem(source, f"{source}/{inner}", *ids, f"{self.key}{SEPARATOR}{path}")

    def _flat(self, source: str, files: dict[str, str]) -> Iterator[FrameItem]:
        for inner, path in files.items():
            if is_image(inner):
                yield self._item(source, inner, path, ids_from_name(inner))
            else:
                self.report.add(path, stray_reason(path))

    def _cadica(self, source: str, files: dict[str, str]) -> Iterator[FrameItem]:
        found = {inner: match for inner in files if is_image(inner) and (match := _CADICA_FRAME.fullmatch(inner))}
        frames = {(match["folder"], match["stem"]): inner for inner, match in found.items()}
        chosen = set(frames) if self.all_cadica_frames else self._key_frames(files)
        for folder, stem in sorted(chosen - set(frames)):
            self.report.add(f"{folder}/input/{stem}", "is in the list of key frames, but the image is missing")
        if not self.all_cadica_frames:
            self._without_list({folder for folder, _ in frames}, {folder for folder, _ in chosen})
        for key in chosen & set(frames):
            match = found[frames[key]]
            ids = Ids(match["patient"], f"{match['patient']}_{match['video']}", ids_from_name(match[0]).frame_index)
            yield self._item(source, frames[key], files[frames[key]], ids)

    def _key_frames(self, files: dict[str, str]) -> set[tuple[str, str]]:
        """Video folder and file stem of every listed frame."""
        chosen = set()
        for inner, path in files.items():
            if match := _CADICA_LIST.fullmatch(inner):
                lines = self.store.read(path).decode("utf-8", errors="replace").splitlines()
                names = [line.strip().removesuffix(".png") for line in lines]
                chosen |= {(match["folder"], name) for name in names if name}
        return chosen

    def _without_list(self, videos: set[str], listed: set[str]) -> None:
        # videos without key frames have no list
        for video in sorted(videos - listed):
            if "nonselectedvideos" not in video.lower():
                self.report.add(video, "skipped: its list *_selectedFrames.txt is missing or empty")

    def _xcad(self, source: str, files: dict[str, str]) -> Iterator[FrameItem]:
        # the other images are fractal masks, frames without contrast agent, and the annotated test set
        frames = {inner: path for inner, path in files.items() if _XCAD_TRAINING.search(inner)}
        if not frames:
            self.report.add(source, "has train/ or test/ but no angiograms in train/trainB/")
        yield from self._flat(source, frames)

    def _with_series(self, source: str, files: dict[str, str]) -> Iterator[FrameItem]:
        series = {inner: path for inner, path in files.items() if inner.lower().endswith(".npz")}
        for inner, path in series.items():
            yield from self._series(source, inner, path)
        yield from self._flat(source, {inner: path for inner, path in files.items() if inner not in series})

    def _series(self, source: str, inner: str, path: str) -> Iterator[FrameItem]:
        study = _STUDY_FOLDER.search(inner)
        try:
            number = count_frames(self.store, path)
        except (OSError, FrameReadError) as error:
            self.report.add(path, error)
            return
        for index in range(number):
            ids = Ids(None, study[1] if study else None, index)
            yield self._item(source, f"{inner}#{index:05d}", path, ids)


def layout_of(collection: Collection) -> str:
    """Layout of a collection: `"cadica tree"`, `"xcad tree"`, `"series"` or `"flat"`."""
    kinds: dict[str, tuple[str, Callable[[str], object]]] = {
        "cadica": ("cadica tree", _CADICA_FRAME.fullmatch),
        "xcad": ("xcad tree", _XCAD_PARTS.search),
        "coronarydominance": ("series", lambda inner: inner.lower().endswith(".npz")),
    }
    kind, belongs = kinds.get(collection.source, ("flat", bool))
    return kind if any(belongs(inner) for inner in collection.files) else "flat"


def is_arcade(collection: Collection) -> bool:
    """Whether a folder `syntax` is from ARCADE, which is unrelated to the SYNTAX collection."""
    return collection.source == "syntax" and any(map(_ARCADE.search, collection.files))


def is_image(path: str) -> bool:
    """Whether a path has an image suffix."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def ids_from_name(path: str) -> Ids:
    """Ids contained in the name of a single frame; nothing is guessed.

    Args:
        path (`str`): File name, with or without folders.

    Returns:
        `Ids`: Patient and video for CADICA's `p1_v2_00012.png`; study and frame for names derived from a series path.

    Example:
        >>> ids_from_name("cadica/p1_v2_00012.png")
        Ids(patient_id='p1', study_id='p1_v2', frame_index=12)
        >>> ids_from_name("Left_Dominance_Study00001_1_LCA_3_12.png")
        Ids(patient_id=None, study_id='Study00001_1', frame_index=12)
        >>> ids_from_name("0815.png")
        Ids(patient_id=None, study_id=None, frame_index=None)
    """
    stem = _stem(path.rpartition("/")[2])
    if match := _CADICA_STEM.fullmatch(stem):
        return Ids(match[1], f"{match[1]}_{match[2]}", int(match[3]))
    if match := _SERIES_STEM.search(stem):
        return Ids(None, match["study"], int(match["frame"]))
    # a trailing number may belong to the study or the frame; grouping by study is correct in both cases
    match = _STUDY_STEM.search(stem)
    return Ids(None, match[1] if match else None, None)


def stray_reason(path: str) -> str:
    """Why a file is not a frame, and what to do."""
    if path.lower().endswith(".7z"):
        return f"is a packed archive. Extract it with `7z x {path.rpartition('/')[2]}` and pass the folder"
    return "is an image outside the folders of the collections" if is_image(path) else "is not an image"


def collect(paths: Iterable[str], prefix: str = "") -> tuple[dict[str, Collection], list[str]]:
    """Find the collections in a store by folder names.

    Args:
        paths (iterable of `str`): Files in the store.
        prefix (`str`, defaults to `""`): Path prefix to prepend to all of them, ending in `/`.

    Returns:
        `tuple[dict[str, Collection], list[str]]`: Collections by source, and the files that belong to none.
    """
    found: dict[str, Collection] = {}
    others = []
    for path in paths:
        if not _place(found, f"{prefix}{path}".split("/"), path):
            others.append(path)
    return found, others


def whole(source: str, paths: Iterable[str]) -> Collection:
    """Treat all files of a store as one collection."""
    return Collection(source, {path: path for path in paths})


def source_of(name: str) -> str | None:
    """Collection that the name of a folder or zip refers to, if any."""
    return next((source for source, pattern in _COLLECTIONS.items() if pattern.fullmatch(name.lower())), None)


def _place(found: dict[str, Collection], parts: list[str], path: str) -> bool:
    for depth, part in enumerate(parts[:-1]):
        meaning = _meaning(part)
        if meaning is None:
            continue
        inner = parts[depth if meaning.is_inside else depth + 1 :]
        if meaning.masks is not None:
            folder = _collection_of(found, meaning.source).masks.setdefault(meaning.masks, {})
            folder[mask_key("/".join(inner))] = path
            return True
        while len(inner) > 1 and source_of(inner[0]) == meaning.source:
            inner = inner[1:]
        _collection_of(found, meaning.source).files["/".join(inner)] = path
        return True
    return False


class _Meaning(NamedTuple):
    """Meaning of a folder: its collection, whether it lies inside it, and its entry in `MASK_FOLDERS`."""

    source: str
    is_inside: bool = False
    masks: str | None = None


@lru_cache(maxsize=4096)
def _meaning(folder: str) -> _Meaning | None:
    name = folder.lower()
    if match := _MASKS.fullmatch(name):
        return _Meaning(match[1], masks=match[2])
    if source := source_of(name):
        return _Meaning(source)
    return next((_Meaning(s, is_inside=True) for s, pattern in _SUBFOLDERS.items() if pattern.fullmatch(name)), None)


def _collection_of(found: dict[str, Collection], source: str) -> Collection:
    return found.setdefault(source, Collection(source))


def mask_key(inner: str) -> str:
    """Key that matches masks to frames: the path without its suffix."""
    folder, between, name = inner.rpartition("/")
    return f"{folder}{between}{_stem(name)}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
