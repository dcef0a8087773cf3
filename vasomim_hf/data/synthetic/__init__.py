"""Synthetic angiograms with known ground truth, for tests, demonstrations and examples."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .anatomy import CoronaryTree as CoronaryTree
    from .anatomy import Vessel as Vessel
    from .anatomy import coronary_tree as coronary_tree
    from .angiogram import SyntheticAngiogram as SyntheticAngiogram
    from .angiogram import synthetic_angiogram as synthetic_angiogram
    from .angiogram import synthetic_angiograms as synthetic_angiograms
    from .angiogram import write_folder as write_folder


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
