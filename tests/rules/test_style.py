"""The rules of style that a machine can hold: ceilings, shapes, one owner per number, no unsafe loading.

What ruff can check is in pyproject.toml. Each rule here is a function that lists the faults of one file; it runs on every
file of the package, and on a snippet that breaks it, so that a rule that can no longer fail is noticed.
"""

import ast
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vasomim_hf"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "training").glob("*.py"))
TEXTS = [
    path
    for folder in ("vasomim_hf", "training", "tests", "benchmarks", "model_cards", "docs", ".ci", ".")
    for pattern in ("*.py", "*.md", "*.yaml", "*.json", "*.toml", "*.cfg", "*.cff", "run", "Makefile")
    for path in sorted((ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
]
DOCUMENTS = [path for path in TEXTS if path.suffix == ".md"]

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Lines of a function without its docstring: below those of transformers' own ViT family (12, 38).
MEDIAN_LINES, LINES_95TH, LONGEST = 8, 25, 45
MOST_MODULE_LINES, MOST_SCRIPT_LINES = 700, 150
# Import statements at the top, without those of the standard library; DINOv3's model file has the most there.
MOST_IMPORTS = 15
ARRAY = re.compile(r"\b(Tensor|LongTensor|BoolTensor|FloatTensor|ndarray)\b")
SHAPE = re.compile(r"shape|[Ss]calar|\((\w+, )*[A-Z]\w?(, ?[A-Z]\w?)+\)")


def functions(tree: ast.AST) -> Iterator[tuple[Function, ast.ClassDef | None]]:
    """Every function with the class it is a method of, nested functions too."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield child, node if isinstance(node, ast.ClassDef) else None


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions and methods that others may call: no name on the way to them starts with an underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (child for child in node.body if isinstance(child, Function) and child.name[0] != "_")
        elif isinstance(node, Function) and node.name[0] != "_":
            yield node


def parameters(function: Function, owner: ast.ClassDef | None) -> list[ast.arg]:
    """Its parameters without `self` and without the packed ones."""
    found = [*function.args.posonlyargs, *function.args.args]
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    return (found[1:] if owner is not None and not static else found) + function.args.kwonlyargs


def lines_of(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    return ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import from outside the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


# Rules for a file of the package: its path and text in, faults out


def unsafe_loading(path: Path, text: str) -> Iterator[str]:
    tree = ast.parse(text)
    unsafe = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    yield from (f"line {line}: {name}" for line, name in imported_modules(tree) if name in unsafe - {"pickle"})
    for node in ast.walk(tree):
        # its errors may be caught
        names = [node.attr] if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" else []
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            names = [alias.name for alias in node.names]
        yield from (f"line {node.lineno}: pickle.{name}" for name in names if not name.endswith("Error"))
    for name, call in calls(tree):
        given = keywords(call)
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"line {call.lineno}: torch.load without weights_only=True"
        if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.save", "np.fromfile"):
            yield f"line {call.lineno}: {name}"
        if given.get("allow_pickle") == "True":
            yield f"line {call.lineno}: allow_pickle=True"


def trust_in_remote_code(path: Path, text: str) -> Iterator[str]:
    tree = ast.parse(text)
    for name, call in calls(tree):
        if keywords(call).get("trust_remote_code") == "True":
            yield f"line {call.lineno}: {name}(trust_remote_code=True)"
    for function, _ in functions(tree):
        arguments = function.args
        pairs = zip(reversed([*arguments.posonlyargs, *arguments.args]), reversed(arguments.defaults), strict=False)
        pairs = [*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        for argument, default in pairs:
            if argument.arg == "trust_remote_code" and default is not None and ast.unparse(default) == "True":
                yield f"line {function.lineno}: {function.name} trusts remote code unless told otherwise"


def connections(path: Path, text: str) -> Iterator[str]:
    """What talks to a network goes through huggingface_hub, transformers or datasets."""
    libraries = {"socket", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib"}
    yield from (f"line {line}: {name}" for line, name in imported_modules(ast.parse(text)) if name in libraries)


def silenced_warnings(path: Path, text: str) -> Iterator[str]:
    """At import time nothing changes what other packages say."""
    for node in ast.parse(text).body:
        yield from (
            f"line {call.lineno}: {name} when imported"
            for name, call in calls(node)
            if name in ("warnings.filterwarnings", "warnings.simplefilter", "logging.basicConfig")
            and not isinstance(node, Function | ast.ClassDef)
        )


def pixel_statistics(path: Path, text: str) -> Iterator[str]:
    if path.name != "image_processing_vasomim.py":
        for match in re.finditer(r"0\.485|0\.456|0\.406|0\.229|0\.224|0\.225|IMAGENET_\w+_(MEAN|STD)", text):
            yield f"{match[0]}: pixel statistics belong to image_processing_vasomim.py"


def too_much(path: Path, text: str) -> Iterator[str]:
    tree = ast.parse(text)
    if text.count("\n") > MOST_MODULE_LINES:
        yield f"{text.count(chr(10))} lines, at most {MOST_MODULE_LINES}"
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top]
    outer = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]
    if len(outer) > MOST_IMPORTS:
        yield f"{len(outer)} imports, at most {MOST_IMPORTS}"


def missing_shapes(path: Path, text: str) -> Iterator[str]:
    """A public function with an array among its arguments or results says its shape.

    A method may leave that to its class, or to the protocol of the same file that it fulfils; the blocks inside a network
    to the legend at the head of the file.
    """
    tree = ast.parse(text)
    shown = {function.name for function, _ in functions(tree) if SHAPE.search(ast.get_docstring(function) or "")}
    for node in tree.body:
        for function in public_functions(ast.Module([node], [])):
            arguments = [argument.annotation for argument in parameters(function, None) if argument.annotation]
            annotations = [ast.unparse(part) for part in [*arguments, function.returns] if part]
            is_method = isinstance(node, ast.ClassDef)
            doc = (ast.get_docstring(function) or "") + (ast.get_docstring(node) or "")
            is_told = SHAPE.search(doc) or (is_method and function.name in shown)
            is_block = is_method and function.name == "forward" and "Shapes: B" in text
            # a dictionary of tensors has no one shape
            has_array = any(ARRAY.search(part) for part in annotations if not part.startswith("dict["))
            if has_array and not is_told and not is_block:
                yield f"{function.name}: its docstring has no shape"


RULES = [
    unsafe_loading,
    trust_in_remote_code,
    connections,
    silenced_warnings,
    pixel_statistics,
    too_much,
    missing_shapes,
]

BREAKS = [
    (unsafe_loading, "pickle.load(file)"),
    (unsafe_loading, "from pickle import UnpicklingError, loads"),
    (unsafe_loading, "from joblib import load"),
    (unsafe_loading, "torch.load(path)"),
    (unsafe_loading, "torch.load(path, weights_only=False)"),
    (unsafe_loading, "np.load(path, allow_pickle=True)"),
    (unsafe_loading, "yaml.load(text)"),
    (trust_in_remote_code, "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    (trust_in_remote_code, "def f(a, b=1, trust_remote_code=True): pass"),
    (trust_in_remote_code, "def f(a, *, trust_remote_code=True): pass"),
    (connections, "import urllib.request"),
    (silenced_warnings, "import warnings\nwarnings.filterwarnings('ignore')"),
    (pixel_statistics, "MEAN = [0.485, 0.456, 0.406]"),
    (pixel_statistics, "from transformers.image_utils import IMAGENET_DEFAULT_MEAN"),
    (too_much, "\n" * 701),
    (too_much, "\n".join(f"import a{i}" for i in range(16))),
    (missing_shapes, "def f(x: torch.Tensor) -> int:\n    '''Count.'''"),
    (missing_shapes, "def f() -> np.ndarray: pass"),
    (missing_shapes, "class A:\n    def f(self, x: 'torch.Tensor | None'): pass"),
]


def name_of(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else getattr(value, "__name__", None)


def faults_of(rule: Callable[[Path, str], Iterator[str]], paths: list[Path]) -> list[str]:
    """What breaks a rule, each with its file."""
    return [f"{path.relative_to(ROOT)}: {fault}" for path in paths for fault in rule(path, path.read_text())]


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_the_package_holds_the_rule(rule):
    assert faults_of(rule, FILES) == []


def test_every_deliberate_break_is_found():
    sound = '"""A module."""\n\n\ndef f(a: int) -> int:\n    return a\n'
    assert {rule for rule, _ in BREAKS} == set(RULES)
    assert [text for rule, text in BREAKS if not list(rule(Path("module.py"), text))] == []
    assert [rule for rule in RULES if list(rule(Path("module.py"), sound))] == []


def test_functions_are_short():
    lengths = sorted(lines_of(function) for path in FILES for function, _ in functions(ast.parse(path.read_text())))
    assert statistics.median(lengths) <= MEDIAN_LINES
    assert lengths[int(len(lengths) * 0.95)] <= LINES_95TH
    assert lengths[-1] <= LONGEST


def test_the_length_of_a_function_does_not_count_its_docstring():
    tree = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')
    assert [lines_of(function) for function, _ in functions(tree)] == [2]


def test_scripts_are_thin_and_hold_the_rules():
    assert [path.name for path in SCRIPTS if path.read_text().count("\n") > MOST_SCRIPT_LINES] == []
    rules = (unsafe_loading, trust_in_remote_code, connections, pixel_statistics)
    assert [fault for rule in rules for fault in faults_of(rule, SCRIPTS)] == []


# Words of the project's texts


# Written in parts, so that this file does not find itself.
UNWANTED = {
    "a path of one machine": r"(?<![\w.:/])/(" + "work|root|home|Users|mnt|tm" + r"p)/\w",
    "an open end": r"\b(" + "TO" + "DO|FIX" + "ME|X" + "XX)" + r"\b",
    "a silenced check": r"#\s*(" + "no" + "qa|type" + r":\s*ignore|pragma" + r":\s*no cover)",
    "a merge conflict": r"^(" + "<" * 7 + "|" + ">" * 7 + ") ",
}


def unwanted(path: Path, text: str) -> Iterator[str]:
    for what, pattern in UNWANTED.items():
        yield from (f"{what}: {match[0]}" for match in re.finditer(pattern, text, re.MULTILINE))


def test_texts_have_no_machine_paths_and_no_open_ends():
    assert faults_of(unwanted, TEXTS) == []


def test_unwanted_words_are_found():
    for text in ("cd /wo" + "rk/main", "# TO" + "DO: later", "import a  # no" + "qa", "<" * 7 + " HEAD"):
        assert len(list(unwanted(ROOT, text))) == 1
    assert list(unwanted(ROOT, "https://example.org/home/a ../shared ./tmp/a")) == []


# What the documents say is there


def missing_targets(document: Path, text: str) -> Iterator[str]:
    """Links to files, paths in code style and make targets that do not exist."""
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:") and not (document.parent / target).exists():
            yield f"link to {target}"
    for path in re.findall(r"`((?:vasomim_hf|training|tests|benchmarks|model_cards)/[\w./-]*\w)`", text):
        if not (ROOT / path).exists():
            yield f"path {path}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    yield from (f"make {name}" for name in re.findall(r"`?make ([a-z][a-z-]*)`", text) if name not in targets)


def test_what_the_documents_point_to_exists():
    assert faults_of(missing_targets, DOCUMENTS) == []


def test_a_dead_link_is_found():
    text = (
        "[a](no_such.md) `training/no_such.py` `make no-such` [b](https://example.org) `make test` [c](README.md#top)"
    )
    assert list(missing_targets(ROOT / "README.md", text.replace("README.md#top", "LICENSE#top"))) == [
        "link to no_such.md",
        "path training/no_such.py",
        "make no-such",
    ]
