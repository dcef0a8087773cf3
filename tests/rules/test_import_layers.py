"""The package imports downwards only, and the files that travel to the Hub stand alone.

A module may import modules of a lower layer, and within a sub-package its siblings, as long as there is no circle.
Files with a Hub prefix are copied flat beside the weights and found by regular expression, so they must be siblings
that import each other with one dot.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports


PACKAGE = Path(__file__).parents[2] / "vasomim_hf"
# From the lowest to the highest; the first pattern that fits counts. A new module needs a place here.
LAYERS = [
    ["version", "import_utils", "folders", "optimization", "progress"],
    ["configuration_unext"],
    ["configuration_vasomim"],
    ["masking_vasomim", "image_processing_reading", "image_processing_boxes"],
    ["modeling_unext", "modeling_vasomim_detection_loss", "image_processing_vasomim"],
    ["modeling_vasomim", "presets"],
    [
        "modeling_vasomim_pretraining",
        "modeling_vasomim_segmentation",
        "modeling_vasomim_detection",
        "modeling_vasomim_classification",
    ],
    ["inference", "inference.*"],
    ["data.reading", "data.reading.*"],
    ["data", "data.*"],
    ["evaluation", "evaluation.*"],
    ["engine", "engine.*"],
    ["analysis", "analysis.*"],
    ["convert_vasomim_to_hf", "model_card"],
    ["publishing"],
    ["demo"],
    ["cli"],
]
HUB_FILE = re.compile(r"(configuration|masking|modeling|image_processing)_\w+")
HUB_LIBRARIES = {"huggingface_hub", "numpy", "PIL", "torch", "transformers"}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name, without the package's own, to file; the package's `__init__` stands above all and is left out."""
    files = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    names = {str(file.with_suffix("")).replace("/", ".").removesuffix(".__init__"): file for file in files}
    return {name: files[file] for name, file in names.items() if name != "__init__"}


def hub_files(package: Path) -> list[Path]:
    return [path for path in sorted(package.glob("*.py")) if HUB_FILE.fullmatch(path.stem)]


def rank(name: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if any(fnmatch(name, pattern) for pattern in layer)), None)


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, with_types: bool = True) -> Iterator[tuple[int, str]]:
    """Every import in the file, at any depth, as (number of dots, dotted name); those for type checkers too or not."""
    tree = ast.parse(path.read_text())
    if not with_types:
        tree.body = [node for node in tree.body if not is_for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


def own_imports(name: str, path: Path) -> Iterator[str]:
    """Dotted names, without the package's own, of the modules that a module takes from the package."""
    parents = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for dots, target in imports(path):
        if dots:
            yield ".".join([*parents[: len(parents) - dots + 1], target])


def layer_faults(package: Path) -> Iterator[str]:
    for name, path in modules(package).items():
        own = rank(name)
        if own is None:
            yield f"{name}: has no layer; give it one in LAYERS"
            continue
        for target in own_imports(name, path):
            other = rank(target)
            siblings = name.split(".")[0] == target.split(".")[0]
            if other is None or other > own or (other == own and not siblings):
                yield f"{name} (layer {own}): must not import {target} (layer {other})"


def absolute_import_faults(package: Path) -> Iterator[str]:
    for name, path in modules(package).items():
        for dots, target in imports(path):
            if dots == 0 and target.split(".")[0] == package.name:
                yield f"{name}: import your own package with dots, got {target}"


def circle_faults(package: Path) -> Iterator[str]:
    found = modules(package)
    graph = {name: {target for target in own_imports(name, path) if target in found} for name, path in found.items()}
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    if graph:
        yield f"these modules import each other in a circle, or stand above one: {', '.join(sorted(graph))}"


def hub_import_faults(package: Path) -> Iterator[str]:
    siblings = {path.stem for path in hub_files(package)}
    for path in hub_files(package):
        for dots, target in imports(path):
            if dots and (dots > 1 or target not in siblings):
                yield f"{path.name}: {'.' * dots}{target} is not copied to the Hub"
        # transformers' own reading of the file: every one of these must be installed by whoever loads the folder
        for library in get_imports(path):
            if library.split(".")[0] not in HUB_LIBRARIES | set(sys.stdlib_module_names):
                yield f"{path.name}: {library} would have to be installed by whoever loads the published folder"


def hub_text_faults(package: Path) -> Iterator[str]:
    """Transformers reads these files by regular expression, docstrings and comments included."""
    for path in hub_files(package):
        real = {target for dots, target in imports(path) if dots}
        for target in set(get_relative_imports(path)) - real:
            yield f"{path.name}: a line that starts with 'from .{target}' would be taken for an import"


def hub_init_faults(package: Path) -> Iterator[str]:
    """A sub-package's `__init__` runs before any of its modules, so that its imports would be everybody's.

    It takes `lazy_names` for its public names, and nothing else.
    """
    for name, path in modules(package).items():
        if path.stem == "__init__" and name != "presets":
            for dots, target in imports(path, with_types=False):
                if target != "import_utils" if dots else target.split(".")[0] not in sys.stdlib_module_names:
                    yield f"{name}/__init__.py: imports {target}"


CHECKS = [
    layer_faults,
    absolute_import_faults,
    circle_faults,
    hub_import_faults,
    hub_text_faults,
    hub_init_faults,
]

# One deliberate break for every rule: (check, file, its text, what the fault says).
BREAKS = [
    (layer_faults, "modeling_vasomim.py", "from .publishing import export", "must not import publishing"),
    (layer_faults, "modeling_vasomim.py", "def f():\n    from .cli import main", "must not import cli"),
    (layer_faults, "modeling_vasomim.py", "from . import cli", "must not import cli"),
    (
        layer_faults,
        "modeling_unext.py",
        "from .image_processing_vasomim import A",
        "must not import image_processing_vasomim",
    ),
    (layer_faults, "data/reading/files.py", "from ..vesselness import vessel_mask", "must not import data.vesselness"),
    (layer_faults, "data/vesselness.py", "from ..engine.loop import run", "must not import engine.loop"),
    (layer_faults, "presets/__init__.py", "from ..data.reading import read_frame", "must not import data.reading"),
    (layer_faults, "newcomer.py", "", "has no layer"),
    (absolute_import_faults, "cli.py", "from vasomim_hf.version import __version__", "with dots"),
    (absolute_import_faults, "cli.py", "import vasomim_hf.version", "with dots"),
    (circle_faults, "data/vesselness.py", "from .crops import crop_frame", "circle"),
    (hub_import_faults, "modeling_unext.py", "def f():\n    import scipy", "scipy would have to be installed"),
    (hub_import_faults, "modeling_unext.py", "import torchvision", "torchvision would have to be installed"),
    (hub_import_faults, "modeling_unext.py", "from .import_utils import require", "is not copied"),
    (hub_import_faults, "modeling_unext.py", "from ..data import reading", "is not copied"),
    (hub_text_faults, "modeling_unext.py", '"""Like\nfrom .unicorn import horn\n"""', "from .unicorn"),
    (hub_init_faults, "data/__init__.py", "import cv2", "imports cv2"),
    (hub_init_faults, "data/__init__.py", "from .reading import read_frame", "imports reading"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package_has_no(check):
    assert list(check(PACKAGE)) == []


def faults_of_a_break(check: Callable[[Path], Iterator[str]], file: str, text: str, package: Path) -> list[str]:
    sound = {"version.py": "", "modeling_unext.py": "import torch", "data/crops.py": "from .vesselness import A"}
    for name, content in (sound | {file: ""}).items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    if file != "newcomer.py":
        assert list(check(package)) == []
    (package / file).write_text(text)
    return list(check(package))


def test_every_deliberate_break_is_found(tmp_path):
    for number, (check, file, text, message) in enumerate(BREAKS):
        faults = faults_of_a_break(check, file, text, tmp_path / str(number) / "vasomim_hf")
        assert faults and message in faults[0], (check.__name__, file, text)


def test_the_hub_files_are_found():
    names = {path.name for path in hub_files(PACKAGE)}
    assert {"configuration_vasomim.py", "masking_vasomim.py", "modeling_vasomim.py", "modeling_unext.py"} <= names
