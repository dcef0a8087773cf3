"""Frames in, arrays and data sets out.

The loaders are named here and imported when they are first used, since they need the extra `data`. What prepares frames
is in modules of its own: `frames`, `vesselness`, `synthetic`, `near_duplicates`, `splits`, ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .arcade import arcade_labels as arcade_labels
    from .arcade import load_arcade as load_arcade
    from .cadica import load_cadica as load_cadica
    from .dca1 import load_dca1 as load_dca1
    from .near_duplicates import drop_near_duplicates as drop_near_duplicates
    from .near_duplicates import near_duplicate_groups as near_duplicate_groups
    from .own_frames import load_frames as load_frames
    from .splits import leaks as leaks
    from .splits import split_by_group as split_by_group
    from .stenosis import load_stenosis as load_stenosis
    from .xa170k import load_xa170k as load_xa170k
    from .xa170k import push_xa170k as push_xa170k
    from .xa170k_build import build_xa170k as build_xa170k
    from .xcad import load_xcad as load_xcad
    from .xcav import load_xcav as load_xcav


_MODULES = {
    "arcade_labels": "arcade",
    "build_xa170k": "xa170k_build",
    "drop_near_duplicates": "near_duplicates",
    "leaks": "splits",
    "load_arcade": "arcade",
    "load_cadica": "cadica",
    "load_dca1": "dca1",
    "load_frames": "own_frames",
    "load_stenosis": "stenosis",
    "load_xa170k": "xa170k",
    "load_xcad": "xcad",
    "load_xcav": "xcav",
    "near_duplicate_groups": "near_duplicates",
    "push_xa170k": "xa170k",
    "split_by_group": "splits",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
