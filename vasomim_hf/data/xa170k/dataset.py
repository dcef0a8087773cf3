"""XA-170K as a `datasets` data set: loaded, streamed, built and published.

Loading scripts no longer exist in `datasets`, so this is code that writes Parquet, which anybody then loads without it.
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

    What is Parquet already is loaded as it is. From anything else it is built first, see [`build_xa170k`], or, with
    `streaming`, each row is made when it is asked for; then `near_duplicate_group` is null, since groups need all frames,
    and frames that cannot be read are left out with a warning each.

    Args:
        source (`str` or `Path`):
            A folder that was built, or a repository of the Hub with Parquet files, written `owner/name` or
            `hf://datasets/owner/name`, with `@revision` behind it or not; or whatever
            [`~xa170k_sources.open_xa170k_source`] takes: the authors' repository, their zip, that zip unpacked, the
            originals.
        output (`str` or `Path`, *optional*):
            Folder to build into. `None` takes `vasomim_xa170k/<key>` in the cache of `datasets` (`HF_DATASETS_CACHE`); a
            log line says where.
        streaming (`bool`, defaults to `False`): Give an iterable data set; nothing is built.
        drop_near_duplicates (`bool`, defaults to `False`): Keep the first frame of each group alone; not with `streaming`.
        options ([`XA170KBuildOptions`], *optional*): How frames are found and masks are made.
        report ([`~reports.FaultReport`], *optional*): Where what is amiss is added.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns as in [`xa170k_features`].

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If it holds no frame of XA-170K, or near duplicates are to be dropped from a stream.
        OSError: If the build needs more space than there is.
    """
    if streaming and drop_near_duplicates:
        raise ValueError(
            "Near duplicates cannot be dropped from a stream, whose shards are read side by side. Load with "
            "streaming=False, or filter the stream by `near_duplicate_group` yourself."
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

    Only the Parquet files, the data card and the report go there; Parquet files of an earlier build are removed from the
    repository. What is interrupted is taken up by calling it again. The card's example is given the repository's name.
    Read the card and the licences of the collections before you make a repository public.

    Args:
        folder (`str` or `Path`): Folder that [`build_xa170k`] wrote.
        repo_id (`str`): Repository, `owner/name`; made where it is missing.
        private (`bool`, defaults to `True`): Whether only its owner may see it. A public one is refused then.
        revision (`str`, *optional*): Branch; the main one by default.
        token (`str`, *optional*): Token of the Hub; the stored one by default.

    Returns:
        `str`: Address of the commit.

    Raises:
        FileNotFoundError: If the folder is no finished build.
        PermissionError: If the repository is public and must not be.
        OSError: If what the Hub has differs from what was built.
    """
    folder = Path(folder)
    report = BuildReport.read(folder)
    api = HfApi(token=token)
    if not api.repo_exists(repo_id, repo_type="dataset"):
        api.create_repo(repo_id, repo_type="dataset", private=private)
    elif private and not api.repo_info(repo_id, repo_type="dataset").private:
        raise PermissionError(f"{repo_id} is public already. Name another repository, or pass private=False.")
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
    """Arguments of `load_dataset`, if the source is Parquet."""
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
        raise ValueError(f"{folder} is a build that is not finished. Run it again with the same source: it goes on.")
    # Beside frames or series, a Parquet file is a table about them
    return any(map(_has_columns, folder.rglob("*.parquet"))) and not scan_folder(folder).frames


def _has_columns(path: Path) -> bool:
    try:
        names = require("pyarrow.parquet", "data").read_schema(path).names
    except (ValueError, OSError):
        return False  # no Parquet file, or a damaged one
    return xa170k_features().keys() <= set(names)


def _has_parquet(repo_id: str, revision: str | None, options: XA170KOptions) -> bool:
    try:
        names = HfApi().list_repo_files(repo_id, repo_type="dataset", revision=revision)
    except errors.OfflineModeIsEnabled:
        where = None if options.cache_dir is None else str(options.cache_dir)
        archive = try_to_load_from_cache(repo_id, options.archive, where, revision, "dataset")
        return not isinstance(archive, str)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
        return False  # opening it as a source says what is wrong
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
        raise ValueError(f"{arguments['path']} is no build of XA-170K: it has no columns {', '.join(missing)}.")
    return dataset


def _build(
    opened: XA170KSource, output: str | Path | None, options: XA170KBuildOptions, report: FaultReport | None
) -> Path:
    if output is None:
        cache = Path(require("datasets", "data").config.HF_DATASETS_CACHE)
        output = cache / CACHE_NAME / build_key(opened, options)
        logger.info("XA-170K is built into %s", output)
    built = build_opened(opened, Path(output), options)
    if report is not None:
        report.extend(built.faults)
    return Path(output)


@dataclass
class _Stream:
    """Makes the rows of some items when they are asked for."""

    source: XA170KSource
    vesselness: dict[str, Any]

    def __call__(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            item = self.source.items[number]
            try:
                frame = self.source.read(item)
            except UNREADABLE as error:
                logger.warning("%s is left out: %s", item.name, error)
                continue
            yield frame_row(item, frame, self._mask(item, frame), None)

    def _mask(self, item: FrameItem, frame: np.ndarray) -> np.ndarray:
        try:
            mask = self.source.read_vesselness(item, frame.shape)
        except UNREADABLE as error:
            logger.warning("%s: %s Its ready mask is not used, the filter makes one.", item.name, error)
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
    # a file that is small enough to be part of a commit has no SHA-256 on the Hub
    found = {info.path: (info.size, info.lfs and info.lfs.sha256) for info in there if isinstance(info, RepoFile)}
    wrong = [
        file.path
        for file in report.files
        if found.get(file.path) not in ((file.num_bytes, file.sha256), (file.num_bytes, None))
    ]
    if wrong:
        raise OSError(
            f"{len(wrong)} files of {repo_id} are not what was built, the first is {wrong[0]}. Verify the folder with "
            "`verify_xa170k`, then upload it again."
        )
