"""Optional dependencies: a missing extra answers with the line that installs it."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module (`str`): Name to import, such as `"cv2"`.
        extra (`str`): Extra of this package that brings it, such as `"data"`.

    Returns:
        `ModuleType`: The imported module.

    Raises:
        ImportError: If the module is not installed; the message holds the pip line.

    Example:
        >>> require("json", extra="data").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{module}` is needed here and is not installed. Install it from a checkout: pip install -e '.[{extra}]'"
        ) from error
