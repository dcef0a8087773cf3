"""Any data set that a loader made, as a folder of Parquet that `load_dataset` reads without this package."""

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
# Rows whose bytes are taken together into the digest of a data set
ROWS_PER_DIGEST = 100


class SplitFiles(NamedTuple):
    """Files of a split below the folder, how many rows they have, and a digest of what they hold."""

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
    """Write data sets as Parquet shards, with a README that tells `load_dataset` of them; an interrupted call goes on.

    `load_dataset(output, config, split=...)` gives every column back. Images that were files on disk are put in, byte
    for byte. The names of their folders are not.

    Args:
        configs (`Mapping[str, Mapping[str, datasets.Dataset]]`): Name of a configuration -> name of a split -> rows. A
            configuration is a folder of `output`.
        output (`str` or `Path`): A new folder, an empty one, or that of the same data.
        about (`str`): Text of the README, in Markdown: what the data are, where they come from.
        license (`str`, defaults to `"unknown"`): Licence of the data as the Hub abbreviates it.
        num_workers (`int`, *optional*): Processes; as many as cores by default.

    Returns:
        [`~reports.FaultReport`]: Rows that could not be written. Empty where the export was finished before.

    Raises:
        FileExistsError: If `output` holds something else.
        RuntimeError: If `output` holds the same export, and a file of it is damaged.
        OSError: If the disk is full. What is done stays.
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
    _refuse_other_folder(output, set(configs))
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
    """Whether a folder holds a finished export, whole.

    Args:
        output (`Path`): The folder.
        key (`str`): Digest of what is to be exported.

    Returns:
        `bool`: `False` where there is no export, or one that is not finished.

    Raises:
        FileExistsError: If it is an export of something else.
        RuntimeError: If a file of it is missing or has changed.
    """
    if not (output / EXPORT_NAME).is_file():
        return False
    content = json.loads((output / EXPORT_NAME).read_text(encoding="utf-8"))
    if content["key"] != key:
        raise FileExistsError(
            f"{output} holds an export of something else, or with other options. Name another folder."
        )
    for name, digest in content["files"].items():
        if not (output / name).is_file() or file_digest(output / name) != digest:
            raise RuntimeError(f"{output / name} is missing or damaged. Remove {output} and export again.")
    if content["num_left_out"]:
        logger.warning("%s was exported before; %d faults were named then", output, content["num_left_out"])
    return True


def finish_export(output: Path, key: str, builds: Sequence[tuple[Path, ShardPlan]]) -> None:
    """Mark an export as finished, and remove the records of its making, which name files of the user.

    Args:
        output (`Path`): The folder.
        key (`str`): Digest of what was exported.
        builds (`Sequence[tuple[Path, ShardPlan]]`): Folder and plan of each call of [`~parquet_shards.write_shards`].
    """
    files: dict[str, str] = {}
    num_left_out = 0
    for folder, plan in builds:
        for shard in range(plan.num_shards):
            record = read_record(folder, plan, shard)
            if record is None:
                raise RuntimeError(f"{plan.name(shard)} in {folder} has gone. Export again.")
            files[(folder / DATA_NAME / plan.name(shard)).relative_to(output).as_posix()] = record.sha256
            num_left_out += len(record.faults)
    with atomic_file(output / EXPORT_NAME) as temporary:
        content = {"key": key, "num_left_out": num_left_out, "files": files}
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    for folder, _ in builds:
        shutil.rmtree(folder / BUILD_NAME, ignore_errors=True)


def _refuse_other_folder(output: Path, configs: set[str]) -> None:
    found = {path.name for path in output.iterdir()} if output.is_dir() else set()
    others = found - configs - {CARD_NAME}
    if others or (CARD_NAME in found and not found & configs):
        raise FileExistsError(
            f"{output} holds other files: {', '.join(sorted(others or found))}. Name another folder."
        )


@dataclass
class DatasetRows:
    """Rows of a data set in the format `"arrow"`, as they are stored: nothing is decoded.

    Args:
        dataset (`datasets.Dataset`): The rows.
    """

    dataset: "Dataset"

    def __call__(self, index: int) -> dict[str, Any]:
        """A row, as plain Python values."""
        return self.dataset[index].to_pylist()[0]

    def name(self, index: int) -> str:
        """Its `image_id`, or its number."""
        return str(self(index).get(NAME_COLUMN, f"row {index}"))


def dataset_digest(dataset: "Dataset") -> str:
    """Digest of what a data set holds: its columns, its rows, and name and content of the files it refers to.

    Args:
        dataset (`datasets.Dataset`): The data set.

    Returns:
        `str`: 20 hexadecimal digits, the same wherever its rows are stored.
    """
    digest = hashlib.sha256(str(dataset.features).encode())
    for table in dataset.with_format("arrow").iter(batch_size=ROWS_PER_DIGEST):
        for row in table.to_pylist():
            digest.update(repr({name: _stored(value) for name, value in row.items()}).encode())
    return digest.hexdigest()[:20]


def _stored(value: Any) -> Any:
    """A value; in place of a file that it refers to, its name and what tells its content."""
    if isinstance(value, dict) and value.get("bytes", "") is None and value.get("path"):
        return os.path.basename(value["path"]), *size_and_sample(Path(value["path"]))
    return value


def write_card(
    output: str | Path, about: str, license: str, configs: Mapping[str, Mapping[str, "SplitFiles"]]
) -> None:
    """Write the README of a folder of Parquet, whose front matter tells `load_dataset` where everything is.

    Args:
        output (`str` or `Path`): The folder.
        about (`str`): Text, in Markdown.
        license (`str`): As the Hub abbreviates it.
        configs (`Mapping[str, Mapping[str, SplitFiles]]`): Configuration -> split -> its files.
    """
    hub = require("huggingface_hub", "data")
    entries = [
        {
            "config_name": config,
            # What `datasets` tells its copies of local folders apart by: file patterns alone are those of any folder
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
