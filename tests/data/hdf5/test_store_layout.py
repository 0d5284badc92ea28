"""Files of a store that are laid out otherwise are refused before their data is read, and flipped bits are found."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import make_rows, make_store

from captionmill.data.errors import StoreAccessError, StoreDamageError, StoreError
from captionmill.data.features.file import find_unsafe
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.repair import repair_store, require_safe
from captionmill.data.features.store import FeatureStore
from captionmill.data.hdf5.check import is_sealed

KEYS = ["a", "b", "c"]
ROWS = make_rows(3)
Change = Callable[[h5py.File, Path], object]


def replace(name: str, **how: object) -> Change:
    def change(file: h5py.File, _: Path) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return change


def in_another_file(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(os.urandom(ROWS.nbytes))
    replace("features", shape=ROWS.shape, dtype="<f4", external=[(str(folder / "secret"), 0, ROWS.nbytes)])(
        file, folder
    )


def by_external_link(file: h5py.File, folder: Path) -> None:
    del file["features"]
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = ROWS
    file["features"] = h5py.ExternalLink(str(folder / "other.h5"), "x")


def by_soft_link(file: h5py.File, _: Path) -> None:
    file.move("features", "moved")
    file["features"] = h5py.SoftLink("/moved")


def removed_by_external_link(file: h5py.File, folder: Path) -> None:
    os.mkfifo(folder / "pipe")  # opening it would wait forever
    file["removed"] = h5py.ExternalLink(str(folder / "pipe"), "x")


def virtual(file: h5py.File, folder: Path) -> None:
    by_external_link(file, folder)
    del file["features"]
    layout = h5py.VirtualLayout(ROWS.shape, "<f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", ROWS.shape)
    file.create_virtual_dataset("features", layout)


def a_group(file: h5py.File, _: Path) -> None:
    del file["keys"]
    file.create_group("keys")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (in_another_file, "features is stored in another file"),
        (by_external_link, "features is a link"),
        (by_soft_link, "features is a link"),
        (removed_by_external_link, "removed is a link"),
        (virtual, "features is not stored in one piece"),
        (a_group, "keys is no dataset"),
        (replace("features", data=ROWS, chunks=(2, 8), compression="gzip"), "features is not stored in one piece"),
    ],
)
def test_a_layout_that_is_not_ours_is_refused_and_is_no_damage(tmp_path: Path, change: Change, reason: str) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, ROWS)
    with h5py.File(path, "a") as file:
        change(file, tmp_path)
    said = f"{path}: {reason}, as captionmill writes none; if another program packed it, unpack it with h5repack"
    with pytest.raises(StoreError) as error:
        FeatureStore.open(path)
    assert str(error.value) == f"{said} -l CONTI -f NONE"
    assert not isinstance(error.value, StoreDamageError)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace("features", data=np.ones(ROWS.shape, "<i2")), "features holds int16, not <f2 or <f4"),
        (replace("features", data=ROWS.astype(">f4")), "features holds >f4, not <f2 or <f4"),
        (replace("features", data=ROWS[None]), "features has 3 dimensions, not 2"),
        (replace("features", shape=(10**12, 8), dtype="<f4"), r"features of shape \(1000000000000, 8\) is more than"),
        (replace("keys", data=[KEYS], dtype=h5py.string_dtype()), "keys has 2 dimensions, not 1"),
        (replace("keys", data=np.arange(3)), "keys holds int64, not text"),
        (replace("keys", data=np.array(KEYS, "S1")), r"keys holds \|S1, not text"),
        (replace("checksums", data=np.zeros(3, "<u8")), "checksums holds uint64, not <u4"),
    ],
)
def test_types_and_shapes_that_are_not_ours_are_damage(tmp_path: Path, change: Change, reason: str) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, ROWS)
    with h5py.File(path, "a") as file:
        change(file, tmp_path)
    with pytest.raises(StoreDamageError, match=rf"f\.h5: not a readable feature store \({reason}"):
        FeatureStore.open(path)


@pytest.mark.parametrize("place", ["f.h5", "f.h5.parts/part-000001-000000-000001-0123abcd.h5"])
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path, place: str) -> None:
    parts_dir(tmp_path / "f.h5").mkdir()
    os.mkfifo(tmp_path / place)
    with pytest.raises(StoreAccessError, match="a pipe, not a file; remove it, or name a feature store"):
        FeatureStore.open(tmp_path / "f.h5")
    (tmp_path / place).unlink()
    (tmp_path / place).symlink_to("/dev/zero")
    with pytest.raises(StoreAccessError, match="a device, not a file; remove it, or name a feature store"):
        FeatureStore.open(tmp_path / "f.h5")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Path]:
    """What the other process was asked to open, a path in each line; a file named f.h5 kills it."""
    asked, program = tmp_path / "asked", tmp_path / "python"
    program.write_text(
        "#!/bin/sh\nshift 4\n"
        f'for path; do echo "$path" >> {asked}; case "$path" in */f.h5) kill -9 $$;; esac; echo; done\n'
    )
    program.chmod(0o755)
    usual = spawn.get_executable()
    spawn.set_executable(str(program))
    yield asked
    spawn.set_executable(usual)


def test_a_flip_in_the_bookkeeping_is_found_before_hdf5_sees_it(tmp_path: Path, opened: Path) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, ROWS)
    with path.open("rb") as file:
        assert is_sealed(file)
    flip(path, 70)  # of the superblock
    with pytest.raises(StoreDamageError, match="its bookkeeping is not what was written"):
        FeatureStore.open(path)
    assert opened.read_text() == f"{path}\n"


def test_what_a_flip_leaves_readable_is_read_and_repair_writes_it_again(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, ROWS)
    before = path.read_bytes()
    flip(path, len(before) - 1)  # of the checksum itself
    assert FeatureStore.open(path).verify() == []
    assert repair_store(path).files_set_aside == ()
    with path.open("rb") as file:
        assert is_sealed(file)
    assert FeatureStore.open(path).digest() == FeatureStore.open(make_store(tmp_path / "g.h5", KEYS, ROWS)).digest()


@pytest.mark.parametrize("ranges", [[2**63, 2**63], [0, 2**62], [0, 8, 0, 8], [8, 8, 0, 8], [0]])
def test_a_checksum_of_more_than_the_file_is_refused_before_it_is_read(tmp_path: Path, ranges: list[int]) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, ROWS)
    content = path.read_bytes()
    read = b"".join(content[start : start + length] for start, length in zip(ranges[::2], ranges[1::2], strict=False))
    packed = struct.pack(f"<{len(ranges)}Q8sQI", *ranges, b"CMSEAL\0\1", len(content), zlib.crc32(read))
    with path.open("r+b") as file:
        file.seek(len(content))
        file.write(packed + struct.pack("<I", zlib.crc32(packed)))
        assert is_sealed(file) is False


def test_a_file_without_a_checksum_that_crashes_hdf5_is_damage(tmp_path: Path, opened: Path) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, ROWS)
    path.write_bytes(path.read_bytes()[:-40])  # as earlier versions wrote it
    good = make_store(tmp_path / "g.h5", KEYS, ROWS)
    assert find_unsafe([good, path, good]) == [path]
    assert opened.read_text() == f"{good}\n{path}\n{good}\n"
    with pytest.raises(StoreDamageError, match=r"f\.h5: not a readable feature store \(HDF5 hangs or crashes\)"):
        require_safe(path)
    with pytest.raises(StoreDamageError, match="HDF5 hangs or crashes"):
        repair_store(path)
    assert path.exists()
