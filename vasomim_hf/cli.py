"""The command `vasomim`: data sets, vesselness masks, checkpoint conversion, evaluation and a demonstration.

Each command imports its dependencies when it runs, so `vasomim --help` is fast.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_type_hints


# errors caused by input or installation; any other error keeps its traceback
_USER_ERRORS = (ValueError, OSError, ImportError)
# another process works on the same build, or its source changed during the build
_BUILD_ERRORS = (RuntimeError,)
# exit code that shells use for Ctrl-C
_STOPPED = 130
_METHOD = "--border 20 --sigmas 1 2 3 4 --percentile 92 --region brightest, with the floor"
# parameters of `convert` that are not model settings, and their flags
_CONVERT_ARGUMENTS = {
    "checkpoint": "CHECKPOINT",
    "output_dir": "OUTPUT",
    "segmentor": "--segmentor",
    "strict": "--strict",
    "overwrite": "--overwrite",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments without the program name; defaults to those of the process.

    Returns:
        `int`: 0 for success, 1 if part of the work failed, 2 if it could not be done, 130 if it was stopped.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (*_USER_ERRORS, *arguments.other_user_errors) as error:
        if arguments.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"vasomim: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print("vasomim: stopped", file=sys.stderr)
        return _STOPPED


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of errors")
    shared.set_defaults(other_user_errors=())
    parser = argparse.ArgumentParser(prog="vasomim", description="A foundation model for X-ray angiograms.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_data, _add_vesselness, _add_convert, _add_evaluate, _add_compare, _add_demo, _add_version):
        add(commands, shared)
    return parser


def _add_vesselness(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "vesselness",
        parents=[shared],
        help="write vessel masks of frames",
        description="Write a vessel mask (PNG, 0 and 255) for each frame, with the stem of the frame.",
        epilog=f"Filter defaults are those of the method: {_METHOD}.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a frame, or a folder of frames")
    parser.add_argument("--output", required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--response",
        action="store_const",
        const="response",
        default="mask",
        dest="kind",
        help="write the filter response instead: 8-bit PNG, scaled to a maximum of 255",
    )
    _add_filter_options(parser)
    parser.add_argument(
        "--bits-stored", type=int, metavar="BITS", help="bit depth of 16-bit frames (default: inferred)"
    )
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="number of processes (default: by the number of frames)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=_vesselness)


def _add_filter_options(parser: argparse.ArgumentParser) -> None:
    """Flags named like the fields of `VesselnessOptions`; flags not given stay `None`, so the defaults apply."""
    parser.add_argument("--border", type=int, metavar="PIXELS", help="width of the border without vessels")
    parser.add_argument("--sigmas", type=float, nargs="+", metavar="PIXELS", help="scales of the filter")
    parser.add_argument("--percentile", type=float, metavar="PERCENT", help="threshold of the mask")
    parser.add_argument(
        "--region",
        choices=("brightest", "largest", "all"),
        help="connected regions to keep: the one with the strongest response, the largest, or all",
    )
    parser.add_argument(
        "--no-floor",
        action="store_const",
        const=False,
        dest="floor",
        help="do not truncate the response to integers before the threshold",
    )


def _vesselness(arguments: argparse.Namespace) -> int:
    from .data.vesselness import vesselness_files

    report = vesselness_files(
        arguments.inputs,
        arguments.output,
        kind=arguments.kind,
        bits_stored=arguments.bits_stored,
        num_workers=arguments.num_workers,
        overwrite=arguments.overwrite,
        **_filter_options(arguments),
    )
    for path, reason in report.failed.items():
        print(f"vasomim: failed: {path}: {reason}", file=sys.stderr)
    print(f"{report}: {arguments.output}")
    return 1 if report.failed else 0


def _add_data(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "data",
        help="convert archives and folders of angiograms to Parquet for `load_dataset`",
        description="Convert archives and folders of angiograms to a Parquet folder for `load_dataset`. Run an interrupted "
        "command again to resume. Skipped items are listed at the end.",
    )
    kinds = parser.add_subparsers(title="kinds of data", metavar="KIND", required=True)
    both = argparse.ArgumentParser(add_help=False, parents=[shared])
    both.add_argument("source", metavar="SOURCE", help="location of the data")
    both.add_argument("output", metavar="OUTPUT", help="output folder")
    both.add_argument("--num-workers", type=int, metavar="N", help="number of processes (default: number of cores)")
    for add in (_add_data_xa170k, _add_data_arcade, _add_data_frames):
        add(kinds, both)


def _add_data_xa170k(kinds: Any, both: argparse.ArgumentParser) -> None:
    parser = kinds.add_parser(
        "xa170k",
        parents=[both],
        help="the pre-training data, with vesselness masks and groups of near duplicates",
        description="SOURCE is the authors' zip, that zip extracted, or the originals of the four collections, separate or "
        "in one folder; or the authors' repository on the Hub, waha2000huang/XA-170K, which is downloaded.",
    )
    parser.add_argument(
        "--collections", nargs="+", metavar="NAME", help="collections to use: cadica, syntax, xcad, coronarydominance"
    )
    parser.add_argument("--layout", metavar="NAME", help="collection of a folder that is not recognised")
    parser.add_argument(
        "--all-cadica-frames", action="store_true", help="all frames of CADICA's videos instead of key frames"
    )
    parser.add_argument("--no-ready-masks", action="store_true", help="ignore existing masks and compute new ones")
    parser.add_argument(
        "--stream", action="store_true", help="read a zip on the Hub over the network without downloading it"
    )
    _add_filter_options(parser)
    parser.set_defaults(run=_data_xa170k, other_user_errors=_BUILD_ERRORS)


def _data_xa170k(arguments: argparse.Namespace) -> int:
    from .data.vesselness import VesselnessOptions
    from .data.xa170k.dataset import XA170KBuildOptions, XA170KOptions, build_xa170k

    _log_to_terminal()
    source = XA170KOptions(
        layout=arguments.layout,
        sources=None if arguments.collections is None else tuple(arguments.collections),
        all_cadica_frames=arguments.all_cadica_frames,
        use_masks=not arguments.no_ready_masks,
        stream=arguments.stream,
    )
    options = XA170KBuildOptions(
        source, VesselnessOptions(**_filter_options(arguments)), num_workers=arguments.num_workers
    )
    report = build_xa170k(arguments.source, arguments.output, options)
    print(f"{report.num_rows} frames of XA-170K: {arguments.output}")
    return _print_faults(report.faults)


def _add_data_arcade(kinds: Any, both: argparse.ArgumentParser) -> None:
    parser = kinds.add_parser(
        "arcade",
        parents=[both],
        help="the downstream data set ARCADE, one configuration per task",
        description="SOURCE is the extracted archive of ARCADE. All available splits are written.",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="some of vessel, segments, stenosis, stenosis_boxes, side (default: all)",
    )
    parser.set_defaults(run=_data_arcade, other_user_errors=_BUILD_ERRORS)


def _data_arcade(arguments: argparse.Namespace) -> int:
    from .data.published.arcade import export_arcade

    _log_to_terminal()
    report = export_arcade(
        arguments.source, arguments.output, tasks=arguments.tasks, num_workers=arguments.num_workers
    )
    print(f"ARCADE: {arguments.output}")
    return _print_faults(report)


def _add_data_frames(kinds: Any, both: argparse.ArgumentParser) -> None:
    parser = kinds.add_parser(
        "frames",
        parents=[both],
        help="your own images, arrays, videos and DICOM cines, one row per frame, with vesselness masks",
        description="SOURCE is a file, or a folder with files at any depth. By default OUTPUT contains no file or folder names "
        "and no ids or dates of DICOM files.",
    )
    parser.add_argument(
        "--salt-file",
        metavar="FILE",
        help="file with a secret: patients, studies and series are then identified by hashes keyed with it",
    )
    parser.add_argument("--keep-names", action="store_true", help="add the path of each file as the column `name`")
    parser.add_argument(
        "--modalities", nargs="+", metavar="NAME", help="DICOM modalities to read, or `all` (default: XA)"
    )
    parser.add_argument("--dicom-window", action="store_true", help="apply the window or lookup table of DICOM files")
    parser.add_argument(
        "--allow-burned-in",
        action="store_true",
        help="read DICOM files marked as having patient text burned in",
    )
    parser.add_argument(
        "--bits-stored", type=int, metavar="BITS", help="bit depth of 16-bit images and arrays (default: inferred)"
    )
    _add_filter_options(parser)
    parser.set_defaults(run=_data_frames, other_user_errors=_BUILD_ERRORS)


def _data_frames(arguments: argparse.Namespace) -> int:
    from .data.own_frames import export_frames
    from .data.reading.frame import ReadOptions
    from .data.vesselness import VesselnessOptions

    _log_to_terminal()
    known: dict[str, Any] = {}
    if arguments.modalities is not None:
        known["modalities"] = None if arguments.modalities == ["all"] else tuple(arguments.modalities)
    options = ReadOptions(
        bits_stored=arguments.bits_stored,
        salt=None if arguments.salt_file is None else _read_salt(arguments.salt_file),
        apply_window=arguments.dicom_window,
        allow_burned_in=arguments.allow_burned_in,
        **known,
    )
    report = export_frames(
        arguments.source,
        arguments.output,
        options=options,
        vesselness=VesselnessOptions(**_filter_options(arguments)),
        keep_names=arguments.keep_names,
        num_workers=arguments.num_workers,
    )
    print(f"frames: {arguments.output}")
    return _print_faults(report)


def _read_salt(path: str) -> str:
    # from a file, because command-line arguments are visible to other users and stored in the shell history
    try:
        with open(path, "rb") as file:
            return file.read().decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--salt-file {path} cannot be read as text ({type(error).__name__}). Create one with: "
            "openssl rand -hex 32 > FILE"
        ) from error


def _log_to_terminal() -> None:
    from .progress import set_up_logging

    set_up_logging()


def _filter_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in ("border", "sigmas", "percentile", "region", "floor")}
    return {name: value for name, value in given.items() if value is not None}


def _print_faults(faults: Iterable[Any]) -> int:
    """Print skipped or corrected items, one per line; returns 1 if there are any."""
    lines = [f"vasomim: {fault.name}: {fault.reason}" for fault in faults]
    print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
    return 1 if lines else 0


def _add_convert(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "convert",
        parents=[shared],
        help="convert a checkpoint of the original code to a folder for `from_pretrained`",
        description="Convert a .pth or .safetensors checkpoint of the original code to a folder for `from_pretrained`.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth or .safetensors file")
    parser.add_argument("output", metavar="OUTPUT", help="output folder")
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help="settings that cannot be inferred from the weights, such as num_attention_heads=4 norm_pix_loss=true",
    )
    parser.add_argument("--segmentor", metavar="PATH", help="folder or checkpoint of a segmentor to use in the model")
    parser.add_argument("--strict", action="store_true", help="fail on unexpected weights instead of warning")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    parser.set_defaults(run=_convert)


def _setting(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is parsed as JSON (or `True`, `False`, `None`) if possible, otherwise kept as
    text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _convert(arguments: argparse.Namespace) -> int:
    from .convert_vasomim_to_hf import convert

    settings = dict(arguments.config)
    for name, flag in _CONVERT_ARGUMENTS.items():
        if name in settings:
            raise ValueError(f"`{name}` is not a model setting. Pass it as {flag} instead of --config.")
    convert(
        arguments.checkpoint,
        arguments.output,
        segmentor=arguments.segmentor,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        **settings,
    )
    print(f"converted: {arguments.output}")
    return 0


def _add_evaluate(commands: Any, shared: argparse.ArgumentParser) -> None:
    from .engine.evaluating.request import EvaluationRequest

    parser = commands.add_parser(
        "evaluate",
        parents=[shared],
        help="evaluate a fine-tuned model on labelled frames",
        description="Evaluate a model with a head on labelled frames. Prints a table and writes all values, with a row for "
        "each frame, as JSON. Metrics are defined in docs/metrics.md and computed at the size of the annotated "
        "frames.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of the model, or its Hub id")
    _add_keys(parser, EvaluationRequest, besides=("model",), required=("output",))
    parser.set_defaults(run=_evaluate)


def _add_keys(
    parser: argparse.ArgumentParser, kind: type, besides: Sequence[str] = (), required: Sequence[str] = ()
) -> None:
    """A flag for each field of a dataclass of keys, with its type, default and help text."""
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if item.name in besides:
            continue
        flag, text, default = f"--{item.name.replace('_', '-')}", item.metadata["help"], item.default
        if types[item.name] is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        is_required = default is dataclasses.MISSING or item.name in required
        parser.add_argument(
            flag,
            type=next(part for part in get_args(types[item.name]) or (types[item.name],)),
            required=is_required,
            default=None if is_required else default,
            metavar=item.name.rpartition("_")[2].upper(),
            help=text if is_required or default is None else f"{text} (default: {default})",
        )


def _evaluate(arguments: argparse.Namespace) -> int:
    from .engine.evaluating.evaluate import evaluate_model
    from .engine.evaluating.request import EvaluationRequest
    from .evaluation.results import format_results

    _log_to_terminal()
    request = EvaluationRequest(
        **{item.name: getattr(arguments, item.name) for item in dataclasses.fields(EvaluationRequest)}
    )
    results = evaluate_model(request)
    print(f"{format_results(results)}{arguments.output}")
    return 0


def _add_compare(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "compare",
        parents=[shared],
        help="compare the results of two models, with intervals and p-values",
        description="Compare two models on the same frames, from files written by `vasomim evaluate`. Several files of a "
        "model are treated as seeds. The statistical tests are described in docs/metrics.md.",
    )
    parser.add_argument("--first", nargs="+", required=True, metavar="FILE", help="result files of one model")
    parser.add_argument(
        "--second", nargs="+", required=True, metavar="FILE", help="result files of the other model, the same number"
    )
    parser.add_argument(
        "--measures", nargs="+", metavar="NAME", help="metrics to compare, such as dice cl_dice (default: all)"
    )
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from .evaluation.comparison import compare_results, format_comparison
    from .evaluation.results import read_results

    first, second = ([read_results(path) for path in paths] for paths in (arguments.first, arguments.second))
    print(format_comparison(compare_results(first, second, arguments.measures)), end="")
    return 0


def _add_demo(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo", parents=[shared], help="train a small model on synthetic angiograms and show it"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the model and the picture")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo

    _log_to_terminal()
    result = run_demo(arguments.output)
    print(f"Model: {result.model} ({result.num_features} features per frame)  Picture: {result.picture}")
    return 0


def _add_version(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("version", parents=[shared], help="print the version of the package")
    parser.set_defaults(run=_version)


def _version(arguments: argparse.Namespace) -> int:
    from .version import __version__

    print(__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
