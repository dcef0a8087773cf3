"""The frames of XA-170K, wherever they are: the authors' zip on the Hub or on disk, that zip unpacked, or the originals."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .reports import FaultReport
from .xa170k_layouts import KNOWN_COUNTS, SOURCES, FrameItem


__all__ = ["KNOWN_COUNTS", "SOURCES", "FrameItem", "XA170KOptions", "XA170KSource", "open_xa170k_source"]


@dataclass(frozen=True)
class XA170KOptions:
    """What may be said about the frames besides where they are.

    Args:
        layout (`str`, *optional*): One of `SOURCES`, where a folder or a zip holds one collection and does not look like
            it, such as a folder of images; `None` finds out by looking.
        sources (`tuple[str, ...]`, *optional*): Which collections are wanted, some of `SOURCES`; others are passed over
            and a wanted one that is missing is reported. `None` takes what is there.
        all_cadica_frames (`bool`): Whether to take every frame of CADICA, not only the selected key frames.
        use_masks (`bool`): Whether masks in `<source>_frangi` or `<source>_filter_92` beside the frames are used.
        archive (`str`): Name of the zip in a repository of the Hub.
        stream (`bool`): Whether members of a zip on the Hub are read over the network, without downloading the zip.
        cache_dir (`str` or `Path`, *optional*): Where downloads are kept; `None` is the Hub client's own cache.
    """

    layout: str | None = None
    sources: tuple[str, ...] | None = None
    all_cadica_frames: bool = False
    use_masks: bool = True
    archive: str = "xa170k.zip"
    stream: bool = False
    cache_dir: str | Path | None = None


class XA170KSource:
    """Frames of XA-170K and how to read them. It can be pickled: files are opened when something is read."""

    def __init__(self, description: str, items: list[FrameItem], report: FaultReport):
        self.description = description
        self.items = items
        self.report = report

    def signature(self) -> list:
        """What the frames are, as JSON: equal lists mean equal frames."""
        raise NotImplementedError

    def read(self, item: FrameItem) -> np.ndarray:
        """Read a frame.

        Args:
            item (`FrameItem`): One of `items`.

        Returns:
            `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

        Raises:
            FrameReadError: If it cannot be read.
        """
        raise NotImplementedError

    def read_vesselness(self, item: FrameItem, size: tuple[int, int]) -> np.ndarray | None:
        """Read the ready vesselness mask of a frame.

        Args:
            item (`FrameItem`): One of `items`.
            size (`tuple[int, int]`): Height and width of the frame.

        Returns:
            `np.ndarray` of shape `size`, `bool`, or `None` where the filter has to make it.

        Raises:
            ValueError: If it cannot be read or does not fit.
        """
        raise NotImplementedError


def open_xa170k_source(source: str | Path, options: XA170KOptions | None = None) -> XA170KSource:
    """Find the frames of XA-170K.

    Args:
        source (`str` or `Path`):
            A folder, a zip, or a repository of the Hub, written `owner/name` or `hf://datasets/owner/name`, with
            `@revision` behind it or not.
        options (`XA170KOptions`, *optional*): What else is known.

    Returns:
        `XA170KSource`: The frames, and what was found amiss.

    Raises:
        FileNotFoundError: If there is no such folder, zip or repository.
        ValueError: If it holds no frame of XA-170K, or cannot be read.
    """
    raise NotImplementedError
