"""Importing the package, or asking the command for help, brings in no optional package and no network."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "vasomim_hf"
# What the extras bring, and what no part of the package may need. transformers itself imports some of these where
# they are installed, so that they are looked for in our files, and hidden from the interpreters started here.
OPTIONAL = [
    "accelerate",
    "cv2",
    "datasets",
    "faster_coco_eval",
    "gradio",
    "matplotlib",
    "monai",
    "omegaconf",
    "onnx",
    "onnxruntime",
    "pandas",
    "pycocotools",
    "pydicom",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
    "tifffile",
    "torchvision",
    "yaml",
]
# Hides packages as if they were not installed, and refuses every connection.
WITHOUT = """
import importlib.abc, socket, sys

HIDDEN = {hidden!r}

class Hiding(importlib.abc.MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]

def refuse(*args, **kwargs):
    raise RuntimeError(f"a connection was tried: {{args[1:]}}")

socket.socket.connect = socket.socket.connect_ex = refuse
"""
# huggingface_hub needs yaml itself, so that it cannot be hidden
HIDDEN = sorted(set(OPTIONAL) - {"yaml"})


def run_without(code: str, hidden: list[str] = HIDDEN) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which some packages are not installed and no connection can be made."""
    script = WITHOUT.format(hidden=hidden) + textwrap.dedent(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_at_import_time(tree: ast.Module) -> set[str]:
    """Top-level packages imported when the module is, not those imported when one of its functions runs."""
    found, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_for_type_checkers(node):
            waiting += ast.iter_child_nodes(node)
    return found


def test_no_module_imports_an_optional_package_when_it_is_imported():
    found = {
        path: imports_at_import_time(ast.parse(path.read_text())) & set(OPTIONAL) for path in PACKAGE.rglob("*.py")
    }
    assert {str(path): names for path, names in found.items() if names} == {}


def test_an_optional_import_at_the_top_would_be_found_and_one_in_a_function_is_allowed():
    top = "class A:\n    try:\n        import cv2.dnn\n    except ImportError:\n        from skimage.filters import sato\n"
    assert imports_at_import_time(ast.parse(top)) == {"cv2", "skimage"}
    assert imports_at_import_time(ast.parse("def f():\n    import cv2")) == set()


def test_without_extras_and_network_the_package_works_and_a_missing_extra_answers_with_its_pip_line():
    result = run_without(
        """
        import json, torch, vasomim_hf
        from vasomim_hf.import_utils import require
        from vasomim_hf.presets import load_preset
        config = load_preset("tiny", num_hidden_layers=1, decoder_num_hidden_layers=1)
        loss = vasomim_hf.VasoMIMForPreTraining(config)(torch.rand(1, 3, 224, 224)).loss
        loaded = sorted({name.split(".")[0] for name in sys.modules} & set(HIDDEN))
        try:
            require("cv2", extra="data")
        except ImportError as error:
            print(json.dumps({"finite": bool(loss.isfinite()), "loaded": loaded, "message": str(error)}))
        """
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["finite"] and told["loaded"] == []
    assert "pip install -e '.[data]'" in told["message"]


def test_the_hiding_and_the_refusal_work():
    assert "No module named 'numpy'" in run_without("import numpy", hidden=["numpy"]).stderr
    assert "a connection was tried" in run_without("socket.create_connection(('127.0.0.1', 9))").stderr


@pytest.mark.skipif(not (PACKAGE / "cli.py").is_file(), reason="the command is not in this folder")
def test_help_of_the_command_needs_nothing_but_what_importing_the_package_needs():
    result = run_without(
        """
        import vasomim_hf
        before = set(sys.modules)
        from vasomim_hf.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            assert end.code == 0, end.code
        own = {"argparse", "gettext", "locale", "_locale"}
        added = set(sys.modules) - before - own
        print("EXTRA", sorted(name for name in added if not name.startswith("vasomim_hf.")))
        """
    )
    assert result.returncode == 0, result.stderr
    assert "usage: vasomim" in result.stdout
    assert result.stdout.splitlines()[-1] == "EXTRA []"
