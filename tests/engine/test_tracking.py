"""The log of a run, and means that are added up on the device."""

import pytest
import torch
from PIL import Image

from vasomim_hf.engine.tracking import RunLog, RunningMeans, read_log


def test_lines_are_written_and_read_back_by_kind(tmp_path):
    log = RunLog(tmp_path, is_main=True, tensorboard=False, first_step=0)
    log.write("step", 1, {"loss": 0.5})
    log.write("epoch", 1, {"epoch": 1})
    log.close()
    assert [line["loss"] for line in read_log(tmp_path, "step")] == [0.5]
    assert [line["kind"] for line in read_log(tmp_path)] == ["step", "epoch"]


def test_a_resumed_log_holds_each_step_once(tmp_path):
    log = RunLog(tmp_path, is_main=True, tensorboard=False, first_step=0)
    for step in range(1, 6):
        log.write("step", step, {"loss": step})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "ste')
    log = RunLog(tmp_path, is_main=True, tensorboard=False, first_step=3)
    log.write("step", 4, {"loss": 44})
    assert [line["loss"] for line in read_log(tmp_path)] == [1, 2, 3, 44]


def test_only_the_main_process_writes(tmp_path):
    log = RunLog(tmp_path / "run", is_main=False, tensorboard=True, first_step=0)
    log.write("step", 1, {"loss": 0.5})
    log.picture("x", 1, Image.new("L", (4, 4)), "x")
    log.close()
    assert not (tmp_path / "run").exists()


def test_numbers_and_pictures_reach_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, is_main=True, tensorboard=True, first_step=0)
    log.write("epoch", 7, {"loss": 0.25, "device": "cpu"})
    log.picture("reconstruction", 7, Image.new("L", (4, 4), 200), "epoch_0007")
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("epoch/loss")] == [(7, 0.25)]
    assert events.Tags()["images"] == ["reconstruction"]
    with Image.open(tmp_path / "pictures/epoch_0007.png") as picture:
        assert picture.size == (4, 4) and picture.getpixel((0, 0)) == 200


def test_means_are_weighted_and_those_without_weight_left_out():
    means = RunningMeans(("loss", "share"), torch.device("cpu"))
    means.add({"loss": (torch.tensor(1.0), 1.0), "share": (torch.tensor(0.0), torch.tensor(0.0))})
    assert means.read(means.sums) == {"loss": 1.0}
    means.add({"loss": (torch.tensor(2.0), 1.0), "share": (torch.tensor(3), torch.tensor(4))})
    assert means.read(means.sums) == {"loss": 1.5, "share": 0.75}
    means.reset()
    assert means.read(means.sums) == {}


def test_means_do_not_hold_the_graph():
    means = RunningMeans(("loss",), torch.device("cpu"))
    means.add({"loss": (torch.ones((), requires_grad=True) * 2, 1.0)})
    assert not means.sums.requires_grad
