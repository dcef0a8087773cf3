"""XA-170K: building from the published archives, loading, verification and upload."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .build import build_xa170k as build_xa170k
    from .dataset import XA170KOptions as XA170KOptions
    from .dataset import load_xa170k as load_xa170k
    from .dataset import push_xa170k as push_xa170k
    from .report import verify_xa170k as verify_xa170k


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
