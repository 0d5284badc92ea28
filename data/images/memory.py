"""The memory for images that are being decoded: one budget for all threads of a process.

A thread takes what an image needs before it decodes it, and waits while the others hold too much of the budget: small
images are decoded in parallel, large ones one at a time.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from captionmill.data.errors import ImageError

MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux keeps the limit of a container."""
_SMALL_FILE = 64_000_000  # bytes; such files are read without asking
_UNKNOWN_MACHINE = 8_000_000_000  # bytes


class _Taken(threading.local):
    """What one thread has taken."""

    is_open = False
    file_size = 0
    size = 0
    may_wait_on = False
    """Whether it may wait for more while it holds some: one thread at a time, or two would wait for each other."""


class MemoryBudget:
    """`limit` bytes, of which threads take what an image needs and return it when they are done with the image."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()
        self._large = threading.Lock()
        self._mine = _Taken()

    @contextmanager
    def one_image(self) -> Iterator[None]:
        """Return at the end whatever this thread takes in the block; a block inside another one does nothing."""
        mine = self._mine
        if mine.is_open:
            yield
            return
        mine.is_open, mine.file_size = True, 0
        try:
            yield
        finally:
            self._return()
            mine.is_open = False
            if mine.may_wait_on:
                mine.may_wait_on = False
                self._large.release()

    def take_file(self, size: int) -> None:
        """Wait until a file of `size` bytes may be read; ImageError if it is larger than the budget."""
        mine = self._mine
        if mine.is_open:
            if size > _SMALL_FILE and not mine.may_wait_on:
                self._large.acquire()
                mine.may_wait_on = True
                self._wait_for(size)
            mine.file_size = size

    def take(self, size: int) -> None:
        """Wait until `size` bytes, all that this thread's image needs beside its file, are free, and take them.

        They replace what was taken before. Raises ImageError if that is more than the budget. Outside of a block it
        takes nothing.
        """
        if self._mine.is_open:
            self._wait_for(self._mine.file_size + size)

    def _wait_for(self, size: int) -> None:
        mine, limit = self._mine, self.limit
        if size > limit:
            needed = f"needs {size / 1e9:.2f} GB of memory"
            raise ImageError(f"{needed}, over the limit of {limit / 1e9:.2f} GB; raise `memory`")
        if not mine.may_wait_on:
            self._return()
        with self._changed:
            self._changed.wait_for(lambda: self._used - mine.size + size <= self.limit or self._used == mine.size)
            self._used += size - mine.size
            mine.size = size

    def _return(self) -> None:
        with self._changed:
            self._used -= self._mine.size
            self._mine.size = 0
            self._changed.notify_all()


def memory_bytes(limits: Sequence[Path] = MEMORY_LIMITS) -> int:
    """The machine's memory, or the container's limit if that is less; 0 if it is unknown, as on Windows."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    for path in limits:
        try:
            memory = min(memory, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return memory


def usual_budget() -> int:
    """Half of `memory_bytes`."""
    return (memory_bytes() or _UNKNOWN_MACHINE) // 2


BUDGET = MemoryBudget(usual_budget())
"""That of this process."""
