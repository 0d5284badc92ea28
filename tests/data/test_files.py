"""A reader sees the old file or the new one, never half of either."""

import errno
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from captionmill.data.errors import InputError
from captionmill.data.files import replace_atomically, write_text
from captionmill.data.hdf5.check import is_sealed
from captionmill.data.regular import open_own, open_regular, open_regular_text, read_bytes, read_text, require_content

WRITER = """import sys
from pathlib import Path
from captionmill.data.files import write_text
write_text(Path(sys.argv[1]), "second\\n")
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(os.devnull)
    for name, what in (("pipe", "a pipe, not a file"), ("link", "a device, not a file")):
        with pytest.raises(OSError, match=what):
            write_text(tmp_path / name, "text")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe"]
    assert (tmp_path / "link").is_symlink()


def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "good\n")

    def fail_halfway() -> None:
        with replace_atomically(path) as partial_path:
            partial_path.write_text("half")
            raise InputError("stopped")

    with pytest.raises(InputError):
        fail_halfway()
    assert path.read_text() == "good\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_full_disk_names_the_file_that_could_not_be_written(tmp_path: Path) -> None:
    def fill() -> None:
        with replace_atomically(tmp_path / "table.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as error:
        fill()
    assert error.value.filename == str(tmp_path / "table.csv")


def test_a_full_disk_names_the_copy_and_not_its_original(tmp_path: Path) -> None:
    def copy() -> None:
        with replace_atomically(tmp_path / "copy.jpg") as partial_path:
            raise OSError(errno.ENOSPC, "No space left on device", "original.jpg", None, str(partial_path))

    with pytest.raises(OSError, match="No space left on device") as error:
        copy()
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "copy.jpg"), None)


def test_a_name_as_long_as_a_name_may_be_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + "n.csv")  # 255 bytes
    write_text(path, "whole\n")
    assert path.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_beside_the_file_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    path.parent.mkdir()
    (path.parent / ".table.csv.0123456789abcdef.partial").write_text("half")
    (path.parent / ".table.csv.fedcba9876543210.partial").symlink_to(tmp_path / "elsewhere.csv")
    (path.parent / ".mine.partial").write_text("of another program")
    write_text(path, "whole\n")
    assert path.read_text() == "whole\n"
    left = sorted(entry.name for entry in path.parent.iterdir())
    assert left == [".mine.partial", ".table.csv.fedcba9876543210.partial", "table.csv"]


def test_what_another_process_writes_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "table.csv") as partial_path:
        partial_path.write_text("first\n")
        subprocess.run([sys.executable, "-c", WRITER, tmp_path / "table.csv"], check=True)
        assert (tmp_path / "table.csv").read_text() == "second\n"
        assert partial_path.exists()
    assert (tmp_path / "table.csv").read_text() == "first\n"  # the last one wins, whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("precious\n")
    (tmp_path / "table.csv").symlink_to(outside)
    write_text(tmp_path / "table.csv", "new\n")
    assert not (tmp_path / "table.csv").is_symlink()
    (tmp_path / "log.csv").symlink_to(outside)
    for mode in ("ab", "wb", "r+b", "a+b"):
        with pytest.raises(OSError, match="is a link") as error:
            open_own(tmp_path / "log.csv", mode)
        assert error.value.filename == str(tmp_path / "log.csv")
    assert outside.read_text() == "precious\n"


def test_a_file_that_is_too_large_to_be_read_at_once_says_its_size(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)  # takes no space
    for read in (read_bytes, read_text):
        with pytest.raises(OSError, match="has 5,368,709,120 bytes, more than 4,294,967,296"):
            read(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_file_that_has_no_content_now_is_an_error_and_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg, a file by its kind, of which reading waits until the kernel says something: here a pipe."""
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(stat, "S_IFMT", lambda mode: stat.S_IFREG)
            file, text = open_regular(path), open_regular_text(path)
        reads: list[Callable[[], object]] = [file.read, lambda: file.read(8), file.readline, text.readline, text.read]
        for read in reads:
            with pytest.raises(OSError, match="has no content now") as error:
                read()
            assert error.value.filename == str(path)
        os.write(writer, b"text")
        assert file.read() == b"text"
        file.close()
        text.close()
    finally:
        os.close(writer)


def test_a_file_without_size_is_not_given_to_a_library_that_could_wait_for_its_content(tmp_path: Path) -> None:
    (tmp_path / "store.h5").touch()
    with pytest.raises(ValueError, match="it is empty"):
        require_content(tmp_path / "store.h5")
    (tmp_path / "store.h5").write_bytes(b"x")
    require_content(tmp_path / "store.h5")


def test_a_store_with_less_in_it_than_its_size_says_has_no_seal() -> None:
    """As the files of /sys, or one that is cut off meanwhile."""

    class Short(io.BytesIO):
        def seek(self, place: int, whence: int = 0) -> int:
            return 4096 if whence == os.SEEK_END else super().seek(place, whence)

    assert is_sealed(Short(b"12345")) is None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux has this file")
def test_an_error_while_a_file_is_read_names_it() -> None:
    with pytest.raises(OSError, match="Input/output") as error:
        read_bytes(Path("/proc/self/mem"))
    assert error.value.filename == "/proc/self/mem"


@pytest.mark.skipif(sys.platform != "linux", reason="counts the open files in /proc")
def test_ctrl_c_while_a_file_is_opened_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a.csv").write_text("a")
    before = sorted(Path("/proc/self/fd").iterdir())
    for module, name, open_file in (
        (os, "fstat", lambda: open_regular(tmp_path / "a.csv")),
        (fcntl, "flock", lambda: write_text(tmp_path / "b.csv", "b")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, press_ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                open_file()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
