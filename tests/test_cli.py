"""The command line: what it parses, what it hands on, and how it ends."""

import inspect
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vasomim_hf
from vasomim_hf import cli
from vasomim_hf.cli import main


def frame(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((80, 90), 170, np.uint8)
    pixels[:, 40:44] = 60
    Image.fromarray(pixels).save(path)
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, function: object) -> None:
    """Put a function where the command imports it from, whether or not that module can be imported."""
    fake = types.ModuleType(f"vasomim_hf.{module}")
    setattr(fake, name, function)
    monkeypatch.setitem(sys.modules, f"vasomim_hf.{module}", fake)
    monkeypatch.setattr(vasomim_hf, module, fake, raising=False)


def test_vesselness_writes_a_mask_per_frame_and_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    single = frame(tmp_path / "single.png")
    frame(tmp_path / "frames/sub/1.png")
    output = tmp_path / "masks"
    assert main(["vesselness", str(tmp_path / "frames"), str(single), "--output", str(output)]) == 0
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.png")} == {"sub/1.png", "single.png"}
    assert "2 masks written, 0 already exist, 0 frames failed" in capsys.readouterr().out


def test_vesselness_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vasomim_hf.data import vesselness

    seen = {}

    def record(inputs: list, output: str, **others: object) -> vesselness.VesselnessReport:
        seen.update(inputs=inputs, output=output, **others)
        return vesselness.VesselnessReport()

    monkeypatch.setattr(vesselness, "vesselness_files", record)
    arguments = "vesselness a b --output c --border 0 --region largest --bits-stored 10 --num-workers 2 --overwrite"
    assert main([*arguments.split(), *["--sigmas", "1.5", "3", "--percentile", "90", "--no-floor", "--response"]]) == 0
    assert seen == {
        "inputs": ["a", "b"],
        "output": "c",
        "kind": "response",
        "border": 0,
        "region": "largest",
        "sigmas": [1.5, 3.0],
        "percentile": 90.0,
        "floor": False,
        "bits_stored": 10,
        "num_workers": 2,
        "overwrite": True,
    }
    seen.clear()
    assert main(["vesselness", "a", "--output", "c"]) == 0
    others = {"kind": "mask", "bits_stored": None, "num_workers": None, "overwrite": False}
    assert seen == {"inputs": ["a"], "output": "c", **others}


def test_vesselness_names_the_defaults_that_hold() -> None:
    from vasomim_hf.data.vesselness import VesselnessOptions

    options = VesselnessOptions()
    sigmas = " ".join(f"{sigma:g}" for sigma in options.sigmas)
    assert (
        options.floor
        and (
            f"--border {options.border} --sigmas {sigmas} --percentile {options.percentile:g} --region "
            f"{options.region}, with the floor"
        )
        == cli._METHOD
    )


def test_vesselness_writes_masks_and_responses_by_its_flags(tmp_path: Path) -> None:
    from vasomim_hf.data.vesselness import vessel_mask, vesselness_response

    path = frame(tmp_path / "1.png")
    with Image.open(path) as image:
        pixels = np.array(image)
    flags = ["--border", "3", "--sigmas", "2", "3"]
    masks, maps = tmp_path / "masks", tmp_path / "maps"
    mask_flags = ["--percentile", "80", "--no-floor", "--region", "all"]
    assert main(["vesselness", str(path), "--output", str(masks), *flags, *mask_flags]) == 0
    assert main(["vesselness", str(path), "--output", str(maps), *flags, "--response"]) == 0
    with Image.open(masks / "1.png") as mask, Image.open(maps / "1.png") as response:
        wanted = vessel_mask(pixels, 3, sigmas=(2, 3), percentile=80, floor=False, region="all")
        assert np.array_equal(np.array(mask), wanted * np.uint8(255))
        wanted = np.rint(vesselness_response(pixels, 3, sigmas=(2, 3)) * 255)
        assert np.array_equal(np.array(response), wanted) and (wanted % 255 > 0).sum() > 0


def test_vesselness_does_the_rest_and_ends_with_1_when_a_frame_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frame(tmp_path / "frames/good.png")
    bad = tmp_path / "frames/bad.png"
    bad.write_bytes(b"no image")
    assert main(["vesselness", str(tmp_path / "frames"), "--output", str(tmp_path / "masks")]) == 1
    assert (tmp_path / "masks/good.png").is_file()
    printed = capsys.readouterr()
    assert f"vasomim: failed: {bad}:" in printed.err
    assert "1 masks written, 0 already exist, 1 frames failed" in printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "x` contains no frames, and no other files."),
        (["--border", "-1"], "`border` must be an integer"),
        (["--percentile", "nan"], "`percentile` must be in [0, 100], got nan."),
        (["--sigmas", "1", "0"], "`sigmas` must contain at least one scale in pixels, each > 0, got (1.0, 0.0)."),
        (["--response", "--region", "all"], "`region` only applies to masks"),
    ],
)
def test_a_users_error_is_one_line_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    (tmp_path / "x").mkdir()
    assert main(["vesselness", str(tmp_path / "x"), "--output", str(tmp_path / "masks"), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("vasomim: error: ") and printed.count("\n") == 1 and message in printed


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vasomim_hf.cli", *arguments], capture_output=True, text=True)


def test_stray_and_broken_files_are_named_and_the_rest_is_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frames, output = tmp_path / "frames", tmp_path / "masks"
    frame(frames / "good.png")
    (frames / "notes.txt").write_text("stray")
    (frames / ".DS_Store").write_text("hidden")
    command = ["vesselness", str(frames), "--output", str(output)]
    result = run(*command)
    assert (result.returncode, result.stdout) == (0, f"1 masks written, 0 already exist, 0 frames failed: {output}\n")
    assert result.stderr == f"{frames}: skipped 2 files that are not frames, e.g. notes.txt\n"
    bad = frames / "bad.png"
    bad.write_text("no image")
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.out == f"0 masks written, 1 already exist, 1 frames failed: {output}\n"
    assert f"vasomim: failed: {bad}: `{bad}` cannot be read" in told.err
    (frames / "good.png").unlink()
    bad.unlink()
    assert main(command) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"vasomim: error: `{frames}` contains no frames, only 2 other files.")
    assert told.out == "" and told.err.count("\n") == 1


def test_a_missing_input_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["vesselness", str(tmp_path / "nowhere.png"), "--output", str(tmp_path / "masks")]) == 2
    assert "nowhere.png` does not exist" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no frames"):
        main(["vesselness", str(tmp_path), "--output", str(tmp_path / "masks"), "--debug"])


def test_convert_hands_settings_on_in_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    stand_in(
        monkeypatch, "convert_vasomim_to_hf", "convert", lambda *paths, **config: seen.update(config, paths=paths)
    )
    settings = ["num_attention_heads=4", "norm_pix_loss=True", "x=none=1", "mask_ratio=0.75", "--config", "y=[1, 2]"]
    assert main(["convert", "a.pth", "folder", "--config", *settings]) == 0
    assert seen == {
        "paths": ("a.pth", "folder"),
        "num_attention_heads": 4,
        "norm_pix_loss": True,
        "x": "none=1",
        "mask_ratio": 0.75,
        "y": [1, 2],
        "segmentor": None,
        "strict": False,
        "overwrite": False,
    }


def test_convert_has_a_flag_for_each_parameter_that_its_errors_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from vasomim_hf.convert_vasomim_to_hf import convert

    named = [
        name
        for name, parameter in inspect.signature(convert).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    ]
    assert named == list(cli._CONVERT_ARGUMENTS)
    seen = {}
    stand_in(monkeypatch, "convert_vasomim_to_hf", "convert", lambda *paths, **others: seen.update(others))
    assert main(["convert", "a.pth", "folder", "--segmentor", "unext", "--strict", "--overwrite"]) == 0
    assert seen == {"segmentor": "unext", "strict": True, "overwrite": True}


@pytest.mark.parametrize("name", ["checkpoint", "output_dir", "segmentor", "strict", "overwrite"])
def test_convert_refuses_its_own_parameters_among_the_settings_of_the_model(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stand_in(monkeypatch, "convert_vasomim_to_hf", "convert", lambda *paths, **others: pytest.fail("was called"))
    assert main(["convert", "a.pth", "folder", "--config", f"{name}=true"]) == 2
    message = f"vasomim: error: `{name}` is not a model setting. Pass it as {cli._CONVERT_ARGUMENTS[name]} "
    assert capsys.readouterr().err == message + "instead of --config.\n"


@pytest.mark.parametrize("setting", ["heads", "=4", "two words=4"])
def test_convert_refuses_a_setting_that_is_not_key_and_value(setting: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["convert", "a.pth", "folder", "--config", setting])
    assert end.value.code == 2
    assert f"expected KEY=VALUE, got {setting!r}" in capsys.readouterr().err


def test_a_missing_extra_is_one_line_and_a_fault_of_the_program_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(error: Exception) -> object:
        def raise_it(*_: object) -> None:
            raise error

        return raise_it

    stand_in(monkeypatch, "demo", "run_demo", fail(ImportError("Install it with:\n pip install 'vasomim-hf[demo]'")))
    assert main(["demo", "--output", "folder"]) == 2
    assert capsys.readouterr().err == "vasomim: error: Install it with: pip install 'vasomim-hf[demo]'\n"
    stand_in(monkeypatch, "demo", "run_demo", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["demo", "--output", "folder"])


def test_demo_hands_its_folder_on_and_says_where_its_results_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    seen = []

    def run_demo(output: str) -> types.SimpleNamespace:
        seen.append(output)
        return types.SimpleNamespace(model=Path("out/model"), picture=Path("out/picture.png"), num_features=192)

    stand_in(monkeypatch, "demo", "run_demo", run_demo)
    assert main(["demo", "--output", "folder"]) == 0
    assert seen == ["folder"]
    line = "Model: out/model (192 features per frame)  Picture: out/picture.png\n"
    assert capsys.readouterr().out == line


def test_version_prints_the_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.strip() == vasomim_hf.__version__


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["vesselness"], ["vesselness", "a"], ["convert", "a"]])
def test_incomplete_commands_end_with_2_and_say_how_to_use_them(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: vasomim" in capsys.readouterr().err


def test_building_the_parser_imports_no_array_library() -> None:
    code = (
        "import sys, types; package = types.ModuleType('vasomim_hf'); package.__path__ = [sys.argv[1]];"
        "sys.modules['vasomim_hf'] = package; from vasomim_hf import cli; cli._parser().format_help();"
        "print(sorted({'numpy', 'torch', 'cv2', 'PIL', 'transformers'} & set(sys.modules)))"
    )
    package = str(Path(vasomim_hf.__file__).parent)
    result = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_data_frames_writes_parquet_names_what_it_left_out_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frame(tmp_path / "in/1.png")
    (tmp_path / "in/notes.txt").write_text("mine")
    (tmp_path / "salt").write_text("a secret of sixteen\n")
    arguments = ["data", "frames", str(tmp_path / "in"), str(tmp_path / "out"), "--salt-file", str(tmp_path / "salt")]
    assert main([*arguments, "--border", "5", "--keep-names"]) == 1
    told = capsys.readouterr()
    assert "notes.txt: is not an image" in told.err and str(tmp_path / "out") in told.out
    (shard,) = (tmp_path / "out/data").iterdir()
    assert shard.name == "train-00000-of-00001.parquet"


def test_data_frames_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vasomim_hf.data import own_frames
    from vasomim_hf.data.reading.frame import ReadOptions
    from vasomim_hf.data.vesselness import VesselnessOptions

    seen = []
    monkeypatch.setattr(own_frames, "export_frames", lambda *args, **options: seen.append((args, options)) or [])
    (tmp_path / "salt").write_text("a secret of sixteen\n")
    assert main(["data", "frames", "a", "b"]) == 0
    flags = f"--salt-file {tmp_path / 'salt'} --modalities XA RF --dicom-window --allow-burned-in --bits-stored 12 --num-workers 3"
    assert main(["data", "frames", "a", "b", *flags.split(), "--region", "all"]) == 0
    assert main(["data", "frames", "a", "b", "--modalities", "all"]) == 0
    plain = {"options": ReadOptions(), "vesselness": VesselnessOptions(), "keep_names": False, "num_workers": None}
    full = ReadOptions(12, "a secret of sixteen", True, ("XA", "RF"), True)
    assert seen == [
        (("a", "b"), plain),
        (("a", "b"), plain | {"options": full, "vesselness": VesselnessOptions(region="all"), "num_workers": 3}),
        (("a", "b"), plain | {"options": ReadOptions(modalities=None)}),
    ]


def test_data_arcade_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from vasomim_hf.data.faults import Fault
    from vasomim_hf.data.published import arcade

    seen = []
    monkeypatch.setattr(
        arcade, "export_arcade", lambda *args, **options: seen.append((args, options)) or [Fault("1.png", "is gone")]
    )
    assert main(["data", "arcade", "a", "b", "--tasks", "vessel", "side", "--num-workers", "2"]) == 1
    assert seen == [(("a", "b"), {"tasks": ["vessel", "side"], "num_workers": 2})]
    assert "1.png: is gone" in capsys.readouterr().err


def test_data_xa170k_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from vasomim_hf.data.vesselness import VesselnessOptions
    from vasomim_hf.data.xa170k import dataset as xa170k

    seen = []

    def record(*args: object) -> types.SimpleNamespace:
        seen.append(args)
        return types.SimpleNamespace(num_rows=7, faults=())

    monkeypatch.setattr(xa170k, "build_xa170k", record)
    assert main(["data", "xa170k", "a", "b"]) == 0
    flags = "--collections cadica xcad --all-cadica-frames --no-ready-masks --stream --percentile 90 --num-workers 2"
    assert main(["data", "xa170k", "a", "b", *flags.split()]) == 0
    source = xa170k.XA170KOptions(sources=("cadica", "xcad"), all_cadica_frames=True, use_masks=False, stream=True)
    full = xa170k.XA170KBuildOptions(source, VesselnessOptions(percentile=90), num_workers=2)
    assert seen == [("a", "b", xa170k.XA170KBuildOptions()), ("a", "b", full)]
    assert "7 frames of XA-170K: b" in capsys.readouterr().out


def test_data_answers_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for kind in ("frames", "arcade", "xa170k"):
        assert main(["data", kind, str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err.splitlines()
        assert len(message) == 1 and "nowhere" in message[0]
    assert not (tmp_path / "out").exists()


def test_two_builds_in_one_folder_are_answered_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from vasomim_hf.data.parquet.write import build_lock

    frame(tmp_path / "in/1.png")
    with build_lock(tmp_path / "out"):
        assert main(["data", "frames", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "Another process is building" in capsys.readouterr().err


def test_a_salt_file_that_cannot_be_read_is_answered_with_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "bytes").write_bytes(bytes(range(128, 160)))
    for name in ("bytes", "nothing", "."):
        assert main(["data", "frames", "a", "b", "--salt-file", str(tmp_path / name)]) == 2
        assert "openssl rand -hex 32" in capsys.readouterr().err
