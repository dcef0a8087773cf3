"""Splits by group part nothing that belongs together, meet the fractions, and follow from the seed and the values."""

import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets

from vasomim_hf.data.splits import leaks, split_by_group


THREE = {"train": 0.8, "validation": 0.1, "test": 0.1}


def patients(num: int, rows: int, seed: int = 0) -> dict[str, list]:
    """Columns of a data set in which patients have 1 to about 30 rows, some of them near copies of other patients'."""
    generator = np.random.default_rng(seed)
    shares = generator.gamma(1.0, size=num)
    patient = generator.choice(num, size=rows, p=shares / shares.sum())
    group = np.arange(rows)
    copies = generator.choice(rows, size=rows // 100, replace=False)
    group[copies] = np.maximum(copies - 1, 0)
    return {"patient_id": [f"p{p}" for p in patient], "near_duplicate_group": group.tolist()}


def dealt(columns: dict[str, list], splits: dict[str, np.ndarray]) -> dict[str, dict[str, list]]:
    return {
        name: {key: [values[row] for row in rows] for key, values in columns.items()} for name, rows in splits.items()
    }


def sizes(splits: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: len(rows) for name, rows in splits.items()}


def test_every_row_is_in_exactly_one_split_and_rows_keep_their_order():
    splits = split_by_group(patients(60, 1000))
    assert sorted(np.concatenate(list(splits.values()))) == list(range(1000))
    for rows in splits.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_and_no_near_copy_is_in_two_splits(seed):
    columns = patients(200, 2000, seed)
    assert leaks(dealt(columns, split_by_group(columns, seed=seed))) == {"patient_id": {}, "near_duplicate_group": {}}


def test_a_split_by_one_column_leaks_through_the_other():
    columns = patients(60, 1000)
    found = leaks(dealt(columns, split_by_group(columns, by="near_duplicate_group")))
    assert found["patient_id"]
    assert not found["near_duplicate_group"]


def test_rows_tied_through_others_stay_together():
    columns = {"a": ["x", "x", "y", "z", "w"], "b": [1, 2, 2, None, None], "c": [None, None, 7, 7, None]}
    for seed in range(10):
        splits = split_by_group(columns, {"one": 0.8, "two": 0.2}, by=("a", "b", "c"), seed=seed)
        assert {tuple(rows) for rows in splits.values()} == {(0, 1, 2, 3), (4,)}


@pytest.mark.parametrize("null", [None, float("nan"), ""])
def test_a_missing_value_ties_nothing_together(null):
    splits = split_by_group({"patient_id": [null] * 10}, {"train": 0.5, "test": 0.5}, by="patient_id")
    assert sizes(splits) == {"train": 5, "test": 5}
    assert leaks(dealt({"patient_id": [null] * 10}, splits), by="patient_id") == {"patient_id": {}}


@pytest.mark.parametrize("seed", range(5))
def test_fractions_are_met_to_one_row_where_groups_are_small(seed):
    assert sizes(split_by_group(patients(300, 3000, seed), THREE, seed=seed)) == pytest.approx(
        {"train": 2400, "validation": 300, "test": 300}, abs=1
    )


def test_large_groups_do_not_always_fall_to_the_largest_split():
    columns = {"patient_id": [f"p{k}" for k in range(20) for _ in range(20 if k == 0 else 10)]}
    of_the_largest = set()
    for seed in range(60):
        splits = split_by_group(columns, THREE, by="patient_id", seed=seed)
        of_the_largest |= {name for name, rows in splits.items() if 0 in rows}
    assert of_the_largest == set(THREE)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    columns = patients(60, 1000)
    first, again, other = (split_by_group(columns, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in THREE)
    assert not all(np.array_equal(first[name], other[name]) for name in THREE)


def test_splits_do_not_depend_on_row_order():
    columns = {"patient_id": patients(60, 1000)["patient_id"]}
    order = np.random.default_rng(1).permutation(1000)
    shuffled = {"patient_id": [columns["patient_id"][row] for row in order]}
    ways = [dealt(each, split_by_group(each, by="patient_id")) for each in (columns, shuffled)]
    assert [{name: set(split["patient_id"]) for name, split in way.items()} for way in ways] == [
        {name: set(split["patient_id"]) for name, split in ways[0].items()}
    ] * 2


def test_strata_are_as_frequent_in_each_split_as_in_the_whole():
    columns = patients(400, 4000)
    rare = {f"p{k}" for k in range(0, 400, 5)}
    columns["source"] = ["rare" if patient in rare else "common" for patient in columns["patient_id"]]
    share = columns["source"].count("rare") / 4000
    for seed in range(3):
        splits = split_by_group(columns, THREE, by="patient_id", seed=seed, stratify="source")
        assert sizes(splits) == pytest.approx({"train": 3200, "validation": 400, "test": 400}, abs=1)
        for split in dealt(columns, splits).values():
            assert split["source"].count("rare") / len(split["source"]) == pytest.approx(share, abs=0.01)


def test_the_remainder_of_small_strata_carries_over():
    columns = {"patient_id": list(range(200)), "source": [f"s{k // 4}" for k in range(200)]}
    splits = split_by_group(columns, THREE, by="patient_id", stratify="source")
    assert sizes(splits) == pytest.approx({"train": 160, "validation": 20, "test": 20}, abs=1)


def test_no_split_is_empty_where_groups_are_few():
    columns = {"patient_id": ["a"] * 50 + ["b"] * 50 + ["c"] * 50}
    assert sizes(split_by_group(columns, THREE, by="patient_id")) == {"train": 50, "validation": 50, "test": 50}


def test_a_group_larger_than_a_share_is_warned_about_with_figures_and_without_names(caplog):
    columns = {"patient_id": ["Anna"] * 60 + [f"p{k}" for k in range(40)]}
    with caplog.at_level(logging.WARNING):
        splits = split_by_group(columns, {"train": 0.5, "test": 0.5}, by="patient_id")
    assert sorted(sizes(splits).values()) == [40, 60]
    assert "60 of 100 rows" in caplog.text
    assert "train 50, test 50" in caplog.text
    assert "Anna" not in caplog.text


def test_small_groups_are_not_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        split_by_group({"patient_id": list("abcdefghijkl")}, THREE, by="patient_id")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "fractions", [{"train": 0.8, "test": 0.1}, {"train": 1.0, "test": 0.0}, {"train": 1.2, "test": -0.2}, {}]
)
def test_fractions_that_do_not_make_a_whole_are_refused(fractions):
    with pytest.raises(ValueError, match="must be above 0 and sum to 1"):
        split_by_group({"patient_id": ["a", "b"]}, fractions, by="patient_id")


def test_more_splits_than_groups_are_refused():
    with pytest.raises(
        ValueError, match=r"3 splits \(train, validation, test\) need at least as many groups .* gives 2"
    ):
        split_by_group({"patient_id": ["a", "a", "b"]}, THREE, by="patient_id")


def test_an_empty_table_is_rejected():
    with pytest.raises(ValueError, match="gives 0"):
        split_by_group({"patient_id": []}, {"train": 1.0}, by="patient_id")


def test_a_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(ValueError, match="no column `patient_id`, only image_id"):
        split_by_group({"image_id": ["a"]})
    with pytest.raises(ValueError, match="no column `study_id`"):
        leaks({"train": {"patient_id": ["a"]}}, by="study_id")
    with pytest.raises(ValueError, match="`by` is empty"):
        split_by_group({"image_id": ["a"]}, by=())


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        split_by_group({"a": [1, 2], "b": [1]}, by=("a", "b"))


def test_leaks_name_the_values_and_their_splits():
    splits = {
        "train": {"patient_id": np.array([1, 2, 3])},
        "validation": {"patient_id": [3]},
        "test": {"patient_id": [3, 2]},
    }
    assert leaks(splits, by="patient_id") == {"patient_id": {2: ("train", "test"), 3: ("train", "validation", "test")}}


def test_a_data_set_is_split_into_a_dataset_dict():
    columns = patients(60, 300)
    splits = split_by_group(Dataset.from_dict({**columns, "row": list(range(300))}))
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train", "validation", "test"]
    assert leaks(splits) == {"patient_id": {}, "near_duplicate_group": {}}
    rows = split_by_group(columns)
    assert {name: list(split["row"]) for name, split in splits.items()} == {
        name: list(indices) for name, indices in rows.items()
    }
    assert leaks({"a": splits["train"], "b": concatenate_datasets(list(splits.values()))})["patient_id"]


def test_a_format_set_on_the_data_set_changes_nothing():
    columns = patients(60, 300)
    plain = split_by_group(Dataset.from_dict(columns))
    formatted = split_by_group(Dataset.from_dict(columns).with_format("numpy"))
    assert all(list(plain[name]["patient_id"]) == list(formatted[name]["patient_id"]) for name in THREE)


def test_streamed_data_sets_and_dictionaries_of_splits_are_refused():
    streamed = Dataset.from_dict({"patient_id": ["a", "b"]}).to_iterable_dataset()
    with pytest.raises(TypeError, match="got IterableDataset.*streaming=False"):
        split_by_group(streamed, by="patient_id")
    with pytest.raises(TypeError, match="got IterableDataset"):
        leaks({"train": streamed}, by="patient_id")
    with pytest.raises(TypeError, match="got DatasetDict.*concatenate_datasets"):
        split_by_group(DatasetDict(train=Dataset.from_dict({"patient_id": ["a"]})), by="patient_id")


def test_a_column_without_any_value_is_warned_of(caplog):
    columns = {"patient_id": [None] * 6, "near_duplicate_group": list(range(6))}
    split_by_group(columns, {"train": 0.5, "test": 0.5})
    assert "value in `patient_id`," in caplog.text
    caplog.clear()
    split_by_group(columns, {"train": 0.5, "test": 0.5}, by="near_duplicate_group")
    assert not caplog.text
