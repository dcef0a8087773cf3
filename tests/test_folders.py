"""A folder appears under its name when it is complete, and replaces only what is of its kind."""

import pytest

from vasomim_hf.folders import atomic_file, check_writable, new_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_it_is_filled(tmp_path):
    target = tmp_path / "a" / "model"
    with pytest.raises(RuntimeError, match="stop"), new_folder(target) as folder:
        (folder / "x").write_text("1")
        raise RuntimeError("stop")
    assert names(tmp_path / "a") == []


def test_a_folder_of_the_same_kind_is_replaced_as_a_whole_and_others_are_not(tmp_path):
    target = tmp_path / "model"
    for text in ("1", "2"):
        with new_folder(target, overwrite=True, marker="state.json") as folder:
            (folder / "state.json").write_text(text)
            (folder / f"only_{text}").touch()
    assert names(target) == ["only_2", "state.json"] and names(tmp_path) == ["model"]
    with pytest.raises(FileExistsError, match="no config.json"), new_folder(target, overwrite=True):
        pass
    with pytest.raises(FileExistsError, match="pass overwrite=True"), new_folder(target):
        pass
    assert (target / "state.json").read_text() == "2"


def test_an_older_folder_stays_when_writing_fails(tmp_path):
    target = tmp_path / "model"
    with new_folder(target) as folder:
        (folder / "config.json").write_text("old")
    with pytest.raises(RuntimeError), new_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text("new")
        raise RuntimeError
    assert (target / "config.json").read_text() == "old" and names(tmp_path) == ["model"]


def test_a_folder_is_as_open_as_others_of_the_user(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch").chmod(0o777)
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "scratch" / "model") as folder:
        (folder / "config.json").touch()
    assert (tmp_path / "scratch" / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_file(target) as path:
        path.write_text("old")
        assert not target.exists() and path.suffix == ".txt"
    with pytest.raises(RuntimeError, match="stop"), atomic_file(target) as path:
        path.write_text("half of the n")
        raise RuntimeError("stop")
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "file.json")
    assert names(tmp_path / "new" / "deep") == []
    with pytest.raises(IsADirectoryError, match="new is a folder."):
        check_writable(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Cannot write to .*file"):
        check_writable(tmp_path / "file" / "results.json")
