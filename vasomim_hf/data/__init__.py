"""Reading of frames and loading of data sets.

The loaders need the extra `data`; names are imported on first use.
"""

from typing import TYPE_CHECKING

from ..import_utils import lazy_names


if TYPE_CHECKING:
    from .near_duplicates import drop_near_duplicates as drop_near_duplicates
    from .near_duplicates import near_duplicate_groups as near_duplicate_groups
    from .own_frames import load_frames as load_frames
    from .published.arcade import arcade_labels as arcade_labels
    from .published.arcade import load_arcade as load_arcade
    from .published.cadica import load_cadica as load_cadica
    from .published.danilov_stenosis import load_stenosis as load_stenosis
    from .published.dca1 import load_dca1 as load_dca1
    from .published.xcad import load_xcad as load_xcad
    from .published.xcav import load_xcav as load_xcav
    from .splits import leaks as leaks
    from .splits import split_by_group as split_by_group
    from .xa170k.build import build_xa170k as build_xa170k
    from .xa170k.dataset import load_xa170k as load_xa170k
    from .xa170k.dataset import push_xa170k as push_xa170k


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
