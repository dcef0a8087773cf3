"""Checkpoints: exact, complete or not there, kept by count, without pickle."""

import json

import pytest
import torch

from vasomim_hf import UNeXtConfig, UNeXtForVesselSegmentation
from vasomim_hf.engine.pretraining.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    read_state,
    remove_old_checkpoints,
    save_checkpoint,
)


SIZES = {"conv_hidden_sizes": (4, 4, 5), "token_hidden_sizes": (5, 10)}


def make(seed=0, frozen=False, **changes):
    torch.manual_seed(seed)
    model = UNeXtForVesselSegmentation(UNeXtConfig(**{**SIZES, **changes}))
    if frozen:
        model.conv_stages.requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # In groups of another order than the model's, as weight decay makes them
    groups = [{"params": trainable[1::2], "weight_decay": 0.0}, {"params": trainable[::2], "weight_decay": 0.1}]
    return model.train(), torch.optim.AdamW(groups, lr=1e-2, fused=True)


def steps(model, optimizer, count, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(count):
        frames = torch.rand(2, 3, 32, 32, generator=generator)
        loss = model(frames, labels=(frames[:, :1] > 0.7).float()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("frozen", [False, True])
def test_training_goes_on_exactly_where_it_was_saved(tmp_path, frozen):
    model, optimizer = make(frozen=frozen)
    steps(model, optimizer, 3, seed=1)
    folder = save_checkpoint(tmp_path, model, optimizer, {"step": 3, "note": "x"})
    expected = steps(model, optimizer, 3, seed=2)
    other, other_optimizer = make(seed=5, frozen=frozen)
    other.eval()
    state = load_checkpoint(folder, other, other_optimizer)
    assert (state["step"], state["note"]) == (3, "x")
    assert steps(other.train(), other_optimizer, 3, seed=2) == expected


def test_the_rates_of_the_run_stay_those_of_the_run(tmp_path):
    model, optimizer = make()
    steps(model, optimizer, 1, seed=1)
    folder = save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    other, other_optimizer = make()
    other_optimizer.param_groups[0]["lr"] = 0.5
    load_checkpoint(folder, other, other_optimizer)
    assert [group["lr"] for group in other_optimizer.param_groups] == [0.5, 1e-2]


def test_a_checkpoint_before_the_first_step_can_be_loaded(tmp_path):
    folder = save_checkpoint(tmp_path, *make(), {"step": 0})
    assert load_checkpoint(folder, *make(seed=1))["step"] == 0


def test_a_checkpoint_holds_no_pickle_and_its_model_loads_alone(tmp_path):
    model, optimizer = make()
    steps(model, optimizer, 1, seed=1)
    folder = save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = UNeXtForVesselSegmentation.from_pretrained(folder / "model")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    model, optimizer = make()
    assert newest_checkpoint(tmp_path) is None
    folders = [save_checkpoint(tmp_path, model, optimizer, {"step": step}) for step in (9, 10, 100)]
    assert newest_checkpoint(tmp_path) == folders[2]
    with open(folders[2] / "model" / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    assert newest_checkpoint(tmp_path) == folders[1]
    (folders[1] / "state.json").write_text('{"format": 1, "st')
    assert newest_checkpoint(tmp_path) == folders[0]
    (folders[0] / "optimizer.safetensors").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_a_save_that_is_interrupted_leaves_the_checkpoints_as_they_were(tmp_path, monkeypatch):
    model, optimizer = make()
    first = save_checkpoint(tmp_path, model, optimizer, {"step": 1})

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vasomim_hf.folders._flush", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, model, optimizer, {"step": 2})
    assert list((tmp_path / "checkpoints").iterdir()) == [first]


def test_what_a_killed_save_has_left_is_never_taken_and_is_swept_up(tmp_path):
    model, optimizer = make()
    first = save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    second = save_checkpoint(tmp_path, model, optimizer, {"step": 2})
    second.rename(second.with_name(f".{second.name}.abc"))
    assert newest_checkpoint(tmp_path) == first
    remove_old_checkpoints(tmp_path, keep=5)
    assert list((tmp_path / "checkpoints").iterdir()) == [first]


@pytest.mark.parametrize("keep, left", [(2, [3, 4]), (1, [4]), (0, [1, 2, 3, 4])])
def test_old_checkpoints_are_removed_by_count(tmp_path, keep, left):
    model, optimizer = make()
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, model, optimizer, {"step": step})
    remove_old_checkpoints(tmp_path, keep)
    assert sorted(read_state(path)["step"] for path in (tmp_path / "checkpoints").iterdir()) == left


def test_saving_the_same_step_again_replaces_it(tmp_path):
    model, optimizer = make()
    save_checkpoint(tmp_path, model, optimizer, {"step": 1, "note": "old"})
    folder = save_checkpoint(tmp_path, model, optimizer, {"step": 1, "note": "new"})
    assert json.loads((folder / "state.json").read_text())["note"] == "new"


def test_an_incomplete_checkpoint_does_not_stand_in_the_way_of_its_step(tmp_path):
    model, optimizer = make()
    folder = save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    (folder / "state.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    assert newest_checkpoint(tmp_path) == folder


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, *make(), {"step": 1})
    with pytest.raises(ValueError, match="belongs to another model"):
        load_checkpoint(folder, *make(token_hidden_sizes=(10, 15)))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path, *make())
