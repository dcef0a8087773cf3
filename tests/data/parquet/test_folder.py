"""A folder of Parquet is loaded as it is now, not as another one of its name was."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from vasomim_hf.data.parquet.export import SplitFiles, write_card
from vasomim_hf.data.parquet.folder import find_parquet, load_parquet_folder


CARD = "---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n---\n"


def write(folder: Path, *levels: int, card: str | None = CARD) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        pq.write_table(pa.table({"level": [level]}), folder / "data" / f"train-{number:05d}-of-00002.parquet")
    if card is not None:
        (folder / "README.md").write_text(card.format(name="default"))
    return folder


@pytest.mark.parametrize("card", [CARD, None])
@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_one_name_are_told_apart_and_a_change_is_seen(tmp_path: Path, streaming: bool, card: str | None):
    def load(folder: Path) -> list[int]:
        rows = load_parquet_folder(folder, streaming=streaming, cache_dir=tmp_path / "cache")
        return [row["level"] for row in rows]

    first, second = write(tmp_path / "a" / "out", 1, 2, card=card), write(tmp_path / "b" / "out", 3, 4, card=card)
    assert [load(first), load(second)] == [[1, 2], [3, 4]]
    write(first, 5, 6, card=card)
    assert [load(first), load(second)] == [[5, 6], [3, 4]]


def test_with_our_card_load_dataset_itself_tells_them_apart(tmp_path: Path):
    loaded = []
    for folder, level in (("a", 1), ("b", 2), ("a", 3)):
        output = write(tmp_path / folder / "out", level, card=None)
        files = SplitFiles("data/train-*.parquet", 1, f"digest-{level}")
        write_card(output, "# Levels", "unknown", {"default": {"train": files}})
        loaded += load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))["level"]
    assert loaded == [1, 2, 3]


def test_files_are_found_in_order_and_what_is_missing_is_named(tmp_path: Path):
    folder = write(tmp_path / "out", 1, 2)
    assert [Path(path).name for path in find_parquet(str(folder))] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    with pytest.raises(ValueError, match=r"has no split"):
        find_parquet(str(folder), "test")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="`text` data set"):
        find_parquet(str(tmp_path / "text"))


def test_of_several_configurations_the_folder_of_one_is_asked_for(tmp_path: Path):
    for config in ("a", "b"):
        write(tmp_path / "out" / config, 1, 2, card=None)
    files = {config: {"train": SplitFiles(f"{config}/data/train-*.parquet", 2, config)} for config in ("a", "b")}
    write_card(tmp_path / "out", "# Levels", "unknown", files)
    with pytest.raises(ValueError, match="folder of one of them"):
        find_parquet(str(tmp_path / "out"))
    assert len(find_parquet(str(tmp_path / "out"), config="b")) == len(find_parquet(str(tmp_path / "out" / "b"))) == 2
