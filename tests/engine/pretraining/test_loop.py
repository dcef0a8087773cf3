"""Both kinds of training on tiny models: exact resume, frozen segmentor, bad losses, what is logged and what loads."""

import json
import logging
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import default_collate
from transformers import AutoImageProcessor, AutoModel

from vasomim_hf import UNeXtForVesselSegmentation, VasoMIMForPreTraining, VasoMIMImageProcessor
from vasomim_hf.data.frame_cache import FrameCacheDataset
from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.vesselness import vessel_mask
from vasomim_hf.engine.pretraining import loop as training_loop
from vasomim_hf.engine.pretraining.checkpoints import newest_checkpoint
from vasomim_hf.engine.pretraining.frames import open_run_cache
from vasomim_hf.engine.pretraining.loop import ForwardContext, TrainingDivergedError
from vasomim_hf.engine.pretraining.model import build_config, build_model
from vasomim_hf.engine.pretraining.segmentor_training import (
    SegmentorTask,
    dice_of_masks,
    split_frames,
    train_segmentor,
)
from vasomim_hf.engine.pretraining.vasomim_training import PretrainTask, pretrain
from vasomim_hf.engine.run_config import PretrainRun, RunConfigError, SegmentorRun, load_run, make_run
from vasomim_hf.engine.tracking import RunningMeans, read_log
from vasomim_hf.progress import LONGEST_LINE


accelerate = pytest.importorskip("accelerate")

SIDE = 64
SIZES = {
    **{
        "image_size": SIDE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    **{"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    "decoder_intermediate_size": 64,
}
SEGMENTOR = {"conv_hidden_sizes": [4, 4, 5], "token_hidden_sizes": [5, 10]}
NO_SEGMENTOR = {"filter_weight": 1.0, "consistency_loss_weight": 0.0}


@pytest.fixture(autouse=True)
def forget_accelerator():
    """accelerate keeps its settings for the whole process; each run here has its own."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def synthetic_frame(seed, size=112):
    """A dark curved vessel on a soft background."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(130, 200, (6, 6), dtype=np.uint8))
    image = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    rows, columns = np.mgrid[:size, :size]
    centre = size / 2 + size / 6 * np.sin(rows / size * 4 + seed)
    return (image - 80 * np.exp(-(((columns - centre) / 2.5) ** 2))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Twenty frames."""
    folder = tmp_path_factory.mktemp("data") / "frames"
    folder.mkdir()
    for seed in range(20):
        Image.fromarray(synthetic_frame(seed)).save(folder / f"{seed:02d}.png")
    return folder


@pytest.fixture(scope="module")
def segmentor(frames, tmp_path_factory):
    """A tiny segmentor, trained for a few steps."""
    run = make_run(SegmentorRun, segmentor_values(frames, tmp_path_factory.mktemp("segmentor")))
    folder = train_segmentor(run).folder
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def common(frames, folder):
    return {
        **{"data": str(frames), "output_dir": str(folder / "run"), "cache_dir": str(frames.parent / "cache")},
        **{"batch_size": 4, "num_workers": 0, "log_every_steps": 1, "save_every_epochs": 1, "tensorboard": False},
        **{"mixed_precision": "no", "epochs": 2},
    }


def segmentor_values(frames, folder, **changes):
    return {**common(frames, folder), "model": SEGMENTOR, "image_size": SIDE, "validation_fraction": 0.1, **changes}


def pretrain_values(frames, folder, segmentor=None, **changes):
    model = {**SIZES, **({} if segmentor else NO_SEGMENTOR), **changes.pop("model", {})}
    values = {"preset": "tiny", "warmup_ratio": 0.25, "base_learning_rate": 0.05}
    values |= {"picture_every_epochs": 0, "probe_frames": 0}
    if segmentor:
        values["segmentor"] = str(segmentor)
    return {**common(frames, folder), **values, "model": model, **changes}


def run_pretraining(frames, folder, segmentor=None, **changes):
    return pretrain(make_run(PretrainRun, pretrain_values(frames, folder, segmentor, **changes)))


def losses(folder):
    return [line["loss"] for line in read_log(folder / "run", "step")]


def stop_after(monkeypatch, kind, batches, number):
    """Send a signal to this process while a batch is worked on."""
    original, count = kind.metrics, iter(range(1, 10_000))

    def metrics(self, output, inputs):
        if next(count) == batches:
            signal.raise_signal(number)
        return original(self, output, inputs)

    monkeypatch.setattr(kind, "metrics", metrics)


# Resuming


@pytest.mark.parametrize("number, precision", [(signal.SIGTERM, "no"), (signal.SIGINT, "bf16")])
def test_a_run_stopped_in_an_epoch_goes_on_as_if_it_had_not_been(
    frames, segmentor, tmp_path, monkeypatch, number, precision
):
    changes = {"gradient_accumulation_steps": 2, "batch_size": 2, "epochs": 3, "mixed_precision": precision}
    changes["model"] = {"hidden_dropout_prob": 0.1}
    run_pretraining(frames, tmp_path / "whole", segmentor, **changes)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_after(patch, PretrainTask, 13, number)
        result = run_pretraining(frames, tmp_path / "parts", segmentor, **changes)
    assert not result.finished and result.step == 7 and result.folder.name == "step_00000007"
    assert signal.getsignal(number) == before and not (tmp_path / "parts/run/final").exists()
    # Other loader processes and another log interval must not matter either
    result = run_pretraining(frames, tmp_path / "parts", segmentor, resume="auto", num_workers=2, **changes)
    assert result.finished and result.step == 15
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 15
    weights = [load_file(tmp_path / name / "run/final/model.safetensors") for name in ("whole", "parts")]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    epochs = [read_log(tmp_path / name / "run", "epoch") for name in ("whole", "parts")]
    names = ("epoch", "loss", "hidden_vessel_share", "learning_rate")
    assert [[line[n] for n in names] for line in epochs[0]] == [[line[n] for n in names] for line in epochs[1]]


def test_a_killed_run_goes_on_from_its_last_checkpoint(frames, tmp_path, monkeypatch):
    run_pretraining(frames, tmp_path / "whole", epochs=3)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTask, "epoch_values", lambda self, model, epoch, p: fail() if epoch == 2 else {})
        with pytest.raises(KeyboardInterrupt):
            run_pretraining(frames, tmp_path / "parts", epochs=3)
    assert newest_checkpoint(tmp_path / "parts/run").name == "step_00000005"
    run_pretraining(frames, tmp_path / "parts", epochs=3, resume="auto")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_pictures_of_a_run_inside_its_data_do_not_become_frames(frames, tmp_path):
    shutil.copytree(frames, tmp_path / "frames")
    places = {"data": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "picture_every_epochs": 1}
    for epochs in (1, 2):
        result = run_pretraining(frames, tmp_path, epochs=epochs, resume="auto", num_pictures=1, **places)
    assert result.step == 10 and len(list((tmp_path / "run/pictures").iterdir())) == 2
    # Also where the data's folder is the run's
    Image.fromarray(synthetic_frame(0)).save(tmp_path / "run/1.png")
    run = make_run(PretrainRun, pretrain_values(frames, tmp_path, **{**places, "data": str(tmp_path / "run")}))
    assert len(open_run_cache(run, accelerate.Accelerator(cpu=True))) == 1


def test_frames_copied_to_another_place_are_the_same_frames(frames, tmp_path):
    run_pretraining(frames, tmp_path, epochs=1)
    shutil.copytree(frames, tmp_path / "copy", copy_function=shutil.copy)
    run_pretraining(frames, tmp_path, epochs=2, resume="auto", data=str(tmp_path / "copy"), cache_dir=str(tmp_path))
    assert len(losses(tmp_path)) == 10


def test_auto_begins_where_there_is_nothing_and_ends_at_once_where_all_is_done(frames, tmp_path):
    first = run_pretraining(frames, tmp_path, resume="auto", epochs=1)
    again = run_pretraining(frames, tmp_path, resume="auto", epochs=1)
    assert first == again and len(losses(tmp_path)) == 5


def test_a_folder_in_use_is_not_written_over(frames, tmp_path):
    run_pretraining(frames, tmp_path, epochs=1)
    with pytest.raises(RunConfigError, match="run, up to step_00000005."):
        run_pretraining(frames, tmp_path, epochs=1)


@pytest.mark.parametrize("changes, message", [({"seed": 7}, "with seed=0"), ({"batch_size": 5}, "with frames_per")])
def test_a_checkpoint_is_not_resumed_with_other_steps(frames, tmp_path, changes, message):
    run_pretraining(frames, tmp_path, epochs=1)
    with pytest.raises(RunConfigError, match=message):
        run_pretraining(frames, tmp_path, **{"epochs": 2, "resume": "auto", **changes})


def test_a_changed_recipe_is_named_on_resuming(frames, tmp_path, caplog):
    run_pretraining(frames, tmp_path, epochs=1)
    run_pretraining(frames, tmp_path, epochs=1, resume="auto", weight_decay=0.3, log_every_steps=2)
    assert "resuming with weight_decay=0.3, the checkpoint was created with 0.05" in caplog.text
    assert "log_every_steps" not in caplog.text


def test_a_named_checkpoint_that_is_not_there_is_refused(frames, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"):
        run_pretraining(frames, tmp_path, resume=str(tmp_path / "absent"))


# What training does


def test_more_vessels_are_hidden_than_by_a_uniform_mask(frames, segmentor, tmp_path):
    guidance = {"guidance_ratio_start": 1.0, "guidance_ratio_end": 1.0, "filter_weight": 1.0}
    run_pretraining(frames, tmp_path, segmentor, epochs=2, model=guidance, save_every_epochs=2, probe_frames=20)
    epochs = read_log(tmp_path / "run", "epoch")
    assert {"probe_reconstruction_loss", "probe_consistency_loss", "consistency_loss"} <= epochs[-1].keys()
    assert 0 < epochs[-1]["probe_vessel_ap"] <= 1
    assert all(line["uniform_hidden_vessel_share"] == 0.5 and line["hidden_vessel_share"] > 0.8 for line in epochs)


def test_without_guidance_the_share_of_hidden_vessels_is_that_of_a_uniform_mask(frames, tmp_path):
    run_pretraining(frames, tmp_path, epochs=8, model={"guidance_ratio_end": 0.0})
    shares = [line["hidden_vessel_share"] for line in read_log(tmp_path / "run", "epoch")]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


def test_the_probe_has_the_same_masks_in_every_epoch(frames, segmentor, tmp_path):
    guidance = {"guidance_ratio_start": 0.0, "guidance_ratio_end": 1.0}
    still = {"epochs": 3, "base_learning_rate": 0.0, "probe_frames": 20}
    run_pretraining(frames, tmp_path / "still", segmentor, model=guidance, **still)
    names = ("probe_reconstruction_loss", "probe_consistency_loss")
    lines = [[line[name] for name in names] for line in read_log(tmp_path / "still/run", "epoch")]
    assert lines[0] == lines[1] == lines[2] and min(lines[0]) > 0
    run_pretraining(frames, tmp_path / "none", segmentor, epochs=1)
    assert "probe_consistency_loss" not in read_log(tmp_path / "none/run", "epoch")[0]


def test_guidance_and_learning_rate_follow_their_schedules(frames, tmp_path):
    run_pretraining(frames, tmp_path, epochs=4, warmup_ratio=0.25, base_learning_rate=0.64)
    epochs = read_log(tmp_path / "run", "epoch")
    assert [line["guidance_ratio"] for line in epochs] == [0.125, 0.25, 0.375, 0.5]
    rates = [line["learning_rate"] for line in read_log(tmp_path / "run", "step")]
    # 0.64 × 4 / 256
    assert rates[0] == 0 and max(rates) == rates[5] == pytest.approx(0.01) and 0 < rates[-1] < 1e-3


def test_the_segmentor_stays_as_it_was_trained(frames, segmentor, tmp_path):
    result = run_pretraining(frames, tmp_path, segmentor, epochs=1)
    weights = load_file(result.folder / "model.safetensors")
    expected = load_file(segmentor / "model.safetensors")
    torch.testing.assert_close({name: weights[f"segmentor.{name}"] for name in expected}, expected, rtol=0, atol=0)


def test_the_result_loads_with_the_auto_classes(frames, segmentor, tmp_path):
    result = run_pretraining(frames, tmp_path, segmentor, epochs=1)
    model, image_processor = (
        AutoModel.from_pretrained(result.folder),
        AutoImageProcessor.from_pretrained(result.folder),
    )
    inputs = image_processor(Image.open(frames / "00.png"), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert model(**inputs).last_hidden_state.shape == (1, 17, 32)
    trained = VasoMIMForPreTraining.from_pretrained(result.folder).vasomim.state_dict()
    torch.testing.assert_close(model.state_dict(), trained, rtol=0, atol=0)


def test_a_run_leaves_its_run_file_log_pictures_and_checkpoints(frames, segmentor, tmp_path):
    result = run_pretraining(
        frames, tmp_path, segmentor, epochs=3, picture_every_epochs=2, num_pictures=3, keep_checkpoints=1
    )
    folder = tmp_path / "run"
    assert result.finished and result.folder == folder / "final"
    assert {p.name for p in folder.iterdir()} == {"run.yaml", "log.jsonl", "pictures", "checkpoints", "final"}
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00000015"]
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == ["epoch_0002.png", "epoch_0003.png"]
    with Image.open(folder / "pictures/epoch_0003.png") as picture:
        assert picture.width == 6 * (SIDE + 2) - 2 and picture.height > 3 * SIDE
    assert load_run(PretrainRun, folder / "run.yaml").epochs == 3


def test_a_run_shows_short_lines_and_tensorboard_has_its_curves_and_pictures(frames, segmentor, tmp_path, caplog):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    caplog.set_level("INFO")
    run_pretraining(frames, tmp_path, segmentor, epochs=2, picture_every_epochs=1, tensorboard=True, probe_frames=4)
    texts = [text for text in caplog.messages if text.startswith("epoch")]
    assert [text.partition(": loss ")[0] for text in texts] == ["epoch 1/2", "epoch 2/2"]
    assert max(map(len, texts)) + len("11-27 14:03:12 ") <= LONGEST_LINE
    # what has no room there is in the full log
    assert "probe_consistency_loss" in read_log(tmp_path / "run", "epoch")[0]
    events = event_accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert {"step/loss", "epoch/reconstruction_loss", "epoch/probe_consistency_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("reconstruction")] == [5, 10]
    with Image.open(tmp_path / "run/pictures/epoch_0002.png") as picture:
        assert np.asarray(picture).std() > 10


def test_a_hook_may_add_files_to_the_result(frames, tmp_path):
    run = make_run(PretrainRun, pretrain_values(frames, tmp_path, epochs=1))
    result = pretrain(run, on_finished=lambda folder: (folder / "README.md").write_text("card"))
    assert (result.folder / "README.md").read_text() == "card"


def test_gradients_are_clipped_when_asked(frames, tmp_path, monkeypatch):
    seen = []
    original = accelerate.Accelerator.clip_grad_norm_
    monkeypatch.setattr(
        accelerate.Accelerator, "clip_grad_norm_", lambda self, p, norm: (seen.append(norm), original(self, p, norm))
    )
    run_pretraining(frames, tmp_path, epochs=1, gradient_accumulation_steps=2, batch_size=2, clip_grad_norm=0.3)
    assert seen == [0.3] * 5


def test_checkpointed_activations_give_the_same_losses(frames, tmp_path):
    run_pretraining(frames, tmp_path / "plain", epochs=1)
    run_pretraining(frames, tmp_path / "checkpointed", epochs=1, gradient_checkpointing=True)
    assert losses(tmp_path / "checkpointed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_training_may_begin_from_an_earlier_result(frames, segmentor, tmp_path):
    first = run_pretraining(frames, tmp_path / "a", segmentor, epochs=1)
    still = {"base_learning_rate": 0.0, "init": str(first.folder)}
    values = pretrain_values(frames, tmp_path / "b", segmentor, epochs=1, **still)
    del values["segmentor"]
    values["model"]["segmentor_config"] = SEGMENTOR
    second = pretrain(make_run(PretrainRun, values))
    before, after = (load_file(result.folder / "model.safetensors") for result in (first, second))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_model_is_put_into_training_mode(frames, tmp_path, monkeypatch):
    first = run_pretraining(frames, tmp_path / "a", epochs=1)
    modes = []
    original = VasoMIMForPreTraining.forward

    def forward(self, **arguments):
        modes.append(self.training)
        return original(self, **arguments)

    monkeypatch.setattr(VasoMIMForPreTraining, "forward", forward)
    run_pretraining(frames, tmp_path / "b", epochs=1, init=str(first.folder))
    assert modes == [True] * 5


def test_an_initial_model_of_other_sizes_is_refused(frames, tmp_path):
    first = run_pretraining(frames, tmp_path / "a", epochs=1)
    with pytest.raises(RunConfigError, match="does not match the model|not a model folder"):
        run_pretraining(frames, tmp_path / "b", init=str(first.folder), model={"hidden_size": 64})


def test_a_run_without_the_segmentor_it_needs_is_refused(frames, tmp_path):
    with pytest.raises(RunConfigError, match=r"train_segmentor\.py"):
        run_pretraining(frames, tmp_path, model={"filter_weight": 0.5})
    with pytest.raises(FileNotFoundError, match="does not match the model|not a model folder"):
        run_pretraining(frames, tmp_path, segmentor=tmp_path)


def test_the_model_has_the_segmentors_sizes(frames, segmentor, tmp_path):
    config = build_config(make_run(PretrainRun, pretrain_values(frames, tmp_path, segmentor)))
    assert list(config.segmentor_config.conv_hidden_sizes) == SEGMENTOR["conv_hidden_sizes"]


def test_a_model_file_takes_the_place_of_a_preset(frames, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_type": "vasomim", **SIZES, **NO_SEGMENTOR, "mask_ratio": 0.75}))
    values = pretrain_values(frames, tmp_path, preset=None, model_config=str(path))
    values["model"] = {"mask_ratio": 0.25}
    config = build_config(make_run(PretrainRun, values))
    assert (config.hidden_size, config.mask_ratio) == (32, 0.25)


# What goes wrong


def test_a_loss_that_is_not_a_number_stops_the_run_and_its_batch_can_be_replayed(
    frames, segmentor, tmp_path, monkeypatch
):
    original = VasoMIMForPreTraining.forward
    count = iter(range(1, 100))

    def forward(self, **arguments):
        output = original(self, **arguments)
        output.loss = output.loss * (float("inf") if next(count) == 8 else 1)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(VasoMIMForPreTraining, "forward", forward)
        with pytest.raises(TrainingDivergedError, match=r"step 7 \(epoch 2\).*step_00000005.*clip_grad_norm"):
            run_pretraining(frames, tmp_path, segmentor)
    folder = tmp_path / "run/diverged_step_00000007"
    about = json.loads((folder / "about_process_0.json").read_text())
    assert about["step"] == 7 and len(about["frames"]) == 4 and about["weights_are_finite"]
    model = VasoMIMForPreTraining.from_pretrained(folder / "model")
    inputs = load_file(folder / "inputs_process_0.safetensors")
    loss = model.train()(**inputs, **about["arguments"]).loss.item()
    # The same step of a run that goes well
    run_pretraining(frames, tmp_path / "well", segmentor)
    assert loss == losses(tmp_path / "well")[7]


def test_a_rate_that_is_much_too_high_is_answered_with_the_remedy(frames, tmp_path):
    with pytest.raises(TrainingDivergedError, match="Lower the learning rate"):
        run_pretraining(frames, tmp_path, base_learning_rate=1e30, warmup_ratio=0)


def test_a_batch_larger_than_the_data_is_refused(frames, tmp_path):
    with pytest.raises(ValueError, match="there are only 20. Lower batch_size"):
        run_pretraining(frames, tmp_path, batch_size=21)


def test_processes_that_do_not_know_each_other_are_refused(frames, tmp_path, monkeypatch):
    alone = accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunConfigError, match="ACCELERATE_USE_CPU=1 torchrun"):
        run_pretraining(frames, tmp_path)


@pytest.mark.parametrize(
    "capabilities, is_slow", [({}, True), ({"avx512_bf16": True}, False), ({"amx_bf16": True}, False)]
)
def test_a_processor_without_bf16_is_named(frames, tmp_path, monkeypatch, caplog, capabilities, is_slow):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **capabilities}, raising=False
    )
    caplog.set_level(logging.INFO)
    run_pretraining(frames, tmp_path, epochs=1, mixed_precision="bf16")
    assert ("--mixed_precision no is faster" in caplog.text) is is_slow
    assert "one process trains on cpu" in caplog.text


def test_steps_do_not_wait_for_an_accelerator(frames, tmp_path, monkeypatch):
    """Off the CPU the loss may only be read at log steps."""
    reads = []
    original = training_loop.TrainingLoop._check_loss
    monkeypatch.setattr(
        training_loop.TrainingLoop, "_check_loss", lambda self: (reads.append(self.step), original(self))
    )
    init = training_loop.TrainingLoop.__init__

    def pretend_accelerator(self, run, *arguments):
        init(self, run, *arguments)
        self.is_alone_on_cpu, self.check_every = False, run.log_every_steps

    monkeypatch.setattr(training_loop.TrainingLoop, "__init__", pretend_accelerator)
    run_pretraining(frames, tmp_path, log_every_steps=2, epochs=1)
    assert reads == [2, 4, 5]


def steps_of(frames, segmentor, tmp_path, device):
    """A task, its model and a function that does one step up to the running means."""
    run = make_run(PretrainRun, pretrain_values(frames, tmp_path, segmentor))
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu")
    model = build_model(run).to(device).train()
    dataset = FrameCacheDataset(open_run_cache(run, accelerator), (SIDE, SIDE))
    task = PretrainTask(run, model.config, VasoMIMImageProcessor(), dataset)
    means = RunningMeans(task.metric_names, device)
    batch = {name: tensor.to(device) for name, tensor in default_collate([dataset[i] for i in range(4)]).items()}
    context = ForwardContext(0.5, torch.Generator(device).manual_seed(0))
    return task, model, means, batch, context


def test_what_surrounds_the_model_in_a_step_does_not_wait_for_a_device(
    frames, segmentor, tmp_path, counted_operations
):
    task, model, means, batch, context = steps_of(frames, segmentor, tmp_path, torch.device("cpu"))
    output = model(**task.inputs(batch, context))
    with counted_operations:
        means.add(task.metrics(output, task.inputs(batch, context)))
    # `lift_fresh` is a tensor made of Python numbers, which an accelerator would have to be waited for
    assert len(counted_operations.names) > 10 and not counted_operations.waiting
    assert "lift_fresh" not in counted_operations.names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_cuda_does_not_wait_for_it(frames, segmentor, tmp_path):
    task, model, means, batch, context = steps_of(frames, segmentor, tmp_path, torch.device("cuda"))
    means.add(task.metrics(model(**task.inputs(batch, context)), task.inputs(batch, context)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs = task.inputs(batch, context)
        output = model(**inputs)
        output.loss.backward()
        means.add(task.metrics(output, inputs))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The segmentor


def test_the_segmentor_follows_its_schedule_and_its_folder_loads(frames, tmp_path):
    values = segmentor_values(frames, tmp_path, epochs=4, learning_rate=0.01, model={}, picture_every_epochs=3)
    result = train_segmentor(make_run(SegmentorRun, values))
    epochs = read_log(tmp_path / "run", "epoch")
    assert all(0 <= line["validation_dice"] <= 1 for line in epochs)
    rates = [line["learning_rate"] for line in epochs]
    assert rates == pytest.approx([0.01 * (1 - epoch / 4) ** 0.9 for epoch in range(4)])
    assert isinstance(UNeXtForVesselSegmentation.from_pretrained(result.folder), UNeXtForVesselSegmentation)
    assert AutoImageProcessor.from_pretrained(result.folder).size["height"] == SIDE
    assert sorted(p.name for p in (tmp_path / "run/pictures").iterdir()) == ["epoch_0003.png", "epoch_0004.png"]


def test_a_stopped_segmentor_run_goes_on_exactly(frames, tmp_path, monkeypatch):
    train_segmentor(make_run(SegmentorRun, segmentor_values(frames, tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_after(patch, SegmentorTask, 6, signal.SIGTERM)
        stopped = train_segmentor(make_run(SegmentorRun, segmentor_values(frames, tmp_path / "parts")))
    assert not stopped.finished and stopped.step == 6
    train_segmentor(make_run(SegmentorRun, segmentor_values(frames, tmp_path / "parts", resume="auto")))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 8


def test_held_out_frames_are_not_trained_on():
    class Cache:
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def select(self, indices):
            return Cache([self.rows[i] for i in indices])

    training, validation = split_frames(Cache(list(range(1000))), 0.1, seed=0)
    assert len(validation) == 100 and sorted(training.rows + validation.rows) == list(range(1000))
    assert split_frames(Cache(list(range(1000))), 0.1, seed=1)[1].rows != validation.rows
    assert len(split_frames(Cache(list(range(20_000))), 0.1, seed=0)[1]) == 512
    assert (
        len(split_frames(Cache([1, 2]), 0.01, seed=0)[1]) == 1 and len(split_frames(Cache([1]), 0.0, seed=0)[1]) == 0
    )


def test_dice_of_empty_masks_is_one_and_of_a_missed_vessel_zero():
    masks = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    expected = masks.clone()
    expected[1, 0, 0], expected[2, 0, :2] = True, True
    masks[2, 0, 0] = True
    assert dice_of_masks(masks, expected).tolist() == pytest.approx([1.0, 0.0, 2 * 4 / 12])


def test_relative_paths_of_a_run_are_those_of_the_working_directory(frames, tmp_path, monkeypatch):
    monkeypatch.chdir(frames.parent)
    result = run_pretraining(Path("frames"), tmp_path, epochs=1, cache_dir="cache")
    assert result.finished


# Parquet instead of a cache


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """The twenty frames and their vesselness in two shards with row groups of three."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), vesselness=datasets.Image())
    folder = tmp_path_factory.mktemp("streamed") / "parquet"
    folder.mkdir()
    images = [synthetic_frame(seed) for seed in range(20)]
    rows = [
        {
            "image": {"bytes": encode_png(image), "path": None},
            "vesselness": {"bytes": encode_mask_png(vessel_mask(image)), "path": None},
        }
        for image in images
    ]
    for shard in range(2):
        dataset = datasets.Dataset.from_list(rows[shard::2], features)
        dataset.to_parquet(folder / f"train-{shard:05d}-of-00002.parquet", batch_size=3)
    return folder


def test_a_stopped_run_from_parquet_goes_on_as_if_it_had_not_been_and_makes_no_cache(
    parquet, segmentor, tmp_path, monkeypatch
):
    changes = {"streaming": True, "gradient_accumulation_steps": 2, "batch_size": 2, "epochs": 3}
    changes |= {"model": {"hidden_dropout_prob": 0.1}, "cache_dir": str(tmp_path / "cache"), "probe_frames": 2}
    run_pretraining(parquet, tmp_path / "whole", segmentor, **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, PretrainTask, 13, signal.SIGTERM)
        result = run_pretraining(parquet, tmp_path / "parts", segmentor, **changes)
    assert not result.finished and result.step == 7
    result = run_pretraining(parquet, tmp_path / "parts", segmentor, resume="auto", num_workers=2, **changes)
    assert result.finished and result.step == 15 and not (tmp_path / "cache").exists()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and len(set(losses(tmp_path / "whole"))) == 15
    weights = [load_file(tmp_path / name / "run/final/model.safetensors") for name in ("whole", "parts")]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    probes = [
        [line["probe_reconstruction_loss"] for line in read_log(tmp_path / name / "run", "epoch")]
        for name in ("whole", "parts")
    ]
    assert probes[0] == probes[1] and len(set(probes[0])) == 3


def test_a_run_from_parquet_makes_pictures_of_the_first_frames(parquet, segmentor, tmp_path, monkeypatch):
    shown = []
    original = PretrainTask.picture

    def picture(self, model, epoch, progress):
        shown.append([self.picture_dataset.cache.name(i) for i in range(len(self.picture_dataset))])
        return original(self, model, epoch, progress)

    monkeypatch.setattr(PretrainTask, "picture", picture)
    changes = {"picture_every_epochs": 1, "num_pictures": 2, "probe_frames": 20, "epochs": 1}
    result = run_pretraining(parquet, tmp_path, segmentor, streaming=True, **changes)
    assert result.finished and len(list((tmp_path / "run/pictures").iterdir())) == 1
    assert shown == [[f"train-00000-of-00002.parquet, row {row}" for row in (0, 1)]]
    # More frames than the first row group has come from all over the data
    assert read_log(tmp_path / "run", "epoch")[0]["probe_reconstruction_loss"] > 0


def test_a_run_from_parquet_sees_the_frames_of_the_first_rows_only_if_told(parquet, tmp_path):
    run_pretraining(parquet, tmp_path, streaming=True, max_frames=9, epochs=1)
    start = read_log(tmp_path / "run", "start")[0]
    assert (start["frames"], start["steps_per_epoch"]) == (9, 2)


def test_a_loss_that_is_no_number_names_the_rows(parquet, tmp_path, monkeypatch):
    original = VasoMIMForPreTraining.forward

    def forward(self, **arguments):
        output = original(self, **arguments)
        output.loss = output.loss * float("inf")
        return output

    monkeypatch.setattr(VasoMIMForPreTraining, "forward", forward)
    with pytest.raises(TrainingDivergedError):
        run_pretraining(parquet, tmp_path, streaming=True, epochs=1)
    about = json.loads((tmp_path / "run/diverged_step_00000000/about_process_0.json").read_text())
    assert len(about["frames"]) == 4 and all(".parquet, row " in name for name in about["frames"])


@pytest.mark.parametrize(
    "change", [{"streaming": False}, {"batch_size": 2, "gradient_accumulation_steps": 2}, {"max_frames": 19}]
)
def test_a_run_from_parquet_is_not_resumed_in_another_order(parquet, tmp_path, change, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    run_pretraining(parquet, tmp_path, streaming=True, epochs=1)
    with pytest.raises(RunConfigError, match="see other frames"):
        run_pretraining(
            parquet,
            tmp_path,
            resume="auto",
            cache_dir=str(tmp_path / "c"),
            **{"streaming": True, "epochs": 2, **change},
        )


def test_options_of_a_cache_do_not_go_with_streaming(parquet, tmp_path):
    for change in ({"vesselness": {"border": 3}}, {"masks": "somewhere"}, {"frame_list": "names.txt"}):
        with pytest.raises(RunConfigError, match="need a frame cache; `streaming` takes every row"):
            run_pretraining(parquet, tmp_path, streaming=True, **change)
    with pytest.raises(RunConfigError, match="unknown key `streaming`"):
        make_run(SegmentorRun, segmentor_values(parquet, tmp_path, streaming=True))
    with pytest.raises(ValueError, match="expected|holds no|has no split"):
        folder = tmp_path / "pictures"
        folder.mkdir()
        Image.fromarray(synthetic_frame(0)).save(folder / "0.png")
        run_pretraining(folder, tmp_path, streaming=True)
