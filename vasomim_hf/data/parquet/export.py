"""Export of any data set to a folder of Parquet files that `load_dataset` reads without this package."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...folders import atomic_file
from ...import_utils import require
from ..faults import FaultReport
from ..sources import size_and_sample
from .write import BUILD_NAME, DATA_NAME, ShardPlan, file_digest, read_record, write_shards


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
EXPORT_NAME = "export.json"
NAME_COLUMN = "image_id"
# rows hashed together in the digest of a data set
ROWS_PER_DIGEST = 100


class SplitFiles(NamedTuple):
    """Files of a split relative to the folder, their number of rows, and a digest of their contents."""

    pattern: str
    num_rows: int
    digest: str


def export_dataset(
    configs: Mapping[str, Mapping[str, "Dataset"]],
    output: str | Path,
    *,
    about: str,
    license: str = "unknown",
    num_workers: int | None = None,
) -> FaultReport:
    """Write data sets as Parquet shards with a README for `load_dataset`; resumes an interrupted call.

    `load_dataset(output, config, split=...)` restores every column. Image files are embedded unchanged, without the
    names of their folders.

    Args:
        configs (`Mapping[str, Mapping[str, datasets.Dataset]]`): Configuration name -> split name -> rows. Each
            configuration is a sub-folder of `output`.
        output (`str` or `Path`): A new or empty folder, or that of the same data.
        about (`str`): Text of the README, in Markdown: description and origin of the data.
        license (`str`, defaults to `"unknown"`): Licence of the data as a Hub identifier.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores.

    Returns:
        [`~reports.FaultReport`]: Rows that could not be written. Empty if the export was already finished.

    Raises:
        FileExistsError: If `output` contains something else.
        RuntimeError: If `output` contains the same export with a damaged file.
        OSError: If the disk is full. Finished work is kept.
    """
    output = Path(output)
    plans = {
        (config, split): ShardPlan(len(dataset), split=split, key=dataset_digest(dataset))
        for config, splits in configs.items()
        for split, dataset in splits.items()
    }
    key = hashlib.sha256(repr([(*name, plan.key) for name, plan in plans.items()]).encode()).hexdigest()[:20]
    if is_exported(output, key):
        return FaultReport()
    _check_output_folder(output, set(configs))
    report = FaultReport()
    written: dict[str, dict[str, SplitFiles]] = {}
    for (config, split), plan in plans.items():
        dataset = configs[config][split]
        rows = DatasetRows(dataset.with_format("arrow"))
        report.extend(write_shards(rows, plan, output / config, dataset.features, num_workers=num_workers))
        pattern = f"{config}/{DATA_NAME}/{split}-*.parquet"
        written.setdefault(config, {})[split] = SplitFiles(pattern, len(dataset), plan.key)
    write_card(output, about, license, written)
    finish_export(output, key, [(output / config, plan) for (config, _), plan in plans.items()])
    return report


def is_exported(output: Path, key: str) -> bool:
    """Whether a folder contains a complete export.

    Args:
        output (`Path`): Folder.
        key (`str`): Digest of the data to export.

    Returns:
        `bool`: `False` if there is no export or an unfinished one.

    Raises:
        FileExistsError: If it is an export of something else.
        RuntimeError: If a file is missing or has changed.
    """
    if not (output / EXPORT_NAME).is_file():
        return False
    content = json.loads((output / EXPORT_NAME).read_text(encoding="utf-8"))
    if content["key"] != key:
        raise FileExistsError(f"{output} contains a different export. Choose another folder.")
    for name, digest in content["files"].items():
        if not (output / name).is_file() or file_digest(output / name) != digest:
            raise RuntimeError(f"{output / name} is missing or damaged. Remove {output} and export again.")
    if content["num_left_out"]:
        logger.warning("%s was already exported; %d faults were reported then", output, content["num_left_out"])
    return True


def finish_export(output: Path, key: str, builds: Sequence[tuple[Path, ShardPlan]]) -> None:
    """Mark an export as finished, and remove its build records, which contain the user's file names.

    Args:
        output (`Path`): Folder.
        key (`str`): Digest of the exported data.
        builds (`Sequence[tuple[Path, ShardPlan]]`): Folder and plan of each call to [`~data.parquet.write.write_shards`].
    """
    files: dict[str, str] = {}
    num_left_out = 0
    for folder, plan in builds:
        for shard in range(plan.num_shards):
            record = read_record(folder, plan, shard)
            if record is None:
                raise RuntimeError(f"{plan.name(shard)} in {folder} is missing. Export again.")
            files[(folder / DATA_NAME / plan.name(shard)).relative_to(output).as_posix()] = record.sha256
            num_left_out += len(record.faults)
    with atomic_file(output / EXPORT_NAME) as temporary:
        content = {"key": key, "num_left_out": num_left_out, "files": files}
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    for folder, _ in builds:
        shutil.rmtree(folder / BUILD_NAME, ignore_errors=True)


def _check_output_folder(output: Path, configs: set[str]) -> None:
    found = {path.name for path in output.iterdir()} if output.is_dir() else set()
    others = found - configs - {CARD_NAME}
    if others or (CARD_NAME in found and not found & configs):
        raise FileExistsError(
            f"{output} contains other files: {', '.join(sorted(others or found))}. Choose another folder."
        )


@dataclass
class DatasetRows:
    """Rows of a data set in format `"arrow"`, as stored, without decoding.

    Args:
        dataset (`datasets.Dataset`): Data set.
    """

    dataset: "Dataset"

    def __call__(self, index: int) -> dict[str, Any]:
        """A row as plain Python values."""
        return self.dataset[index].to_pylist()[0]

    def name(self, index: int) -> str:
        """Its `image_id`, or its index."""
        return str(self(index).get(NAME_COLUMN, f"row {index}"))


def dataset_digest(dataset: "Dataset") -> str:
    """Digest of a data set: columns, rows, and names and contents of referenced files.

    Args:
        dataset (`datasets.Dataset`): Data set.

    Returns:
        `str`: 20 hexadecimal digits, independent of where the rows are stored.
    """
    digest = hashlib.sha256(str(dataset.features).encode())
    for table in dataset.with_format("arrow").iter(batch_size=ROWS_PER_DIGEST):
        for row in table.to_pylist():
            digest.update(repr({name: _stored(value) for name, value in row.items()}).encode())
    return digest.hexdigest()[:20]


def _stored(value: Any) -> Any:
    """The value; a file reference is replaced by its name and a fingerprint of its content."""
    if isinstance(value, dict) and value.get("bytes", "") is None and value.get("path"):
        return os.path.basename(value["path"]), *size_and_sample(Path(value["path"]))
    return value


def write_card(
    output: str | Path, about: str, license: str, configs: Mapping[str, Mapping[str, "SplitFiles"]]
) -> None:
    """Write the README of a Parquet folder, whose front matter lists the files for `load_dataset`.

    Args:
        output (`Path`): Folder.
        about (`str`): Text, in Markdown.
        license (`str`): Hub identifier.
        configs (`Mapping[str, Mapping[str, SplitFiles]]`): Configuration -> split -> files.
    """
    hub = require("huggingface_hub", "data")
    entries = [
        {
            "config_name": config,
            # `datasets` distinguishes its caches of local folders by this; the file patterns are the same for every
            # folder
            "description": f"content {' '.join(files.digest for files in splits.values())}",
            "data_files": [{"split": split, "path": files.pattern} for split, files in splits.items()],
        }
        for config, splits in configs.items()
    ]
    front_matter = hub.DatasetCardData(license=license, configs=entries).to_yaml()
    lines = ["| configuration | split | rows |", "|---|---|---|"]
    lines += [
        f"| {name} | {s} | {files.num_rows} |" for name, splits in configs.items() for s, files in splits.items()
    ]
    table = "\n".join(lines)
    with atomic_file(Path(output) / CARD_NAME) as temporary:
        temporary.write_text(f"---\n{front_matter}\n---\n\n{about.strip()}\n\n{table}\n", encoding="utf-8")
