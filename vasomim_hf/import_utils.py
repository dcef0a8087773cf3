"""Lazy imports of optional dependencies and of the public names of a package."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module (`str`): Module to import, such as `"cv2"`.
        extra (`str`): Extra of this package that includes it, such as `"data"`.

    Returns:
        `ModuleType`: The imported module.

    Raises:
        ImportError: If the module is not installed; the message contains the pip command.

    Example:
        >>> require("json", extra="data").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{module}` is required but not installed. Install it from a checkout: pip install -e '.[{extra}]'"
        ) from error


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Public names of a package that are imported on first use.

    The names are read from the imports under `if TYPE_CHECKING:` in the package's `__init__.py`, so type checkers and
    the interpreter use the same list.

    Args:
        package (`str`): `__name__` of the package.
        file (`str`): `__file__` of the package.

    Returns:
        `tuple`: The package's `__getattr__`, its `__dir__` and its `__all__`.
    """
    modules = _names_for_type_checkers(Path(file))

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name], package), name)

    return get, lambda: sorted({*vars(importlib.import_module(package)), *modules}), sorted(modules)


def _names_for_type_checkers(file: Path) -> dict[str, str]:
    """Relative module by name, from the imports under `if TYPE_CHECKING:`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    blocks = [
        node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    return {alias.name: "." * node.level + str(node.module) for node in imports for alias in node.names}
