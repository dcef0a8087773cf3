"""The demonstration: a small one ends with a folder that loads, a picture and one line that says where they are."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModel

from vasomim_hf import cli
from vasomim_hf.demo import DemoResult, run_demo


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "notes.txt").write_text("keep me")
    (folder / ".vasomim-demo").touch()
    (folder / "frames").mkdir()
    (folder / "frames" / "old.png").write_text("left by an earlier demonstration")
    return run_demo(folder, num_frames=20, size=128, epochs=(1, 1))


def test_demo_ends_with_a_folder_that_loads(result):
    assert AutoModel.from_pretrained(result.model).config.hidden_size == result.num_features == 192
    assert (result.model / "README.md").is_file()


def test_demo_ends_with_a_picture_of_five_columns(result):
    picture = np.asarray(Image.open(result.picture))
    assert picture.shape[1] >= 5 * 224
    columns = np.array_split(picture[20:], 5, axis=1)
    assert set(np.unique(columns[1][:220])) <= {0, 255}, "vesselness is black and white"
    assert all(column.std() > 5 for column in columns[:4])


def test_demo_replaces_an_earlier_one_and_leaves_other_files_alone(result):
    folder = result.model.parent
    assert (folder / "notes.txt").read_text() == "keep me"
    assert not (folder / "frames" / "old.png").exists()


@pytest.mark.parametrize("name", ["frames", "runs", "model"])
def test_demo_refuses_a_folder_with_frames_that_are_not_its_own(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "patient.png").touch()
    with pytest.raises(FileExistsError, match=f"{name} .*demonstration"):
        run_demo(tmp_path)
    assert (tmp_path / name / "patient.png").exists()


def test_demo_command_says_where_the_results_are(result, monkeypatch, capsys):
    monkeypatch.setattr("vasomim_hf.demo.run_demo", lambda output: result)
    assert cli.main(["demo", "--output", "anywhere"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert str(result.model) in line and str(result.picture) in line
