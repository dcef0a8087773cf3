"""Reading of frames and masks from all supported file formats."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .files import list_frames as list_frames
    from .files import read_frame as read_frame
    from .files import read_frames as read_frames
    from .files import scan_folder as scan_folder
    from .frame import Frame as Frame
    from .frame import FrameMetadata as FrameMetadata
    from .frame import FrameReadError as FrameReadError
    from .frame import ReadOptions as ReadOptions
    from .masks import MaskError as MaskError
    from .masks import MaskRule as MaskRule
    from .masks import UnreadableMaskError as UnreadableMaskError
    from .masks import read_label_map as read_label_map
    from .masks import read_mask as read_mask


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
