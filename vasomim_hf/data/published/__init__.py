"""Loaders of the published data sets, one module each."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .arcade import arcade_labels as arcade_labels
    from .arcade import load_arcade as load_arcade
    from .cadica import load_cadica as load_cadica
    from .danilov_stenosis import load_stenosis as load_stenosis
    from .dca1 import load_dca1 as load_dca1
    from .xcad import load_xcad as load_xcad
    from .xcav import load_xcav as load_xcav


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
