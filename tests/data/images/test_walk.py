"""What a search passes over is counted, each folder is searched once, and no name or date ends a run."""

import inspect
import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from builders import TESTS
from PIL import Image

from captionmill.data.errors import ImageError, InputError
from captionmill.data.images.find import find_images, search_images
from captionmill.data.images.keys import FileFinder, image_key
from captionmill.data.images.read import FILE_LIMIT, ImageFile, is_unchanged, known_ns, read_image, seconds_to_ns

SYSTEM = ("@eaDir/a.jpg", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX")
HIDDEN_SYSTEM = (".Trash-1000/files", ".Trashes", ".thumbnails/large", ".@__thumb")


def write(path: Path, content: bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def keys_of(images: Path | str) -> list[str]:
    return [image.key for image in find_images(images)]


def reasons_of(images: Path | str) -> dict[str, str]:
    """The reason of each image that cannot be read, by key; empty for the others."""
    reasons = {}
    for image in find_images(images):
        try:
            read_image(image)
            reasons[image.key] = ""
        except ImageError as exc:
            reasons[image.key] = str(exc)
    return reasons


def pack(path: Path, names: list[str], *, modified_s: float = 1000.0) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 5, modified_s
            archive.addfile(info, io.BytesIO(b"image"))
    return path


def test_thumbnails_bins_and_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    names = [f"{folder}/x.jpg" for folder in (*SYSTEM, *HIDDEN_SYSTEM)]
    for name in ("a.jpg", "b.cr2", "sub/c.heic", "._a.jpg", "sub/.d.png", ".notes", ".git/e.jpg", "#recycle/f.txt"):
        write(tmp_path / "photos" / name)
    for name in names:
        write(tmp_path / "photos" / name)
    search = search_images(tmp_path / "photos")
    assert [image.key for image in search.found] == ["a.jpg", "b.cr2", "sub/c.heic"]
    assert search.left_out.describe() == (
        "10 images in thumbnail folders and bins (#recycle, $RECYCLE.BIN, .@__thumb, .Trash-1000, .Trashes, "
        ".thumbnails, @eaDir, System Volume Information, __MACOSX, lost+found), 2 hidden images, 1 hidden folder"
    )


def test_an_image_in_place_of_a_list_is_one_line(tmp_path: Path) -> None:
    for name in ("a.svg", "a.nef"):
        path = write(tmp_path / name, b"<svg></svg>")
        with pytest.raises(InputError, match=f"{name}: one image; expected a folder of images"):
            find_images(path)


def test_they_are_left_out_of_tars_and_remote_folders_too(tmp_path: Path) -> None:
    names = ["a.jpg", "b.nef", "@eaDir/a.jpg/x.jpg", "__MACOSX/._a.jpg", "._a.jpg", ".cache/c.jpg", "d.txt"]
    memory = fsspec.filesystem("memory")
    for name in names:
        memory.pipe(f"memory://left_out/{name}", b"image")
    for images in (pack(tmp_path / "x.tar", names), "memory://left_out"):
        search = search_images(images)
        assert [image.key for image in search.found] == ["a.jpg", "b.nef"]
        assert search.left_out.describe() == (
            "2 images in thumbnail folders and bins (@eaDir, __MACOSX), 2 hidden images"
        )


def test_a_folder_with_nothing_else_says_what_was_left_out(tmp_path: Path) -> None:
    write(tmp_path / "photos/@eaDir/a.jpg")
    with pytest.raises(InputError, match=r"left out: 1 image in thumbnail folders and bins \(@eaDir\)"):
        find_images(tmp_path / "photos")
    assert keys_of(tmp_path / "photos/@eaDir") == ["a.jpg"], "asked for by name"


def test_folders_that_link_to_each_other_are_searched_once(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number in range(8):
        write(root / f"d{number}/x{number}.jpg")
        for other in range(8):
            (root / f"d{number}/to{other}").symlink_to(f"../d{other}")
    (root / "a-root").symlink_to("/")
    (root / "d0/up").symlink_to("../..")
    search = search_images(root)
    assert [image.key for image in search.found] == [f"d{number}/x{number}.jpg" for number in range(8)]
    assert search.left_out.links == 66


def test_a_folder_elsewhere_is_searched_under_the_first_link_to_it(tmp_path: Path) -> None:
    write(tmp_path / "other/sub/b.jpg")
    (tmp_path / "other/back").symlink_to(tmp_path / "photos")
    write(tmp_path / "photos/z/a.jpg")
    (tmp_path / "photos/a").symlink_to("z")
    (tmp_path / "photos/m").symlink_to(tmp_path / "other")
    (tmp_path / "photos/n").symlink_to(tmp_path / "other/sub")
    assert keys_of(tmp_path / "photos") == ["m/sub/b.jpg", "z/a.jpg"]


def test_a_folder_deeper_than_pythons_stack_is_searched(tmp_path: Path) -> None:
    folders = ["d"] * 200
    write(tmp_path.joinpath(*folders, "a.jpg"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(context=0)) + 100)
    try:
        assert keys_of(tmp_path) == ["/".join([*folders, "a.jpg"])]
    finally:
        sys.setrecursionlimit(limit)


# Dates and sizes


@pytest.mark.parametrize(
    ("time_s", "expected"),
    [(1.5, 1_500_000_000), (-1.0, 0), (9e11, 0), (float("inf"), 0), (float("nan"), 0), (1.8e10, 18 * 10**18)],
)
def test_a_time_that_a_store_cannot_hold_is_unknown(time_s: float, expected: int) -> None:
    assert seconds_to_ns(time_s) == expected


def test_the_latest_time_of_a_store_is_in_2554() -> None:
    assert (known_ns(2**64 - 1), known_ns(2**64), known_ns(-1)) == (2**64 - 1, 0, 0)


def test_members_of_a_tar_with_any_date_are_found() -> None:
    images = find_images(TESTS / "cases/mtime-year-30828.tar")
    assert [image.key for image in images] == ["000.jpg", "001.jpg"]
    assert images[0].modified_ns == 1_700_000_000_000_000_000
    assert 0 <= images[1].modified_ns < 2**64


@pytest.mark.parametrize("modified", [b"inf", b"nan", b"-inf", b"1e300"])
def test_a_pax_header_with_any_date_is_read(modified: bytes, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", ["a.jpg"], modified_s=1000.123456)
    content = path.read_bytes()
    record = b"21 mtime=1000.123456\n"
    assert record in content
    path.write_bytes(content.replace(record, b"21 mtime=" + modified.ljust(11, b" ") + b"\n"))
    assert keys_of(path) == ["a.jpg"]
    assert read_image(find_images(path)[0])[0] == b"image"


@pytest.mark.parametrize("seconds", [-(10**9), 2**64 // 10**9 + 1000])
def test_a_file_of_any_date_is_read_and_its_content_decides_whether_it_has_changed(
    seconds: int, tmp_path: Path
) -> None:
    folder = Path("/dev/shm") if seconds > 0 else tmp_path  # most file systems end in 2446
    if not folder.is_dir():
        pytest.skip("this system has no file system with such dates")
    path = folder / f"captionmill-{os.getpid()}.jpg"
    path.write_bytes(b"0123")
    try:
        os.utime(path, (seconds, seconds))
        image = ImageFile("a.jpg", path)
        source = read_image(image)[1]
        assert source.modified_ns == 0
        assert is_unchanged(image, source)
        path.write_bytes(b"9876")
        os.utime(path, (seconds, seconds))
        assert not is_unchanged(image, source)
    finally:
        path.unlink()


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    reason = "100,000,000,000 bytes, over the limit of 4,000,000,000 bytes"
    with write(tmp_path / "photos/a.jpg", b"").open("wb") as file:
        file.truncate(100_000_000_000)
    write(tmp_path / "photos/b.jpg")
    info = tarfile.TarInfo("c.jpg")
    info.size = 100_000_000_000
    with (tmp_path / "photos/x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024 + 512)
    assert reasons_of(tmp_path / "photos") == {"a.jpg": reason, "b.jpg": "", "x.tar/c.jpg": reason}
    assert FILE_LIMIT == 4_000_000_000


# Names


@pytest.mark.skipif(os.name == "nt", reason="a backslash is no part of a name on Windows")
def test_of_two_files_with_one_key_one_has_a_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    reason = "another file has the same name with forward slashes, a/b.jpg; rename one of them"
    for name in ("photos/a/b.jpg", "photos/a\\b.jpg", "photos/c.jpg"):
        write(tmp_path / name, name.encode())
    expected = {"a/b.jpg": "", "a\\b.jpg": reason, "c.jpg": ""}
    assert reasons_of(tmp_path / "photos") == expected
    assert reasons_of(pack(tmp_path / "x.tar", ["a\\b.jpg", "a/b.jpg", "c.jpg"])) == expected
    listed = write(tmp_path / "photos/all.txt", b"a\\b.jpg\na/b.jpg\nc.jpg\n./c.jpg\n")
    assert reasons_of(listed) == expected
    assert read_image(find_images(listed)[0])[0] == b"photos/a/b.jpg"


def test_two_members_with_one_key_are_one_row_and_a_reason() -> None:
    reason = "another file has the same name with forward slashes, dir/a.jpg; rename one of them"
    assert reasons_of(TESTS / "cases/backslash.tar") == {"dir/a.jpg": "", "dir\\a.jpg": reason}


@pytest.mark.skipif(os.name == "nt", reason="names of bytes that are not UTF-8 do not exist on Windows")
def test_every_file_is_found_again_by_its_key_in_a_list(tmp_path: Path) -> None:
    names: list[Any] = [b"c\\d.jpg", b"caf\xe9.jpg", "sub\\1/u\u0308.jpg".encode(), "\u00fc.jpg".encode(), b"x y.jpg"]
    for number, name in enumerate(names):
        write(tmp_path / "photos" / os.fsdecode(name), str(number).encode())
    found = {image.key: read_image(image)[0] for image in find_images(tmp_path / "photos")}
    assert sorted(found) == ["c/d.jpg", r"caf\udce9.jpg", "sub/1/u\u0308.jpg", "x y.jpg", "\u00fc.jpg"]
    listed = write(tmp_path / "photos/all.txt", "\n".join(found).encode())
    assert {image.key: read_image(image)[0] for image in find_images(listed)} == found
    assert [image_key(key) for key in found] == list(found)
    above = write(tmp_path / "all.txt", "\n".join(f"photos/{key}" for key in found).encode())
    assert [read_image(image)[0] for image in find_images(above)] == list(found.values())
    typed = write(tmp_path / "photos/typed.txt", "sub/1/\u00fc.jpg".encode())
    assert [read_image(image)[0] for image in find_images(typed)] == [b"2"], "in the other Unicode form"


def test_a_name_that_is_no_file_stays_where_it_would_be(tmp_path: Path) -> None:
    write(tmp_path / "u\u0308.jpg")
    write(tmp_path / "\u00fc.jpg")
    finder = FileFinder(tmp_path)
    assert finder.find("gone\\a.jpg") == tmp_path / "gone/a.jpg"
    assert finder.find("/gone/a.jpg") == Path("/gone/a.jpg")
    assert finder.find("../gone.jpg") == tmp_path / "../gone.jpg"
    assert finder.find("u\u0308.jpg") == tmp_path / "u\u0308.jpg"
    assert finder.find("a\0b.jpg") == tmp_path / "a\0b.jpg"


def test_more_behind_the_suffix_of_an_image_is_looked_into(tmp_path: Path) -> None:
    for name in ("a.jpg?w=80", "b.jpeg.1", "c.PNG~", "d.jpg_large", "e.webp.bak"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    (tmp_path / "a.jpg.json").write_text("{}")
    (tmp_path / "b.jpg.txt").write_text("a caption")
    Image.new("RGB", (4, 4)).save(tmp_path / "notes.docx", "PNG")
    assert [image.key for image in find_images(tmp_path)] == [
        "a.jpg?w=80",
        "b.jpeg.1",
        "c.PNG~",
        "d.jpg_large",
        "e.webp.bak",
    ]
