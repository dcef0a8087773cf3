"""The scripts as a user runs them: thin, helpful, stoppable from outside, and two processes that really are two."""

import importlib.util
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vasomim_hf.engine import script as script_module
from vasomim_hf.engine.label_efficiency.run import LabelEfficiencyRun
from vasomim_hf.engine.pretraining.loop import TrainingResult
from vasomim_hf.engine.run_config import PretrainRun
from vasomim_hf.engine.script import run_script
from vasomim_hf.engine.tracking import read_log


TRAINING = Path(__file__).parents[2] / "training"
SCRIPTS = sorted(TRAINING.glob("*.py"))
MODEL = {
    **{"image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    **{"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    **{"decoder_intermediate_size": 64, "filter_weight": 1.0, "consistency_loss_weight": 0.0},
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Sixteen frames with one dark line each."""
    folder = tmp_path_factory.mktemp("data") / "frames"
    folder.mkdir()
    for seed in range(16):
        image = np.random.default_rng(seed).integers(150, 170, (96, 96), dtype=np.uint8)
        image[:, 30 + seed : 34 + seed] = 60
        Image.fromarray(image).save(folder / f"{seed:02d}.png")
    return folder


def write_run(folder, frames, **changes):
    values = {
        **{"data": str(frames), "output_dir": str(folder / "run"), "cache_dir": str(frames.parent / "cache")},
        **{"preset": "tiny", "model": MODEL, "batch_size": 4, "epochs": 2, "warmup_ratio": 0, "num_workers": 0},
        **{"mixed_precision": "no", "log_every_steps": 1, "save_every_epochs": 1, "tensorboard": False},
        **{"base_learning_rate": 0.05, "picture_every_epochs": 0, "probe_frames": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def command(*arguments, launcher=()):
    return [sys.executable, *launcher, *map(str, arguments)]


def environment():
    # More threads than cores make processes wait for each other
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def execute(*arguments, launcher=()):
    return subprocess.run(
        command(*arguments, launcher=launcher), env=environment(), capture_output=True, text=True, timeout=240
    )


def losses(folder):
    return [line["loss"] for line in read_log(folder / "run", "step")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= 150 and sum(line.startswith("def ") for line in lines) == 1
    assert not any(line.startswith("import torch") for line in lines)


def main_of(script):
    specification = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_names_the_command_and_every_key(script, capsys):
    assert main_of(script)(["--help"]) == 0
    shown = capsys.readouterr().out
    assert f"training/{script.name} CONFIG.yaml" in shown
    assert any(key in shown for key in ("base_learning_rate", "validation_fraction", "output_dir"))
    assert main_of(script)([]) == 2


def test_a_mistake_is_answered_in_one_line(frames, tmp_path, capsys):
    main = main_of(TRAINING / "pretrain.py")
    path = str(write_run(tmp_path, frames))
    assert main([path, "--epoch", "3"]) == 1 and "Did you mean `epochs`" in capsys.readouterr().err
    assert main([path, "--data", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: There is no folder")
    assert main([str(tmp_path / "absent.yaml")]) == 1 and "There is no run file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--batch_size", "17"), "there are only 16. Lower batch_size"),
        (("--model.mask_ratio", "2"), "`mask_ratio` must be in (0, 1), got 2"),
        (("--model.hidden_size", "abc"), "expected int"),
        (("--base_learning_rate", "1e30"), "Lower the learning rate"),
    ],
)
def test_what_a_user_can_cause_is_answered_in_one_line(frames, tmp_path, capsys, arguments, message):
    assert main_of(TRAINING / "pretrain.py")([str(write_run(tmp_path, frames)), *arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_missing_extra_is_answered_with_the_line_that_installs_it(frames, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main_of(TRAINING / "pretrain.py")([str(write_run(tmp_path, frames))]) == 1
    assert "pip install -e '.[training]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind, how", [(PretrainRun, "the same command and --resume auto"), (LabelEfficiencyRun, "the same command")]
)
def test_a_stopped_run_says_how_it_goes_on_and_ends_with_130(tmp_path, capsys, monkeypatch, kind, how):
    monkeypatch.setattr(script_module, "load_run", lambda *_: None)
    stopped = TrainingResult(False, 3, tmp_path, True)
    assert run_script("", kind, lambda _: stopped, "Done in", ["run.yaml"]) == 130
    assert capsys.readouterr().out == f"Stopped after 3 steps, saved {tmp_path}\nResume with {how}\n"

    def interrupted(_: object) -> TrainingResult:
        raise KeyboardInterrupt

    assert run_script("", kind, interrupted, "Done in", ["run.yaml"]) == 130
    assert capsys.readouterr().err == "stopped without saving, before the first step or by a second signal\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_empty_folder_ends_with_one_line(tmp_path, script, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": str(tmp_path / "empty"), "output_dir": str(tmp_path / "run")}))
    arguments = ["--mixed_precision", "no", "--cache_dir", str(tmp_path / "cache")]
    if script.stem.startswith(("finetune", "label")):
        arguments, start = [], "error: "
    else:
        start = f"error: `{tmp_path / 'empty'}` contains no frames"
    if script.stem == "pretrain":
        arguments += ["--preset", "tiny", "--model.filter_weight", "1", "--model.consistency_loss_weight", "0"]
    monkeypatch.setattr(sys, "argv", [str(script), str(path), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" not in told
    assert told.splitlines()[-1].startswith(start)


def test_a_run_stopped_from_outside_saves_where_it_is_and_ends_well(frames, tmp_path):
    path = write_run(tmp_path, frames)
    process = subprocess.Popen(
        command(TRAINING / "pretrain.py", path, "--epochs", "100000"),
        **{"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while (
        time.monotonic() < deadline and process.poll() is None and not (log.is_file() and len(losses(tmp_path)) >= 6)
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Resume with the same command and --resume auto" in output and "Traceback" not in output
    stopped_at = len(losses(tmp_path))
    assert (tmp_path / "run/checkpoints" / f"step_{stopped_at:08d}").is_dir() and not (tmp_path / "run/final").exists()


def test_two_processes_on_one_machine_train_as_one(frames, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d")
    launcher += ("--rdzv_endpoint", "localhost:0")
    two = execute(TRAINING / "pretrain.py", write_run(tmp_path / "two", frames), launcher=launcher)
    assert two.returncode == 0, two.stderr
    one = write_run(tmp_path / "one", frames, gradient_accumulation_steps=2)
    alone = execute(TRAINING / "pretrain.py", one)
    assert alone.returncode == 0, alone.stderr
    # Two batches of one process and one batch of two are the same frames and masks: so are data, gradients and weights
    start = read_log(tmp_path / "two/run", "start")[0]
    assert (start["processes"], start["frames_per_step"], start["steps_per_epoch"]) == (2, 8, 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "two")) == 4 and (tmp_path / "two/run/final/model.safetensors").is_file()
    assert two.stdout.count("The pre-trained model is in") == 1
