"""Random access to files in a folder or in a zip, on disk or on the Hub, without extracting them."""

import io
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ..faults import Fault
from ..reading.files import FrameReadError
from ..sources import size_and_sample


# larger members are not frames; the longest cines are a tenth of this
MAX_BYTES = 2**31
# block size in bytes for reading a zip over the network
BLOCK_SIZE = 4 * 2**20
_HIDDEN = re.compile(r"(?:^|/)(?:\.|__macosx(?:/|$)|thumbs\.db$|desktop\.ini$)", re.I)
_LOCAL_HEADER = b"PK\x03\x04"
# exceptions of the standard library for damaged, encrypted or unsupported members
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass
class Listing:
    """Names in a store: usable files, files of the operating system, and skipped files with reasons."""

    paths: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Sort a file into one of the lists."""
        if not path.isprintable() or not _is_text(path):
            self.faults.append(Fault(ascii(path), "skipped: its name is not valid text. Rename it."))
        elif _HIDDEN.search(path):
            self.hidden.append(path)
        else:
            self.paths.append(path)


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Store(Protocol):
    """Files by path, with `/` as separator."""

    def listing(self) -> Listing:
        """List all files."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access; raises `OSError` or `FrameReadError`."""
        ...

    def read(self, path: str) -> bytes:
        """Read a file; raises `OSError` or `FrameReadError`."""
        ...

    def fingerprint(self, path: str) -> list:
        """JSON-serialisable identification of the content, reading as little of it as possible."""
        ...

    def places(self) -> set[str]:
        """Local folders of the files; they are removed from published reports."""
        ...


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Re-raise system errors with the path inside the store instead of the local path, because reports are
    published."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


class FolderStore:
    """Files below a folder; symbolic links are followed, each folder once.

    Args:
        root (`Path`): The folder.
    """

    def __init__(self, root: Path):
        self.root = root

    def listing(self) -> Listing:
        """List all files at every depth, unsorted."""
        listing, seen = Listing(), set()

        def refused(error: OSError) -> None:
            name = os.path.relpath(error.filename, self.root)
            listing.faults.append(Fault(name, f"cannot be listed: {error.strerror}"))

        for parent, folders, names in os.walk(self.root, followlinks=True, onerror=refused):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            start = Path(parent).relative_to(self.root).as_posix().removeprefix(".")
            for name in names:
                listing.add(f"{start}/{name}".lstrip("/"))
        return listing

    def open(self, path: str) -> BinaryIO:
        """Open a file."""
        with _named(path):
            return open(self.root / path, "rb")

    def read(self, path: str) -> bytes:
        """Read a file."""
        with self.open(path) as file:
            return file.read()

    def fingerprint(self, path: str) -> list:
        """Size and digest of the content, or of samples if it ends with a checksum; see `size_and_sample`."""
        with _named(path):
            return list(size_and_sample(self.root / path))

    def places(self) -> set[str]:
        """The folder, as given and with links resolved."""
        return {os.path.abspath(self.root), os.path.realpath(self.root)}


class _Opened(NamedTuple):
    """A zip opened by one process."""

    process: int
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    faults: list[Fault]


class ZipStore:
    """Members of a zip; every process opens the file separately.

    Args:
        path (`str` or `Path`): Path on disk, or a name for messages.
        opener (callable, *optional*): Opens the file if it is not on disk; must be picklable.

    Attributes:
        name (`str`): Name for messages; for a file on disk, its file name.
    """

    def __init__(self, path: str | Path, opener: Callable[[], BinaryIO] | None = None):
        self.path = path
        self.name = os.path.basename(path) if opener is None else str(path)
        self._opener = opener
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}

    def listing(self) -> Listing:
        """List all members except folders; unreadable members and paths outside the archive are faults.

        Raises:
            DamagedArchiveError: If it is not a zip, or truncated.
        """
        opened = self._open()
        listing = Listing(faults=list(opened.faults))
        for path in opened.members:
            listing.add(path)
        return listing

    def open(self, path: str) -> BinaryIO:
        """Open a member, decompressed in memory."""
        return io.BytesIO(self.read(path))

    def read(self, path: str) -> bytes:
        """Read a member and verify its checksum."""
        opened = self._open()
        member = opened.members[path]
        if member.file_size > MAX_BYTES:
            raise FrameReadError(f"`{path}` in {self.name} claims {member.file_size} bytes, too many for a frame.")
        try:
            return opened.archive.read(member)
        except DAMAGED as error:
            raise FrameReadError(
                f"`{path}` in {self.name} is damaged ({type(error).__name__}: {error}). Download the archive again."
            ) from error
        except OSError as error:
            if self._opener is None:
                raise
            # an OSError would be reported as a fault of this frame and all that follow
            raise ConnectionAbort(
                f"Lost the connection to {self.name} ({error}). Run the command again to resume."
            ) from error

    def fingerprint(self, path: str) -> list:
        """Size and checksum from the directory of the zip."""
        member = self._open().members[path]
        return [member.file_size, member.CRC]

    def places(self) -> set[str]:
        """Its folder, and that of the link target if it is a link in the Hub cache."""
        if self._opener is not None:
            return set()
        return {os.path.dirname(path) for path in (os.path.abspath(self.path), os.path.realpath(self.path))}

    def _open(self) -> _Opened:
        # a file handle inherited through fork shares its position with the parent
        if self._opened is None or self._opened.process != os.getpid():
            archive = self._archive()
            faults: list[Fault] = []
            self._opened = _Opened(os.getpid(), archive, dict(_members(archive, faults)), faults)
        return self._opened

    def _archive(self) -> zipfile.ZipFile:
        try:
            with _named(self.name):
                return zipfile.ZipFile(self.path if self._opener is None else self._opener())
        except DAMAGED as error:
            raise DamagedArchiveError(self._diagnosis(error)) from error

    def _diagnosis(self, error: Exception) -> str:
        if self._opener is not None:
            return f"{self.name} is not a zip, or is truncated ({error}). Check the file on the Hub."
        with open(self.path, "rb") as file:
            start, size = file.read(4), file.seek(0, os.SEEK_END)
        if start != _LOCAL_HEADER:
            return f"{self.name} is not a zip ({error}); it has {size} bytes and starts with {start!r}. Check the download."
        return (
            f"{self.name} starts as a zip, but the directory at its end is missing or damaged ({error}): with {size} "
            "bytes the download is incomplete. Resume it, for example with `curl -L -C - -o FILE URL`, or delete "
            "the file and run the command again."
        )


class DamagedArchiveError(ValueError):
    """A zip that cannot be opened."""


class ConnectionAbort(RuntimeError):
    """An archive on the network became unavailable; aborts, because it is not a fault of one frame."""


def _members(archive: zipfile.ZipFile, faults: list[Fault]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Members by normalised path; of duplicate paths the last one counts, as when extracting."""
    seen = set()
    for member in archive.infolist():
        path = _clean(member.filename)
        reason = _unusable(member)
        if member.is_dir() or path == "":
            continue
        if reason is not None:
            faults.append(Fault(member.filename, reason))
            continue
        if path in seen:
            faults.append(Fault(path, "occurs twice in the archive; the last one counts, as when extracting"))
        seen.add(path)
        yield path, member


def _clean(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _unusable(member: zipfile.ZipInfo) -> str | None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        return "skipped: its path points outside the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "skipped: it is a link"
    if member.flag_bits & 1:
        return "skipped: it is encrypted. Extract the archive with its password and pass the folder."
    return None
