"""A store that cannot be opened now is not damaged: what is the case is said, and nothing is changed."""

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import TESTS, make_rows, make_spec, make_store
from processes import Child
from system_calls import CAN_REFUSE

from captionmill.data.errors import StoreAccessError, StoreDamageError, StoreError
from captionmill.data.features.parts import part_paths, parts_dir
from captionmill.data.features.repair import repair_store
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter, lock_store

needs_refusals = pytest.mark.skipif(not CAN_REFUSE, reason="only Linux refuses a system call to one process")
HELD = (
    "another program has it open for writing; close it there, such as in a notebook that called h5py.File with "
    'mode "a", and run again'
)
IMPORTS = """
import os, signal, sys
from pathlib import Path
from builders import make_rows, make_spec, make_store
from captionmill.data.errors import CaptionmillError
from captionmill.data.features.repair import repair_store
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from system_calls import refuse
path = Path(sys.argv[1])
def show(work):
    try:
        print(work())
    except CaptionmillError as exc:
        print(f"{type(exc).__name__}: {exc}")
"""


def run(program: str, path: Path, *arguments: object) -> list[str]:
    """The lines that a program prints, in a process of its own."""
    output = path.parent / "output.txt"
    with Child(IMPORTS + program, path, *arguments, output=output) as child:
        code = child.wait()
    text = output.read_text()
    assert code == 0, text
    return text.splitlines()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` but locks and what the tests print."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "output.txt")
    }


def store_with_part(path: Path) -> Path:
    """A main file of three rows and a part of one, as an interrupted extraction leaves them."""
    make_store(path, ["a", "b", "c"], make_rows(3))

    def interrupted() -> None:
        with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
            writer.add(["d"], make_rows(1, seed=1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    return path


@pytest.mark.parametrize("mode", ["a", "r+"])
@pytest.mark.parametrize("part", [False, True])
def test_a_file_that_a_notebook_holds_open_is_named_and_nothing_is_set_aside(
    tmp_path: Path, mode: str, part: bool
) -> None:
    path = store_with_part(tmp_path / "f.h5")
    held = part_paths(path)[0] if part else path
    notebook = f"import h5py; file = h5py.File(sys.argv[2], {mode!r}); Path(sys.argv[3]).touch(); signal.pause()"
    with Child(IMPORTS + notebook, path, held, tmp_path / "open"):
        while not (tmp_path / "open").exists():
            time.sleep(0.005)
        (tmp_path / "open").unlink()
        before = files_of(tmp_path)
        with pytest.raises(StoreAccessError) as error:
            FeatureStore.open(path)
        assert str(error.value) == f"{held}: {HELD}"
        with pytest.raises(StoreAccessError) as error:
            repair_store(path)
        assert str(error.value) == f"{held}: {HELD}; nothing was changed"
        with pytest.raises(StoreAccessError):
            FeatureWriter(path, make_spec(), dtype="float32", made_by={})
        assert files_of(tmp_path) == before
    assert repair_store(path).rows_dropped == ()
    assert FeatureStore.open(path).keys == ["a", "b", "c", "d"]


def test_a_store_that_this_process_has_open_is_read(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a", "b"], make_rows(2))
    for mode in ("r", "a"):
        with h5py.File(path, mode):
            np.testing.assert_array_equal(FeatureStore.open(path)["b"], make_rows(2)[1])


@needs_refusals
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_on_storage_without_locks_a_store_is_written_read_and_repaired(tmp_path: Path, number: int) -> None:
    program = f"""
refuse("flock", {number})
make_store(path, ["a", "b"], make_rows(3)[:2])
make_store(path, ["c"], make_rows(3)[2:])
show(lambda: repair_store(path))
show(lambda: FeatureStore.open(path).keys)
print(sorted(os.listdir(path.parent)))
"""
    assert run(program, tmp_path / "f.h5") == [
        "RepairSummary(rows_dropped=(), files_set_aside=())",
        "['a', 'b', 'c']",
        "['f.h5', 'output.txt']",
    ]
    store = FeatureStore.open(tmp_path / "f.h5")
    np.testing.assert_array_equal(store.read([0, 1, 2]), make_rows(3))
    assert store.verify() == []


@needs_refusals
def test_on_storage_without_locks_a_second_writer_is_refused_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    holder = f"""
refuse("flock", {errno.ENOLCK})
with FeatureWriter(path, make_spec(), dtype="float32", made_by={{}}) as writer:
    writer.add(["a"], make_rows(1))
    writer.flush()
    Path(sys.argv[2]).touch()
    signal.pause()
"""
    second = f'refuse("flock", {errno.ENOLCK}); show(lambda: make_store(path, ["b"], make_rows(1, seed=1)).name)'
    with Child(IMPORTS + holder, path, tmp_path / "open"):
        while not (tmp_path / "open").exists():
            time.sleep(0.005)
        (line,) = run(second, path)
        assert line == (
            f"StoreError: {path}: another process is writing to this store; wait for it to end; this storage has no "
            "locks: if that process was killed on another machine, delete "
            f"{parts_dir(path) / '.lock.holder'}"
        )
    assert run(second, path) == ["f.h5"]  # leaving the block above killed the first
    assert FeatureStore.open(path).keys == ["a", "b"]
    assert not parts_dir(path).exists()


@needs_refusals
def test_locks_that_a_user_demands_where_there_are_none_are_named(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a"], make_rows(1))
    program = f"""
import sys
from captionmill.data.errors import StoreAccessError
from captionmill.data.features.store import FeatureStore
from system_calls import refuse
refuse("flock", {errno.ENOLCK})
try:
    FeatureStore.open(sys.argv[1])
except StoreAccessError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        env=os.environ | {"PYTHONPATH": str(TESTS), "HDF5_USE_FILE_LOCKING": "TRUE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"{path}: its storage has no locks (No locks available); unset HDF5_USE_FILE_LOCKING, which demands them\n"
    )


@needs_refusals
@pytest.mark.parametrize(
    ("call", "number", "offset"),
    [
        ("pread64", errno.EIO, 0),
        ("pread64", errno.EIO, 2048),
        ("pread64", errno.ESTALE, 0),
        ("flock", errno.EIO, 0),
        ("openat", errno.EACCES, 0),
        ("openat", errno.ENFILE, 0),
        ("openat", errno.ETIMEDOUT, 0),
    ],
)
def test_no_error_of_the_system_is_taken_for_damage(tmp_path: Path, call: str, number: int, offset: int) -> None:
    path = store_with_part(tmp_path / "f.h5")
    before = files_of(tmp_path)
    program = f"""
refuse({call!r}, {number}, from_offset={offset})
show(lambda: FeatureStore.open(path))
show(lambda: repair_store(path))
"""
    opened, repaired = run(program, path)
    assert opened.startswith(f"StoreAccessError: {path}")
    assert repaired.startswith("Store")
    for line in (opened, repaired):
        assert f"({os.strerror(number)}" in line or f"({os.strerror(number).lower()}): " in line
        assert "damage" not in line
        assert "extract it again" not in line
    assert files_of(tmp_path) == before


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    path = store_with_part(tmp_path / "f.h5")
    program = """
import resource
descriptor = os.open(os.devnull, os.O_RDONLY)
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 2, most))  # one more
show(lambda: FeatureStore.open(path))
"""
    assert run(program, path)[0].endswith(
        "f.h5: cannot be opened now (too many open files): close files, or allow more at once (ulimit -n)"
    )


def test_a_folder_or_a_loop_of_links_in_the_place_of_a_file_is_no_damage(tmp_path: Path) -> None:
    path = store_with_part(tmp_path / "f.h5")
    (part,) = part_paths(path)
    part.unlink()
    part.mkdir()
    with pytest.raises(StoreAccessError, match=r"is a directory\): it is a folder; remove or rename it"):
        repair_store(path)
    assert part.is_dir()
    part.rmdir()
    (parts_dir(path) / ".lock").unlink()
    parts_dir(path).rmdir()
    parts_dir(path).symlink_to(parts_dir(path))
    with pytest.raises(StoreAccessError, match=r"f\.h5\.parts: cannot be listed \(.*\), and it may hold rows"):
        FeatureStore.open(path)


def test_a_file_of_a_killed_writer_or_of_an_unknown_filter_is_no_damage(tmp_path: Path) -> None:
    """What HDF5 refuses without a number of the system."""
    path = make_store(tmp_path / "f.h5", ["a", "b"], make_rows(2))
    marked = tmp_path / "marked.h5"
    with h5py.File(path) as source, h5py.File(marked, "w", libver="latest") as copy:
        for name in source:
            source.copy(name, copy)
        copy.attrs.update(source.attrs)
    assert FeatureStore.open(marked).keys == ["a", "b"]
    killed = "import h5py; file = h5py.File(path, 'r+', libver='latest'); file.flush(); os.kill(os.getpid(), 9)"
    with Child(IMPORTS + killed, marked) as child:
        assert child.wait() == -9
    before = marked.read_bytes()
    with pytest.raises(StoreAccessError, match=r"marked\.h5: a program that wrote to it was killed; run h5clear -s on"):
        repair_store(marked)
    assert marked.read_bytes() == before


def test_a_text_longer_than_its_file_is_refused_before_hdf5_asks_for_the_memory(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg"], make_rows(2))
    with h5py.File(path) as file:
        offset = file["keys"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 16 + 3] ^= 0x80  # of the length of the second key
    path.write_bytes(content)
    with pytest.raises(StoreDamageError, match=rf"a text of 2147483653 bytes in {len(content)} bytes"):
        FeatureStore.open(path)


def test_the_case_of_a_long_key_is_refused_in_little_memory() -> None:
    path = TESTS / "cases" / "stores" / "hang_long_key.h5"
    program = f"""
import pathlib, signal
from captionmill.data.errors import StoreDamageError
from captionmill.data.features.store import FeatureStore
signal.alarm(20)
try:
    FeatureStore.open(pathlib.Path({str(path)!r}))
except StoreDamageError as error:
    print(str(error).partition(": ")[2])
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) < 500_000)  # kB
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    reason = "not a readable feature store (a text of 2650800143 bytes in 57872 bytes); extract it again"
    assert said.splitlines() == [reason, "True"]


def test_a_lock_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    parts_dir(tmp_path / "f.h5").mkdir()
    (parts_dir(tmp_path / "f.h5") / ".lock").mkdir()
    with pytest.raises(StoreError, match=r"\.lock: cannot be locked \(.+\)"), lock_store(tmp_path / "f.h5"):
        pass


def test_no_bit_of_the_bookkeeping_keeps_hdf5_busy_or_crashes_it(tmp_path: Path) -> None:
    """The places where one wrong bit did: types and lengths of attributes, sizes of texts and of their heaps."""
    path = make_store(tmp_path / "f.h5", [f"photos/{number:03d}.jpg" for number in range(120)], make_rows(120))
    content = path.read_bytes()[:-40]  # as earlier versions wrote it: without a checksum of its bookkeeping
    path.write_bytes(content)
    attributes = [found.start() for found in re.finditer(rb"\x19\x01\x01\0\x10\0\0\0\x10\0\0\0\x01\0", content)]
    heaps = [found.start() for found in re.finditer(rb"GCOL\x01\0\0\0", content)]
    assert (len(attributes), len(heaps)) == (4, 2)  # format, spec, made_by; the type of the keys
    places = [start + 1 for start in attributes] + [start + 32 + 3 for start in attributes[:3]]
    for heap in heaps:
        places += [heap + 9, heap + 16 + 8, heap + 16 + 9]  # sizes of the heap and of its first text
    middle = content.index(b"photos/037.jpg\0\0") + 16
    places += [middle + 8, middle + 9]  # size of the text after it
    program = f"""
signal.alarm(20)
content = bytes(path.read_bytes())
outcomes = {{}}
for place in {places}:
    for bit in range(8):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            FeatureStore.open(path).verify()
        except CaptionmillError as exc:
            outcomes[type(exc).__name__] = outcomes.get(type(exc).__name__, 0) + 1
print(sorted(outcomes))
"""
    assert run(program, path) == ["['StoreDamageError']"]
