"""XA-170K as a `datasets` data set: loading, streaming, building and publishing.

`datasets` no longer supports loading scripts, so this code writes Parquet, which loads without this package.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from huggingface_hub import HfApi, RepoFile, errors, try_to_load_from_cache

from ...folders import atomic_file
from ...import_utils import require
from .. import near_duplicates
from ..faults import FaultReport
from ..parquet.folder import load_parquet_folder
from ..parquet.rows import to_dataset
from ..reading.files import UNREADABLE, scan_folder
from ..vesselness import vessel_mask
from .build import (
    XA170KBuildOptions,
    build_key,
    build_opened,
    build_xa170k,
    collection_order,
    frame_row,
    xa170k_features,
)
from .card import PLACEHOLDER
from .report import CARD_NAME, REPORT_NAME, BuildReport, verify_xa170k
from .sources import FrameItem, XA170KOptions, XA170KSource, open_xa170k_source
from .survey import survey_keys


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


__all__ = [
    "BuildReport",
    "XA170KBuildOptions",
    "XA170KOptions",
    "build_xa170k",
    "load_xa170k",
    "push_xa170k",
    "verify_xa170k",
    "xa170k_features",
]

logger = logging.getLogger(__name__)

CACHE_NAME = "vasomim_xa170k"
_HUB_ID = re.compile(r"(?:hf://datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


def load_xa170k(
    source: str | Path,
    output: str | Path | None = None,
    *,
    streaming: bool = False,
    drop_near_duplicates: bool = False,
    options: XA170KBuildOptions | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load XA-170K with its vesselness masks.

    Parquet is loaded directly. Anything else is built first, see [`build_xa170k`], or, with `streaming`, read row by
    row; `near_duplicate_group` is then null, because groups need all frames, and unreadable frames are skipped with a
    warning.

    Args:
        source (`str` or `Path`):
            A built folder, or a Hub repository with Parquet files, as `owner/name` or `hf://datasets/owner/name`, optionally
            with `@revision`; or any source of [`~xa170k_sources.open_xa170k_source`]: the authors' repository, their zip,
            that zip extracted, or the originals.
        output (`str` or `Path`, *optional*):
            Folder for the build. `None` uses `vasomim_xa170k/<key>` in the cache of `datasets` (`HF_DATASETS_CACHE`);
            the path is logged.
        streaming (`bool`, defaults to `False`): Whether to return an iterable data set without building it.
        drop_near_duplicates (`bool`, defaults to `False`): Whether to keep only the first frame of each group; not with
            `streaming`.
        options ([`XA170KBuildOptions`], *optional*): Options of the build.
        report ([`~reports.FaultReport`], *optional*): Collects faults.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns as in [`xa170k_features`].

    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If it contains no frames of XA-170K, or `drop_near_duplicates` is combined with `streaming`.
        OSError: If there is not enough disk space for the build.
    """
    if streaming and drop_near_duplicates:
        raise ValueError(
            "Near duplicates cannot be dropped from a stream. Load with streaming=False, or filter the stream by "
            "`near_duplicate_group`."
        )
    options = options or XA170KBuildOptions()
    parquet = _parquet_in(source, options)
    if parquet is None:
        opened = open_xa170k_source(source, options.source)
        if streaming:
            return _stream(opened, options, report)
        parquet = {"path": str(_build(opened, output, options, report))}
    dataset = _load_parquet(parquet, streaming, options)
    return near_duplicates.drop_near_duplicates(dataset) if drop_near_duplicates else dataset


def push_xa170k(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a finished build to the Hub, where `datasets.load_dataset(repo_id)` loads it without this package.

    Uploads the Parquet files, the data card and the report, and removes Parquet files of earlier builds from the
    repository. Call it again to resume an interrupted upload. The example in the card gets the repository name. Read the
    card and the licences of the collections before making a repository public.

    Args:
        folder (`str` or `Path`): Folder written by [`build_xa170k`].
        repo_id (`str`): Repository, `owner/name`; created if missing.
        private (`bool`, defaults to `True`): Whether the repository is private. If so, an existing public one is an error.
        revision (`str`, *optional*): Branch; defaults to the main one.
        token (`str`, *optional*): Hub token; defaults to the stored one.

    Returns:
        `str`: URL of the commit.

    Raises:
        FileNotFoundError: If the folder is not a finished build.
        PermissionError: If the repository is public but `private` is set.
        OSError: If the files on the Hub differ from the build.
    """
    folder = Path(folder)
    report = BuildReport.read(folder)
    api = HfApi(token=token)
    if not api.repo_exists(repo_id, repo_type="dataset"):
        api.create_repo(repo_id, repo_type="dataset", private=private)
    elif private and not api.repo_info(repo_id, repo_type="dataset").private:
        raise PermissionError(
            f"{repo_id} already exists and is public. Choose another repository, or pass private=False."
        )
    _name_in_card(folder / CARD_NAME, repo_id)
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        revision=revision,
        allow_patterns=[*(file.path for file in report.files), CARD_NAME, REPORT_NAME],
        delete_patterns=["*.parquet"],
        commit_message=f"Upload XA-170K, {report.num_rows:,} frames",
    )
    _check_upload(api, report, repo_id, revision)
    return str(commit)


def _parquet_in(source: str | Path, options: XA170KBuildOptions) -> dict[str, Any] | None:
    """Arguments of `load_dataset` if the source is Parquet."""
    folder = Path(source)
    if folder.is_dir():
        return {"path": str(folder)} if _is_built(folder) else None
    hub_id = _HUB_ID.fullmatch(str(source))
    if folder.exists() or hub_id is None:
        return None
    repo_id, revision = hub_id.groups()
    return {"path": repo_id, "revision": revision} if _has_parquet(repo_id, revision, options.source) else None


def _is_built(folder: Path) -> bool:
    if (folder / REPORT_NAME).is_file():
        return True
    if survey_keys(folder):
        raise ValueError(f"{folder} is an unfinished build. Run it again with the same source to resume.")
    # next to frames or series, a Parquet file is a table about them
    return any(map(_has_columns, folder.rglob("*.parquet"))) and not scan_folder(folder).frames


def _has_columns(path: Path) -> bool:
    try:
        names = require("pyarrow.parquet", "data").read_schema(path).names
    except (ValueError, OSError):
        return False  # not Parquet, or damaged
    return xa170k_features().keys() <= set(names)


def _has_parquet(repo_id: str, revision: str | None, options: XA170KOptions) -> bool:
    try:
        names = HfApi().list_repo_files(repo_id, repo_type="dataset", revision=revision)
    except errors.OfflineModeIsEnabled:
        where = None if options.cache_dir is None else str(options.cache_dir)
        archive = try_to_load_from_cache(repo_id, options.archive, where, revision, "dataset")
        return not isinstance(archive, str)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
        return False  # opening it as a source gives the error
    return any(name.endswith(".parquet") for name in names)


def _load_parquet(
    arguments: dict[str, Any], streaming: bool, options: XA170KBuildOptions
) -> Union["Dataset", "IterableDataset"]:
    datasets = require("datasets", "data")
    cache_dir = None if options.source.cache_dir is None else str(options.source.cache_dir)
    if Path(arguments["path"]).is_dir():
        dataset = load_parquet_folder(arguments["path"], streaming=streaming, cache_dir=cache_dir)
    else:
        dataset = datasets.load_dataset(**arguments, split="train", streaming=streaming, cache_dir=cache_dir)
    missing = sorted(xa170k_features().keys() - dataset.column_names) if dataset.column_names else []
    if missing:
        raise ValueError(f"{arguments['path']} is not a build of XA-170K: missing columns {', '.join(missing)}.")
    return dataset


def _build(
    opened: XA170KSource, output: str | Path | None, options: XA170KBuildOptions, report: FaultReport | None
) -> Path:
    if output is None:
        cache = Path(require("datasets", "data").config.HF_DATASETS_CACHE)
        output = cache / CACHE_NAME / build_key(opened, options)
        logger.info("building XA-170K in %s", output)
    built = build_opened(opened, Path(output), options)
    if report is not None:
        report.extend(built.faults)
    return Path(output)


@dataclass
class _Stream:
    """Generates the rows of some items on demand."""

    source: XA170KSource
    vesselness: dict[str, Any]

    def __call__(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            item = self.source.items[number]
            try:
                frame = self.source.read(item)
            except UNREADABLE as error:
                logger.warning("skipping %s: %s", item.name, error)
                continue
            yield frame_row(item, frame, self._mask(item, frame), None)

    def _mask(self, item: FrameItem, frame: np.ndarray) -> np.ndarray:
        try:
            mask = self.source.read_vesselness(item, frame.shape)
        except UNREADABLE as error:
            logger.warning("%s: %s Its existing mask is not used; the filter computes one.", item.name, error)
            mask = None
        return vessel_mask(frame, **self.vesselness) if mask is None else mask


def _stream(opened: XA170KSource, options: XA170KBuildOptions, report: FaultReport | None) -> "IterableDataset":
    opened.report.log("frames of XA-170K", len(opened.items))
    if report is not None:
        report.extend(opened.report)
    rows = _Stream(opened, asdict(options.vesselness))
    dataset: IterableDataset = to_dataset(rows, collection_order(opened).tolist(), xa170k_features(), streaming=True)
    return dataset


def _name_in_card(path: Path, repo_id: str) -> None:
    text = path.read_text(encoding="utf-8")
    if PLACEHOLDER in text:
        with atomic_file(path) as temporary:
            temporary.write_text(text.replace(PLACEHOLDER, repo_id), encoding="utf-8")


def _check_upload(api: HfApi, report: BuildReport, repo_id: str, revision: str | None) -> None:
    paths = [file.path for file in report.files]
    there = api.get_paths_info(repo_id, paths, repo_type="dataset", revision=revision)
    # the Hub has no SHA-256 for files small enough to be part of a commit
    found = {info.path: (info.size, info.lfs and info.lfs.sha256) for info in there if isinstance(info, RepoFile)}
    wrong = [
        file.path
        for file in report.files
        if found.get(file.path) not in ((file.num_bytes, file.sha256), (file.num_bytes, None))
    ]
    if wrong:
        raise OSError(
            f"{len(wrong)} files of {repo_id} differ from the build, the first is {wrong[0]}. Verify the folder with "
            "`verify_xa170k`, then upload it again."
        )
