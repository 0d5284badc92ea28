"""A reader sees the old file or the new one, never half of either."""

import errno
from pathlib import Path

import pytest

from captionmill.data.errors import InputError
from captionmill.data.files import replace_atomically, write_text


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


def test_a_name_as_long_as_a_name_may_be_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + "n.csv")  # 255 bytes
    write_text(path, "whole\n")
    assert path.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_beside_the_file_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    path.parent.mkdir()
    (path.parent / ".table.csv.partial").write_text("half")
    write_text(path, "whole\n")
    assert path.read_text() == "whole\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]
