"""Any data set that a loader made, as a folder of Parquet that `load_dataset` reads without this package."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..folders import atomic_file
from ..import_utils import require
from .parquet_shards import DATA_NAME, ShardPlan, write_shards
from .reports import FaultReport


if TYPE_CHECKING:
    from datasets import Dataset

CARD_NAME = "README.md"
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
        [`~reports.FaultReport`]: Rows that could not be written.

    Raises:
        FileExistsError: If `output` holds something else.
        OSError: If the disk is full. What is done stays.
    """
    output = Path(output)
    report, written = FaultReport(), dict[str, dict[str, SplitFiles]]()
    _refuse_other_folder(output, set(configs))
    for config, splits in configs.items():
        for split, dataset in splits.items():
            plan = ShardPlan(len(dataset), split=split, key=dataset_digest(dataset))
            rows = DatasetRows(dataset.with_format("arrow"))
            report.extend(write_shards(rows, plan, output / config, dataset.features, num_workers=num_workers))
            pattern = f"{config}/{DATA_NAME}/{split}-*.parquet"
            written.setdefault(config, {})[split] = SplitFiles(pattern, len(dataset), plan.key)
    write_card(output, about, license, written)
    return report


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
    """Digest of what a data set holds: its columns, its rows, and name and size of the files it refers to.

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
    """A value; in place of a file that it refers to, its name and size."""
    if isinstance(value, dict) and value.get("bytes", "") is None and value.get("path"):
        return os.path.basename(value["path"]), os.stat(value["path"]).st_size
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
