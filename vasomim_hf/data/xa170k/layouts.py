"""How the four collections of XA-170K lie on a disk or in an archive: which files are frames, of what, and masks of them.

Layouts as published readers of the collections describe them; that of SYNTAX is not known, so that every image counts.
Nothing is opened here but CADICA's lists of key frames and the heads of CoronaryDominance's series.
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
# Frames that the authors of XA-170K took from each collection
KNOWN_COUNTS = {"cadica": 6594, "syntax": 2943, "xcad": 1621, "coronarydominance": 160320}

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Ready masks lie beside the frames under either name; the first one is that of the authors' README
MASK_FOLDERS = ("frangi", "filter_92")
# Between the name of a store and the path inside it
BETWEEN = "::"

_NUMBERED = r"(?:[ ._-]*(?:v?\d+|main|master|data|dataset))?"
_COLLECTIONS = {
    "cadica": re.compile(rf"cadica{_NUMBERED}"),
    # a number of figshare, which names a download
    "syntax": re.compile(rf"(?:syntax|25801447){_NUMBERED}"),
    "xcad": re.compile(rf"xcad{_NUMBERED}"),
    "coronarydominance": re.compile(rf"coronary[ _-]?dominance{_NUMBERED}"),
}
# Folders inside a collection by which it is known where the folder around them has another name
_INSIDE = {
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
    """What is known of where a frame comes from, see [`FrameItem`]."""

    patient_id: str | None
    study_id: str | None
    frame_index: int | None


@dataclass(frozen=True, slots=True)
class FrameItem:
    """One frame of XA-170K: where it comes from and where its bytes are.

    Args:
        source (`str`): One of `SOURCES`.
        name (`str`): Begins with the source; unique, the same on every machine, and the key of the order. Frames of a
            series have a number behind `#`: `coronarydominance/Left_Dominance/Study00001_1/LCA/3.npz#00012`.
        patient_id (`str`, *optional*): As the collection calls the patient, where a path tells.
        study_id (`str`, *optional*): As the collection calls the study, where a path tells; of CADICA it is the video.
        frame_index (`int`, *optional*): Number of the frame in its run, where a name tells.
        location (`str`): Store and path inside it, with `::` between them.
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
        files (`dict[str, str]`): Path in the store by path inside the collection.
        masks (`dict[str, dict[str, str]]`): For each of `MASK_FOLDERS`, path in the store by path inside the folder,
            without its ending.
    """

    source: str
    files: dict[str, str] = field(default_factory=dict)
    masks: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Lister:
    """Turns the files of a store into frames.

    Args:
        key (`str`): Name of the store in `FrameItem.location`.
        store (`Store`): Where the files are.
        all_cadica_frames (`bool`): Whether frames of CADICA that are no key frames count.
        report (`FaultReport`): Takes what is left out.
    """

    key: str
    store: Store
    all_cadica_frames: bool
    report: FaultReport

    def frames(self, collection: Collection) -> Iterator[FrameItem]:
        """Frames of a collection, in no order.

        Args:
            collection (`Collection`): Files that belong together.

        Yields:
            `FrameItem`: A frame; faults go to the report.
        """
        if is_arcade(collection):
            self.report.add("syntax", "left out: with its annotations/*.json it is ARCADE, no part of XA-170K")
            return
        layouts = {"cadica tree": self._cadica, "xcad tree": self._xcad, "series": self._with_series}
        yield from layouts.get(layout_of(collection), self._flat)(collection.source, collection.files)

    def _item(self, source: str, inner: str, path: str, ids: Ids) -> FrameItem:
        return FrameItem(source, f"{source}/{inner}", *ids, f"{self.key}{BETWEEN}{path}")

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
            self.report.add(f"{folder}/input/{stem}", "is in the list of key frames, but no such image is there")
        if not self.all_cadica_frames:
            self._without_list({folder for folder, _ in frames}, {folder for folder, _ in chosen})
        for key in chosen & set(frames):
            match = found[frames[key]]
            ids = Ids(match["patient"], f"{match['patient']}_{match['video']}", ids_from_name(match[0]).frame_index)
            yield self._item(source, frames[key], files[frames[key]], ids)

    def _key_frames(self, files: dict[str, str]) -> set[tuple[str, str]]:
        """Folder of the video and stem of every frame that is in a list."""
        chosen = set()
        for inner, path in files.items():
            if match := _CADICA_LIST.fullmatch(inner):
                lines = self.store.read(path).decode("utf-8", errors="replace").splitlines()
                names = [line.strip().removesuffix(".png") for line in lines]
                chosen |= {(match["folder"], name) for name in names if name}
        return chosen

    def _without_list(self, videos: set[str], listed: set[str]) -> None:
        # Videos that were not selected have no list
        for video in sorted(videos - listed):
            if "nonselectedvideos" not in video.lower():
                self.report.add(video, "left out, since its list *_selectedFrames.txt is missing or empty")

    def _xcad(self, source: str, files: dict[str, str]) -> Iterator[FrameItem]:
        # The others there are fractals that serve as masks, frames without contrast, and the labelled test set
        frames = {inner: path for inner, path in files.items() if _XCAD_TRAINING.search(inner)}
        if not frames:
            self.report.add(source, "has train/ or test/, but no angiograms in train/trainB/")
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
    """How a collection lies: `"cadica tree"`, `"xcad tree"`, `"series"` or `"flat"`."""
    kinds: dict[str, tuple[str, Callable[[str], object]]] = {
        "cadica": ("cadica tree", _CADICA_FRAME.fullmatch),
        "xcad": ("xcad tree", _XCAD_PARTS.search),
        "coronarydominance": ("series", lambda inner: inner.lower().endswith(".npz")),
    }
    kind, belongs = kinds.get(collection.source, ("flat", bool))
    return kind if any(belongs(inner) for inner in collection.files) else "flat"


def is_arcade(collection: Collection) -> bool:
    """Whether a folder `syntax` is that of ARCADE, which has nothing to do with the SYNTAX collection."""
    return collection.source == "syntax" and any(map(_ARCADE.search, collection.files))


def is_image(path: str) -> bool:
    """Whether the ending is that of an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def ids_from_name(path: str) -> Ids:
    """What the name of a single frame tells; where it tells nothing, nothing is guessed.

    Args:
        path (`str`): File name, with folders before it or not.

    Returns:
        `Ids`: Patient and video of CADICA's `p1_v2_00012.png`; study and frame of a name made from the path of a series.

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
    # A number behind it may be part of the study or of the frame; the study alone never parts what belongs together
    match = _STUDY_STEM.search(stem)
    return Ids(None, match[1] if match else None, None)


def stray_reason(path: str) -> str:
    """Why a file is no frame, and what to do."""
    if path.lower().endswith(".7z"):
        return (
            f"is packed. Unpack it, with `7z x {path.rpartition('/')[2]}`, and name the folder that holds the result"
        )
    return "is an image in no folder of a collection" if is_image(path) else "is no image"


def collect(paths: Iterable[str], prefix: str = "") -> tuple[dict[str, Collection], list[str]]:
    """Find the collections among the files of a store, by the names of folders.

    Args:
        paths (iterable of `str`): Of the files in the store.
        prefix (`str`, defaults to `""`): Folders that stand before all of them, with `/` at the end.

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
    """Take all files of a store for one collection."""
    return Collection(source, {path: path for path in paths})


def source_of(name: str) -> str | None:
    """Which collection the name of a folder or a zip means, if any."""
    return next((source for source, pattern in _COLLECTIONS.items() if pattern.fullmatch(name.lower())), None)


def _place(found: dict[str, Collection], parts: list[str], path: str) -> bool:
    for depth, part in enumerate(parts[:-1]):
        meaning = _meaning(part)
        if meaning is None:
            continue
        inner = parts[depth if meaning.is_inside else depth + 1 :]
        if meaning.masks is not None:
            folder = _of(found, meaning.source).masks.setdefault(meaning.masks, {})
            folder[mask_key("/".join(inner))] = path
            return True
        while len(inner) > 1 and source_of(inner[0]) == meaning.source:
            inner = inner[1:]
        _of(found, meaning.source).files["/".join(inner)] = path
        return True
    return False


class _Meaning(NamedTuple):
    """What a folder is: of which collection, whether it stands inside of it, and one of `MASK_FOLDERS`."""

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
    return next((_Meaning(s, is_inside=True) for s, pattern in _INSIDE.items() if pattern.fullmatch(name)), None)


def _of(found: dict[str, Collection], source: str) -> Collection:
    return found.setdefault(source, Collection(source))


def mask_key(inner: str) -> str:
    """Under what a mask and its frame find each other: the path without its ending."""
    folder, between, name = inner.rpartition("/")
    return f"{folder}{between}{_stem(name)}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
