"""Opens files that must be files: reading a pipe may wait for ever, a device may never end, and a link leads elsewhere.

Errors are those of the system, so that they are reported as any other file that cannot be opened.
"""

import errno
import io
import os
import select
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO, TypeVar

_Found = TypeVar("_Found")

_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe does not wait for its writer
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_MOST_PIPED = 2**30  # bytes; a list of ten million images
_MOST_READ = 2**32  # bytes at once
_CHUNK = 2**20
_WAIT_S = 5.0
_KINDS = {
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


def open_regular(path: Path) -> io.BufferedReader:
    """The file at `path`, open for reading; OSError for a folder, a pipe, a socket or a device."""
    try:
        return io.BufferedReader(_RegularFile(path, opener=_open_regular))
    except ValueError as exc:  # a null byte in the path
        raise OSError(errno.EINVAL, str(exc), str(path)) from exc


class _RegularFile(io.FileIO):
    """A file whose content is there, and whose errors name it.

    What the system makes up and has nothing of yet, as /proc/kmsg, is an OSError.
    """

    def readinto(self, buffer: Any, /) -> int:
        count: int = self._present(super().readinto, buffer)
        return count

    def readall(self) -> bytes:
        return self._present(super().readall)

    def _present(self, read: Callable[..., _Found | None], *buffer: Any) -> _Found:
        try:
            found = read(*buffer)
        except OSError as exc:
            exc.filename = str(self.name)
            raise
        if found is None:
            raise OSError(errno.EAGAIN, "has no content now", str(self.name))
        return found


def open_regular_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> TextIO:
    """As `open_regular`, for text; line ends stay as they are."""
    return io.TextIOWrapper(open_regular(path), encoding, errors, newline="")


def open_file_or_pipe(path: Path) -> BinaryIO:
    """The file at `path`, or all that comes through the pipe there, open for reading; OSError as `open_regular`.

    A pipe to which nobody writes counts as empty after some seconds.
    """
    mode = path.stat().st_mode
    if not stat.S_ISFIFO(mode):
        return open_regular(path)
    descriptor = os.open(path, os.O_RDONLY | _AT_ONCE)
    with os.fdopen(descriptor, "rb") as pipe:
        select.select([pipe], [], [], _WAIT_S)
        os.set_blocking(descriptor, True)
        return io.BytesIO(read_stream(pipe, str(path)))


def read_stream(stream: BinaryIO, name: str) -> bytes:
    """All of a text that comes through a pipe; OSError if it is no text, or has no end in sight."""
    chunks: list[bytes] = []
    size = 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if b"\0" in chunk:
            raise OSError(errno.EINVAL, "not text", name)
        if size > _MOST_PIPED:
            raise OSError(errno.EFBIG, f"more than {_MOST_PIPED:,} bytes through a pipe", name)
        chunks.append(chunk)
    return b"".join(chunks)


def open_own(path: Path, mode: str) -> IO[bytes]:
    """One of our files at `path`, such as a log, open to be written; OSError for a link or anything but a file."""
    return open(path, mode, opener=_open_own)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at `path`; False if that cannot be seen: then opening it names the reason."""
    try:
        return path.is_dir()
    except OSError:  # in a folder without access
        return False


def require_regular(path: Path) -> None:
    """Raise OSError if there is something at `path` that is neither a file nor a folder."""
    _require_kind(path.stat().st_mode, path)


def require_content(path: Path) -> None:
    """As `require_regular`, and ValueError for a file of no size: for libraries that open it themselves.

    They would wait for the content of a file that the system makes up, as /proc/kmsg; such files have no size.
    """
    require_regular(path)
    if path.stat().st_size == 0:
        raise ValueError("it is empty")


def read_bytes(path: Path) -> bytes:
    """The content of the file at `path`; errors as `open_regular`, also for more than 4 GiB."""
    with open_regular(path) as file:
        return _require_small(file, path).read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of the file at `path`, its line ends as "\\n"; errors as `read_bytes`, and UnicodeDecodeError."""
    with open_regular(path) as file, io.TextIOWrapper(_require_small(file, path), encoding) as text:
        return text.read()


def make_own_folder(path: Path) -> None:
    """Create the folder `path` of our files, unless it exists; OSError if a link is there."""
    path.mkdir(parents=True, exist_ok=True)
    refuse_link(path)


def refuse_link(path: Path) -> None:
    """Raise OSError if `path` is a link: what is written there would be written elsewhere."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, through which nothing is written; remove it", str(path))


def require_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Raise OSError if one of the `paths` below `folder` is outside it, as a folder on its way is a link."""
    root = os.path.realpath(folder)
    for parent in dict.fromkeys(path.parent for path in paths):
        if not Path(os.path.realpath(parent)).is_relative_to(root):
            message = f"leads out of {folder} by a link, through which nothing is written; name its target by itself"
            raise OSError(errno.ELOOP, message, str(parent))


def _require_small(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    size = os.fstat(file.fileno()).st_size
    if size > _MOST_READ:
        raise OSError(errno.EFBIG, f"has {size:,} bytes, more than {_MOST_READ:,}", str(path))
    return file


def _open_regular(path: str, flags: int) -> int:
    return _checked(os.open(path, flags | _AT_ONCE), path)


def _open_own(path: str, flags: int) -> int:
    try:
        return _checked(os.open(path, flags | _AT_ONCE | _NO_LINKS, 0o666), path)
    except OSError:
        refuse_link(Path(path))
        raise


def _checked(descriptor: int, path: str) -> int:
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        _require_kind(mode, path)
    except BaseException:  # Ctrl-C too
        os.close(descriptor)
        raise
    return descriptor


def _require_kind(mode: int, path: Path | str) -> None:
    if (kind := _KINDS.get(stat.S_IFMT(mode))) is not None:
        raise OSError(errno.ENXIO, kind, str(path))
