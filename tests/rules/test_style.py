"""The rules of style that a machine can hold: ceilings, annotations, shapes, one owner per number, no unsafe loading.

Each rule is a function that lists the faults of one file. It runs on every file of the package, and on a snippet that
breaks it, so that a rule that can no longer fail is noticed.
"""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
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

# Today's ceilings of transformers' own ViT family, whose median function has 12 lines.
MEDIAN_LINES, LINES_95TH, MOST_STATEMENTS = 12, 40, 60
MOST_MODULE_LINES, MOST_PARAMETERS, MOST_SCRIPT_LINES = 700, 6, 150
# Import statements at the top, without those of the standard library; DINOv3's model file has the most there.
MOST_IMPORTS = 15
# Methods whose parameters transformers lays down.
LAID_DOWN = {"forward", "preprocess", "_preprocess", "_preprocess_image_like_inputs"}
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


def prints(path: Path, text: str) -> Iterator[str]:
    if path.name != "cli.py":
        yield from (f"line {call.lineno}: print" for name, call in calls(ast.parse(text)) if name == "print")


def asserts(path: Path, text: str) -> Iterator[str]:
    """An assertion disappears under `python -O`, and tells a user nothing."""
    yield from (f"line {node.lineno}: assert" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert))


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
    for function, owner in functions(tree):
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
        if statements > MOST_STATEMENTS:
            yield f"{function.name} has {statements} statements, at most {MOST_STATEMENTS}"
        count = len(parameters(function, owner))
        if count > MOST_PARAMETERS and function.name not in LAID_DOWN:
            yield f"{function.name} has {count} parameters, at most {MOST_PARAMETERS}"


def missing_annotations(path: Path, text: str) -> Iterator[str]:
    tree = ast.parse(text)
    public = {id(function) for function in public_functions(tree)}
    for function, owner in functions(tree):
        if id(function) in public:
            arguments = [*parameters(function, owner), function.args.vararg, function.args.kwarg]
            missing = [argument.arg for argument in arguments if argument and argument.annotation is None]
            if missing:
                yield f"{function.name}: no annotation for {', '.join(missing)}"


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
    prints,
    asserts,
    unsafe_loading,
    trust_in_remote_code,
    connections,
    silenced_warnings,
    pixel_statistics,
    too_much,
    missing_annotations,
    missing_shapes,
]

BREAKS = [
    (prints, "def f():\n    print(1)"),
    (asserts, "def f(x):\n    assert x > 0"),
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
    (too_much, "def f():\n" + "    x = 1\n" * 61),
    (too_much, "def f(a, b, c, d, e, *, g, h): pass"),
    (too_much, "class A:\n    def f(self, a, b, c, d, e, g, h): pass"),
    (missing_annotations, "def f(a): pass"),
    (missing_annotations, "class A:\n    def f(self, **options): pass"),
    (missing_shapes, "def f(x: torch.Tensor) -> int:\n    '''Count.'''"),
    (missing_shapes, "def f() -> np.ndarray: pass"),
    (missing_shapes, "class A:\n    def f(self, x: 'torch.Tensor | None'): pass"),
]


def name_of(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else getattr(value, "__name__", None)


@pytest.mark.parametrize("path", FILES, ids=name_of)
@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_file_of_the_package_holds_the_rule(rule, path):
    assert list(rule(path, path.read_text())) == []


@pytest.mark.parametrize(("rule", "text"), BREAKS, ids=name_of)
def test_a_deliberate_break_is_found(rule, text):
    assert len(list(rule(Path("module.py"), text))) >= 1
    assert list(rule(Path("module.py"), '"""A module."""\n\n\ndef f(a: int) -> int:\n    return a\n')) == []


def test_functions_are_short():
    lengths = sorted(lines_of(function) for path in FILES for function, _ in functions(ast.parse(path.read_text())))
    assert statistics.median(lengths) <= MEDIAN_LINES
    assert lengths[int(len(lengths) * 0.95)] <= LINES_95TH


def test_the_length_of_a_function_does_not_count_its_docstring():
    tree = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')
    assert [lines_of(function) for function, _ in functions(tree)] == [2]


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_thin_and_hold_the_rules(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_SCRIPT_LINES
    rules = (asserts, unsafe_loading, trust_in_remote_code, connections, pixel_statistics)
    assert [fault for rule in rules for fault in rule(path, text)] == []


# Words of the project's texts


# Written in parts, so that this file does not find itself.
UNWANTED = {
    "a path of one machine": r"(?<![\w.:/])/(" + "work|root|home|Users|mnt|tm" + r"p)/\w",
    "an open end": r"\b(" + "TO" + "DO|FIX" + "ME|X" + "XX)" + r"\b",
    "a silenced check": r"#\s*(" + "no" + "qa|type" + r":\s*ignore|pragma" + r":\s*no cover)",
    "a merge conflict": r"^(" + "<" * 7 + "|" + ">" * 7 + ") ",
}


def unwanted(text: str) -> list[str]:
    return [f"{what}: {m[0]}" for what, pattern in UNWANTED.items() for m in re.finditer(pattern, text, re.MULTILINE)]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_text_has_no_machine_paths_and_no_open_ends(path):
    assert unwanted(path.read_text()) == []


def test_unwanted_words_are_found():
    for text in ("cd /wo" + "rk/main", "# TO" + "DO: later", "import a  # no" + "qa", "<" * 7 + " HEAD"):
        assert len(unwanted(text)) == 1
    assert unwanted("https://example.org/home/a ../shared ./tmp/a") == []


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_what_a_document_points_to_exists(path):
    assert list(missing_targets(path, path.read_text())) == []


def test_a_dead_link_is_found():
    text = (
        "[a](no_such.md) `training/no_such.py` `make no-such` [b](https://example.org) `make test` [c](README.md#top)"
    )
    assert list(missing_targets(ROOT / "README.md", text.replace("README.md#top", "LICENSE#top"))) == [
        "link to no_such.md",
        "path training/no_such.py",
        "make no-such",
    ]
