"""Images inside tars and behind URLs are found, read and extracted like those in a folder."""

import functools
import gc
import http.server
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import fsspec
import numpy as np
import pytest
from builders import thin_config
from fsspec.implementations.http import HTTPFileSystem
from PIL import Image

from captionmill.data.errors import ImageError, InputError, SpecMismatchError
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.find import find_images, search_images
from captionmill.data.images.read import UNKNOWN_SOURCE, ImageFile, ImageSource, hash_content, is_unchanged, read_image
from captionmill.data.urls import read_url
from captionmill.stages.encoding.extract import extract
from captionmill.stages.settings import ExtractConfig

Members = list[tuple[str, bytes]]


def encode_png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE = encode_png("red"), encode_png("lime"), encode_png("blue")
SHARD: Members = [
    ("000000.jpg", RED),
    ("000000.txt", b"a red square"),
    ("000000.json", b'{"key": "000000"}'),
    ("000001.png", GREEN),
    ("000001.txt", b"a green square"),
]


def pack_members(members: Members, *, modified_s: float = 1_700_000_000, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), modified_s
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def contents_of(images: Path | str) -> dict[str, bytes]:
    """The bytes of each image that `images` names, by key."""
    return {image.key: read_image(image)[0] for image in find_images(images)}


def error_of(images: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        find_images(images)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's memory:// filesystem, empty."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def put_tar(place: str, content: bytes, folder: Path, memory: Any) -> Path | str:
    """Where a tar of this `content` is now: in `folder`, or in memory."""
    if place == "local":
        return write(folder / "x.tar", content)
    memory.pipe("memory://bucket/x.tar", content)
    return "memory://bucket/x.tar"


@dataclass(frozen=True)
class Web:
    """An HTTP server of the files in a folder."""

    url: str
    folder: Path
    asked: list[str]
    """What it was asked for so far: "GET /a.jpg"."""


@pytest.fixture(scope="module")
def http_sessions() -> Iterator[None]:
    """Closes fsspec's HTTP sessions in the end: each when its filesystem is collected."""
    yield
    HTTPFileSystem.clear_instance_cache()
    gc.collect()


@pytest.fixture
def web(tmp_path: Path, http_sessions: None) -> Iterator[Web]:
    """A server whose paths tell how it serves: /whole/ never parts of files, /broken/ none, /flaky/ not at first."""
    asked: list[str] = []
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send_head(self) -> io.BytesIO | BinaryIO | None:
            request = f"{self.command} {self.path}"
            is_first = request not in asked
            asked.append(request)
            if self.command == "GET" and ("/broken/" in self.path or ("/flaky/" in self.path and is_first)):
                self.send_error(503)
                return None
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if span is None or "/whole/" in self.path:
                return super().send_head()
            whole = Path(self.translate_path(self.path)).read_bytes()
            part = whole[int(span[1]) : int(span[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(whole)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            return io.BytesIO(part)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Web(f"http://127.0.0.1:{server.server_port}", folder, asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Tars


def test_tar_of_samples_gives_its_images_byte_for_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "shard-000.tar", pack_members(SHARD))
    assert contents_of(path) == {"000000.jpg": RED, "000001.png": GREEN}
    first = find_images(path)[0]
    assert first == ImageFile("000000.jpg", path, 512, len(RED), 1_700_000_000_000_000_000)
    assert read_image(first)[1] == ImageSource(len(RED), 1_700_000_000_000_000_000, hash_content(RED))


def test_folder_mixes_tars_at_every_depth_with_loose_images(tmp_path: Path) -> None:
    write(tmp_path / "loose.png", BLUE)
    write(tmp_path / "shard-000.tar", pack_members(SHARD))
    write(tmp_path / "more/shard-001.TAR", pack_members([("a/000000.jpg", GREEN)]))
    write(tmp_path / ".hidden.tar", pack_members(SHARD))
    (tmp_path / "folder.tar").mkdir()
    write(tmp_path / "folder.tar/x.png", RED)
    assert contents_of(tmp_path) == {
        "folder.tar/x.png": RED,
        "loose.png": BLUE,
        "more/shard-001.TAR/a/000000.jpg": GREEN,
        "shard-000.tar/000000.jpg": RED,
        "shard-000.tar/000001.png": GREEN,
    }


def test_list_mixes_paths_tars_and_urls(tmp_path: Path, memory: Any) -> None:
    memory.pipe("memory://bucket/b.png", BLUE)
    memory.pipe("memory://bucket/shard-001.tar", pack_members([("000002.jpg", BLUE)]))
    write(tmp_path / "shards/shard-000.tar", pack_members(SHARD))
    write(tmp_path / "a.png", RED)
    lines = ["memory://bucket/b.png", "a.png", "shards\\shard-000.tar", "memory://bucket/shard-001.tar"]
    assert contents_of(write(tmp_path / "all.txt", "\n".join(lines).encode())) == {
        "a.png": RED,
        "memory://bucket/b.png": BLUE,
        "memory://bucket/shard-001.tar/000002.jpg": BLUE,
        "shards/shard-000.tar/000000.jpg": RED,
        "shards/shard-000.tar/000001.png": GREEN,
    }


def test_hidden_members_folders_and_symbolic_links_are_left_out(tmp_path: Path) -> None:
    members = [
        (name, RED) for name in ("./a.jpg", "._b.jpg", ".cache/c.jpg", "d/._e.jpg", "/f/g.jpg", "h", "i.jpg.txt")
    ]
    path = write(tmp_path / "x.tar", pack_members(members))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("folder.jpg", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            archive.addfile(info)
    assert contents_of(path) == {"a.jpg": RED, "f/g.jpg": RED}


def test_hard_link_in_a_tar_is_the_picture_it_links_to(tmp_path: Path) -> None:
    write(tmp_path / "photos/a.jpg", RED)
    (tmp_path / "photos/b.jpg").hardlink_to(tmp_path / "photos/a.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "photos", "photos")
    assert contents_of(tmp_path / "x.tar") == {"photos/a.jpg": RED, "photos/b.jpg": RED}


def test_last_of_several_members_of_one_name_counts_as_when_unpacked(tmp_path: Path) -> None:
    members = [("a.png", RED), ("b.png", RED), ("a.png", GREEN), ("a.png", BLUE), ("c.txt", RED), ("c.txt", RED)]
    path = write(tmp_path / "x.tar", pack_members(members))
    assert contents_of(path) == {"a.png": BLUE, "b.png": RED}
    assert search_images(path).left_out.describe() == "2 images in a tar that a later member of the same name replaces"


def test_members_that_lead_out_of_their_tar_are_called_so(tmp_path: Path) -> None:
    members = [("a.png", RED), ("../b.png", RED), ("d/../../c.png", RED), ("d/../e.png", RED), ("..f.png", RED)]
    path = write(tmp_path / "x.tar", pack_members(members))
    assert contents_of(path) == {"a.png": RED, "e.png": RED}
    left_out = "1 hidden image, 2 images in a tar whose path leads out of it (..)"
    assert search_images(path).left_out.describe() == left_out


def test_names_of_members_that_unpack_to_one_file_are_one_name(tmp_path: Path) -> None:
    members = [("./a.png", RED), ("d/b.png", RED), ("a.png", GREEN), ("/d/./b.png", BLUE)]
    path = write(tmp_path / "photos/x.tar", pack_members(members))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./a.png"
        archive.addfile(link)
    found = find_images(path)
    assert {one.key: read_image(one)[0] for one in found if not one.problem} == {
        "a.png": GREEN,
        "c.png": GREEN,
        "d/b.png": BLUE,
    }
    assert {one.key: one.problem for one in found if one.problem} == {
        "./a.png": "a later member, a.png, unpacks to the same file; rename one of them",
        "d/b.png (2)": "a later member, /d/./b.png, unpacks to the same file; rename one of them",
    }
    keys = ["x.tar/./a.png", "x.tar/a.png", "x.tar/c.png", "x.tar/d/b.png", "x.tar/d/b.png (2)"]
    assert [one.key for one in find_images(tmp_path / "photos")] == keys


def test_links_in_a_tar_mean_what_they_do_when_it_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", pack_members([("a.png", RED), ("b.png", GREEN)]))
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("hard.png", tarfile.LNKTYPE, "a.png"),  # keeps what it was linked to
            ("early.png", tarfile.LNKTYPE, "late.png"),
            ("b.png", tarfile.SYMTYPE, "a.png"),  # replaces what was there
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
        for name, content in (("a.png", BLUE), ("late.png", GREEN)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert contents_of(path) == {"a.png": BLUE, "early.png": GREEN, "hard.png": RED, "late.png": GREEN}
    assert search_images(path).left_out.replaced == 2


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_come_whole_in_either_format(tmp_path: Path, tar_format: int) -> None:
    names = ["x" * 300 + ".jpg", "/".join(["folder" * 10] * 5) + "/é.png", "caf\udce9.jpg"]
    path = write(tmp_path / "x.tar", pack_members([(name, RED) for name in names], tar_format=tar_format))
    assert contents_of(path) == {names[0]: RED, names[1]: RED, r"caf\udce9.jpg": RED}


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.bz2", "tar.xz", "tar.zst", "TAR.GZ"])
def test_compressed_tar_is_refused_by_itself_and_in_a_list(tmp_path: Path, suffix: str) -> None:
    reason = "a compressed tar cannot be read in parts; unpack it, or make it a plain .tar"
    path = write(tmp_path / f"x.{suffix}", b"")
    assert error_of(path) == f"{path}: {reason}"
    assert error_of(f"memory://bucket/x.{suffix}") == f"memory://bucket/x.{suffix}: {reason}"
    assert error_of(write(tmp_path / "all.txt", path.name.encode())) == f"{path}: {reason}"


@pytest.mark.parametrize(
    ("kept", "where"),
    [
        (100, "in the first header"),
        (512, "before the first member's bytes"),
        (550, "in the first member's bytes"),
        (1100, "in a header"),
        (1560, "in a later member's bytes"),
    ],
)
def test_tar_cut_anywhere_is_refused_by_name(tmp_path: Path, kept: int, where: str) -> None:
    content = pack_members(SHARD)
    assert content[5 * 1024 :].strip(b"\0") == b""  # 5 members of a header block and a block of bytes; the end mark
    path = write(tmp_path / "cut.tar", content[:kept])
    assert error_of(path).startswith(f"{path}: "), where


def test_tar_damaged_between_two_members_is_refused_by_name(tmp_path: Path) -> None:
    content = pack_members(SHARD)
    path = write(tmp_path / "x.tar", content[:1024] + b"?" * 512 + content[1536:])
    assert error_of(path).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"no tar\n" * 1000, b"\x1f\x8b\x08" + bytes(2000), RED])
def test_file_that_is_no_tar_but_called_one_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "photos/x.tar", content)
    assert error_of(path).startswith(f"{path}: not a readable tar (")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable tar (empty file)"),
        (pack_members(SHARD)[:1100], "the tar is cut short or damaged; copy it again"),
        (None, "not a readable tar (no such file)"),
    ],
)
def test_damaged_tar_among_others_stands_among_the_images_with_its_reason(
    tmp_path: Path, memory: Any, content: bytes | None, reason: str
) -> None:
    write(tmp_path / "photos/b.tar", pack_members(SHARD))
    memory.pipe("memory://bucket/b.tar", pack_members(SHARD))
    if content is not None:
        write(tmp_path / "photos/a.tar", content)
        memory.pipe("memory://bucket/a.tar", content)
        assert reason_of_first(tmp_path / "photos", "a.tar").startswith(reason)
        assert reason_of_first("memory://bucket", "a.tar").startswith(reason)
    listed = write(tmp_path / "all.txt", b"photos/a.tar\nphotos/b.tar")
    assert reason_of_first(listed, "photos/a.tar").startswith(reason)


def reason_of_first(images: Path | str, key: str) -> str:
    """Why the first of three images, called `key`, cannot be read, where the other two can."""
    first, *others = find_images(images)
    assert first.key == key
    assert [read_image(image)[0] for image in others] == [RED, GREEN]
    with pytest.raises(ImageError) as caught:
        read_image(first)
    return str(caught.value)


def test_tar_that_is_missing_is_refused_by_name(tmp_path: Path, memory: Any) -> None:
    for path in (tmp_path / "gone.tar", "memory://bucket/gone.tar"):
        assert error_of(path) == f"{path}: not a readable tar (no such file)"


@pytest.mark.parametrize("members", [[], [("a.txt", b"no image")]])
def test_tar_without_an_image_is_an_error(tmp_path: Path, members: Members) -> None:
    path = write(tmp_path / "x.tar", pack_members(members))
    assert error_of(path) == f"{path}: no image in this tar"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_tar_cut_short_after_it_was_listed_is_an_unreadable_image(tmp_path: Path, memory: Any, place: str) -> None:
    content = pack_members([("a.png", RED), ("b.png", GREEN)])
    location = put_tar(place, content, tmp_path, memory)
    first, second = find_images(location)
    put_tar(place, content[: 3 * 512 + 10], tmp_path, memory)
    assert read_image(first)[0] == RED
    with pytest.raises(ImageError, match=r"^the tar ends in the middle of it$"):
        read_image(second)


# Whether an image is still the one that a row was made from


def test_local_file_is_unchanged_while_its_bytes_are(tmp_path: Path) -> None:
    image = ImageFile("a.png", write(tmp_path / "a.png", b"0123"))
    source = read_image(image)[1]
    second = source.modified_ns + 1_000_000_000
    assert is_unchanged(image, source)
    os.utime(tmp_path / "a.png", ns=(second, second))
    assert is_unchanged(image, source)
    write(tmp_path / "a.png", b"9876")
    os.utime(tmp_path / "a.png", ns=(second, second))
    assert not is_unchanged(image, source)
    write(tmp_path / "a.png", b"01234")
    os.utime(tmp_path / "a.png", ns=(source.modified_ns, source.modified_ns))
    assert not is_unchanged(image, source)
    (tmp_path / "a.png").unlink()
    assert not is_unchanged(image, source)


def test_local_file_of_the_same_size_and_time_is_not_read(tmp_path: Path) -> None:
    image = ImageFile("a.png", write(tmp_path / "a.png", b"0123"))
    source = read_image(image)[1]
    write(tmp_path / "a.png", b"9876")
    os.utime(tmp_path / "a.png", ns=(source.modified_ns, source.modified_ns))
    assert is_unchanged(image, source)


def test_what_is_not_known_cannot_have_changed(tmp_path: Path) -> None:
    assert is_unchanged(ImageFile("a.png", write(tmp_path / "a.png", RED)), UNKNOWN_SOURCE)
    assert is_unchanged(ImageFile("b.png", tmp_path / "gone.png"), UNKNOWN_SOURCE)
    assert is_unchanged(ImageFile("c.png", "memory://bucket/c.png"), UNKNOWN_SOURCE)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_member_of_a_tar_is_unchanged_wherever_a_new_tar_holds_its_bytes(
    tmp_path: Path, memory: Any, place: str
) -> None:
    def repack(members: Members, modified_s: float) -> ImageFile:
        location = put_tar(place, pack_members(members, modified_s=modified_s), tmp_path, memory)
        return next(image for image in find_images(location) if image.key == "b.png")

    image = repack([("b.png", b"0123")], 1000)
    source = read_image(image)[1]
    assert source == ImageSource(4, 1_000_000_000_000, hash_content(b"0123"))
    assert is_unchanged(image, source)
    assert is_unchanged(repack([("a.png", RED), ("b.png", b"0123")], 2000.5), source)
    assert not is_unchanged(repack([("b.png", b"9876")], 2000), source)
    assert not is_unchanged(repack([("b.png", b"01234")], 1000), source)


def test_remote_file_is_unchanged_while_its_bytes_are(memory: Any) -> None:
    def put(content: bytes) -> ImageFile:
        memory.pipe("memory://bucket/photos/a.png", content)  # each time later than the time before
        (image,) = find_images("memory://bucket/photos")
        return image

    image = put(b"0123")
    source = read_image(image)[1]
    assert source.modified_ns == image.modified_ns > 0
    assert is_unchanged(image, source)
    assert is_unchanged(put(b"0123"), source)
    assert not is_unchanged(put(b"9876"), source)
    assert not is_unchanged(put(b"01234"), source)


def test_remote_file_of_which_only_the_url_is_known_is_taken_for_unchanged(memory: Any) -> None:
    image = ImageFile("memory://bucket/a.png", "memory://bucket/a.png")
    memory.pipe("memory://bucket/a.png", RED)
    source = read_image(image)[1]
    assert source == ImageSource(len(RED), 0, hash_content(RED))
    memory.pipe("memory://bucket/a.png", BLUE)
    assert is_unchanged(image, source)


# URLs


@pytest.mark.parametrize("url", ["memory://bucket/photos", "memory://bucket/photos/"])
def test_remote_folder_is_searched_like_a_local_one(memory: Any, url: str) -> None:
    for name in ("b.jpg", "a b/C.PNG", ".hidden.jpg", ".cache/a.jpg", "notes.txt"):
        memory.pipe(f"memory://bucket/photos/{name}", RED)
    memory.pipe("memory://bucket/photos/shards/shard-000.tar", pack_members(SHARD))
    memory.pipe("memory://bucket/photos-of-others/d.jpg", RED)
    assert contents_of(url) == {
        "a b/C.PNG": RED,
        "b.jpg": RED,
        "shards/shard-000.tar/000000.jpg": RED,
        "shards/shard-000.tar/000001.png": GREEN,
    }
    assert [image.size for image in find_images(url)][:2] == [len(RED)] * 2


def test_a_compressed_tar_is_passed_over_and_named_at_a_url_too(
    memory: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.tar.gz", "@eaDir/c.tar.gz", ".cache/d.tar.gz"):
        write(tmp_path / name, RED)
        memory.pipe(f"memory://bucket/{name}", RED)
    for place in (tmp_path, "memory://bucket"):
        search = search_images(place)
        assert [image.key for image in search.found] == ["a.png"]
        assert search.left_out.compressed == 1
    advice = "a compressed tar, left out; unpack it, or make it a plain .tar"
    assert caplog.messages == [f"{tmp_path}/b.tar.gz: {advice}", f"memory:///bucket/b.tar.gz: {advice}"]


class Shelf(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Remembers each listing until it is told not to, as the file systems of servers do."""

    protocol = "shelf"
    names: ClassVar[list[str]] = []

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        if path not in self.dircache:
            self.dircache[path] = [{"name": f"{path}/{name}", "size": 1, "type": "file"} for name in self.names]
        return self.dircache[path] if detail else [entry["name"] for entry in self.dircache[path]]

    def invalidate_cache(self, *_: str | None) -> None:
        self.dircache.clear()


def test_an_image_that_came_since_a_remote_folder_was_searched_is_found() -> None:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    for names in (["a.jpg"], ["a.jpg", "b.jpg"]):
        Shelf.names[:] = names
        assert [image.key for image in find_images("shelf://photos")] == names


def test_remote_tar_gives_its_images_byte_for_byte(memory: Any) -> None:
    memory.pipe("memory://bucket/shard-000.tar", pack_members(SHARD))
    assert contents_of("memory://bucket/shard-000.tar") == {"000000.jpg": RED, "000001.png": GREEN}


def test_remote_tar_that_is_cut_or_none_is_refused_by_name(memory: Any) -> None:
    memory.pipe("memory://bucket/cut.tar", pack_members(SHARD)[:1560])
    memory.pipe("memory://bucket/text.tar", b"no tar\n" * 1000)
    for name in ("cut.tar", "text.tar"):
        assert error_of(f"memory://bucket/{name}").startswith(f"memory://bucket/{name}: ")


def test_remote_list_resolves_against_its_own_folder(memory: Any) -> None:
    memory.pipe("memory://bucket/lists/a.png", RED)
    memory.pipe("memory://bucket/lists/sub/b.png", GREEN)
    memory.pipe("memory://other/c.png", BLUE)
    memory.pipe("memory://bucket/lists/all.txt", b"./a.png\r\nsub\\b.png\r\n\r\nmemory://other/c.png\r\n")
    assert contents_of("memory://bucket/lists/all.txt") == {
        "a.png": RED,
        "memory://other/c.png": BLUE,
        "sub/b.png": GREEN,
    }


def test_remote_list_may_name_what_lies_above_it(memory: Any) -> None:
    memory.pipe("memory://bucket/photos/a.png", RED)
    memory.pipe("memory://bucket/lists/all.txt", b"../photos/a.png")
    assert contents_of("memory://bucket/lists/all.txt") == {"../photos/a.png": RED}


def test_remote_place_without_an_image_is_an_error_that_names_it(memory: Any) -> None:
    memory.pipe("memory://bucket/notes/a.md", b"no image")
    memory.pipe("memory://bucket/empty.txt", b"\n")
    nothing = "no image in this folder or below it; looked for .jpg"
    assert error_of("memory://bucket/notes").startswith(f"memory://bucket/notes: {nothing}")
    assert error_of("memory://bucket/gone").startswith(f"memory://bucket/gone: {nothing}")
    assert error_of("memory://bucket/gone.txt").startswith("memory://bucket/gone.txt: no such file; expected a folder")
    assert error_of("memory://bucket/empty.txt").startswith("memory://bucket/empty.txt: the list is empty; write one")
    assert error_of("nonsense://bucket/photos").startswith("nonsense://bucket/photos: Protocol not known: nonsense")


def test_remote_file_that_does_not_exist_says_so(memory: Any) -> None:
    with pytest.raises(ImageError, match=r"^no such file$"):
        read_image(ImageFile("a", "memory://bucket/gone.png"))


def test_list_over_http_names_files_beside_it_and_elsewhere(web: Web, memory: Any) -> None:
    memory.pipe("memory://bucket/c.png", BLUE)
    write(web.folder / "lists/a b.png", RED)
    write(web.folder / "lists/é.png", GREEN)
    write(web.folder / "lists/all.txt", f"a b.png\né.png\nmemory://bucket/c.png\n{web.url}/d.png".encode())
    write(web.folder / "d.png", BLUE)
    assert contents_of(f"{web.url}/lists/all.txt") == {
        "a b.png": RED,
        f"{web.url}/d.png": BLUE,
        "memory://bucket/c.png": BLUE,
        "é.png": GREEN,
    }


def test_folder_over_http_is_searched_by_its_links(web: Web) -> None:
    write(web.folder / "photos/a.png", RED)
    write(web.folder / "photos/more/b.png", GREEN)
    assert contents_of(f"{web.url}/photos/") == {"a.png": RED, "more/b.png": GREEN}


def test_tar_over_http_is_read_in_parts(web: Web) -> None:
    write(web.folder / "shard-000.tar", pack_members(SHARD))
    assert contents_of(f"{web.url}/shard-000.tar") == {"000000.jpg": RED, "000001.png": GREEN}


def test_tar_on_a_server_that_sends_only_whole_files_is_read_all_the_same(web: Web) -> None:
    write(web.folder / "whole/shard-000.tar", pack_members(SHARD))
    assert contents_of(f"{web.url}/whole/shard-000.tar") == {"000000.jpg": RED, "000001.png": GREEN}


def test_tar_that_a_server_refuses_to_send_is_an_error_that_names_it(web: Web) -> None:
    write(web.folder / "broken/shard-000.tar", pack_members(SHARD))
    url = f"{web.url}/broken/shard-000.tar"
    assert error_of(url).startswith(f"{url}: not a readable tar (503, message='Service Unavailable'")


def test_page_that_is_not_found_says_no_such_file_and_is_asked_once(web: Web) -> None:
    with pytest.raises(ImageError, match=r"^no such file$"):
        read_image(ImageFile("a", f"{web.url}/gone.png"))
    assert web.asked == ["GET /gone.png"]


def test_server_that_fails_is_asked_again_and_at_last_its_answer_is_the_reason(web: Web) -> None:
    write(web.folder / "flaky/a.png", RED)
    assert read_url(f"{web.url}/flaky/a.png", pause_s=0) == RED
    with pytest.raises(ImageError, match=r"^cannot be fetched \(503, message='Service Unavailable'"):
        read_url(f"{web.url}/broken/b.png", pause_s=0)
    assert web.asked == ["GET /flaky/a.png"] * 2 + ["GET /broken/b.png"] * 3


# Extraction


@pytest.fixture
def config(thin_weights: Path) -> ExtractConfig:
    return thin_config(thin_weights, batch_size=2, flush_every=2)


@pytest.fixture
def remote_photos(photos: Path, memory: Any) -> str:
    memory.put(str(photos), "/bucket/photos", recursive=True)
    return "memory://bucket/photos"


def remote_files(memory: Any, place: str) -> list[str]:
    """What lies at and below `place`, relative to it."""
    return sorted(path.removeprefix(f"{place}/") for path in memory.find(place))


def fetch_store(memory: Any, place: str, folder: Path) -> FeatureStore:
    """The store in the file `place`, copied to `folder`."""
    return FeatureStore.open(write(folder / "fetched.h5", memory.cat_file(place)))


def interrupt_after_four(label: str, done: int, total: int, **_: object) -> None:
    if done >= 4:
        raise KeyboardInterrupt


def test_extraction_from_and_to_urls_makes_the_rows_of_a_local_one_and_is_done_once(
    photos: Path, remote_photos: str, memory: Any, config: ExtractConfig, tmp_path: Path
) -> None:
    extract(photos, tmp_path / "local.h5", config)
    summary = extract(remote_photos, "memory://bucket/out/f.h5", config)
    assert (summary.found, summary.cached, summary.extracted, len(summary.failures)) == (9, 0, 8, 1)
    assert summary.output == "memory://bucket/out/f.h5"
    assert remote_files(memory, "/bucket/out") == ["f.h5", "failures.csv"]
    assert memory.cat_file("/bucket/out/failures.csv") == (tmp_path / "failures.csv").read_bytes()
    local, remote = FeatureStore.open(tmp_path / "local.h5"), fetch_store(memory, "/bucket/out/f.h5", tmp_path)
    assert remote.keys == local.keys
    np.testing.assert_array_equal(remote.read(range(8)), local.read(range(8)))
    assert remote.verify() == []
    written = memory.modified("/bucket/out/f.h5")
    again = extract(remote_photos, "memory://bucket/out/f.h5", config)
    assert (again.found, again.cached, again.extracted, len(again.failures)) == (9, 8, 0, 1)
    assert memory.modified("/bucket/out/f.h5") == written


def test_interrupted_remote_extraction_goes_on_from_the_parts_at_the_remote_place(
    remote_photos: str, memory: Any, config: ExtractConfig, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(remote_photos, "memory://bucket/out/f.h5", config, progress=interrupt_after_four)
    parts = remote_files(memory, "/bucket/out")
    assert len(parts) == 2
    assert all(re.fullmatch(r"f\.h5\.parts/part-[0-9a-f-]+\.h5", name) for name in parts)
    summary = extract(remote_photos, "memory://bucket/out/f.h5", config)
    assert (summary.cached, summary.extracted) == (4, 4)
    assert remote_files(memory, "/bucket/out") == ["f.h5", "failures.csv"]
    store = fetch_store(memory, "/bucket/out/f.h5", tmp_path)
    assert store.keys == [image.key for image in find_images(remote_photos) if image.key != "broken.jpg"]
    assert store.verify() == []


def test_interrupted_remote_extraction_goes_on_whatever_the_store_is_called(
    remote_photos: str, memory: Any, config: ExtractConfig
) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(remote_photos, "memory://bucket/run[1]/f*.h5", config, progress=interrupt_after_four)
    summary = extract(remote_photos, "memory://bucket/run[1]/f*.h5", config)
    assert (summary.cached, summary.extracted) == (4, 4)
    assert sorted(memory.store) == [
        *(f"/bucket/photos/{name}" for name in remote_files(memory, "/bucket/photos")),
        "/bucket/run[1]/f*.h5",
        "/bucket/run[1]/failures.csv",
    ]


def test_store_at_a_file_url_is_worked_on_where_it_lies(photos: Path, config: ExtractConfig, tmp_path: Path) -> None:
    output = f"file://{tmp_path.as_posix()}/out/f.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(photos, output, config, progress=interrupt_after_four)
    summary = extract(photos, output, config)
    assert (summary.output, summary.cached, summary.extracted) == (tmp_path / "out/f.h5", 4, 4)
    assert FeatureStore.open(tmp_path / "out/f.h5").verify() == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["f.h5", "f.log.csv", "failures.csv"]


def test_failures_beside_a_remote_store_are_those_of_the_last_run(
    remote_photos: str, memory: Any, config: ExtractConfig
) -> None:
    extract(remote_photos, "memory://bucket/out/f.h5", config)
    assert memory.cat_file("/bucket/out/failures.csv").startswith(b'key,reason\nbroken.jpg,"not an image, or in')
    memory.pipe("memory://bucket/photos/broken.jpg", RED)
    assert extract(remote_photos, "memory://bucket/out/f.h5", config).failures == ()
    assert memory.cat_file("/bucket/out/failures.csv") == b"key,reason\n"


def test_overwrite_replaces_a_remote_store_and_its_parts_only_when_the_new_one_is_complete(
    remote_photos: str, memory: Any, config: ExtractConfig, tmp_path: Path
) -> None:
    output, other = "memory://bucket/out/f.h5", replace(config, image_size=48)
    with pytest.raises(KeyboardInterrupt):
        extract(remote_photos, output, config, progress=interrupt_after_four)
    parts = remote_files(memory, "/bucket/out")
    with pytest.raises(SpecMismatchError, match="image_size: 32, not 48"):
        extract(remote_photos, output, other)
    with pytest.raises(KeyboardInterrupt):
        extract(remote_photos, output, other, overwrite=True, progress=interrupt_after_four)
    assert remote_files(memory, "/bucket/out") == parts
    assert extract(remote_photos, output, other, overwrite=True).extracted == 8
    assert remote_files(memory, "/bucket/out") == ["f.h5", "failures.csv"]
    assert fetch_store(memory, "/bucket/out/f.h5", tmp_path).spec.image_size == 48


def test_missing_page_of_a_list_is_a_failure_beside_the_rows_of_the_others(
    web: Web, config: ExtractConfig, tmp_path: Path
) -> None:
    write(web.folder / "a.png", RED)
    write(web.folder / "shard-000.tar", pack_members(SHARD))
    listed = write(tmp_path / "all.txt", f"{web.url}/a.png\n{web.url}/gone.png\n{web.url}/shard-000.tar".encode())
    summary = extract(listed, tmp_path / "f.h5", config)
    store = FeatureStore.open(tmp_path / "f.h5")
    tar_key = f"{web.url}/shard-000.tar"
    assert store.keys == [f"{web.url}/a.png", f"{tar_key}/000000.jpg", f"{tar_key}/000001.png"]
    np.testing.assert_array_equal(store[f"{web.url}/a.png"], store[f"{tar_key}/000000.jpg"])
    assert [(failure.key, failure.reason) for failure in summary.failures] == [(f"{web.url}/gone.png", "no such file")]
    assert (tmp_path / "failures.csv").read_text() == f"key,reason\n{web.url}/gone.png,no such file\n"
    asked = len(web.asked)
    assert extract(listed, tmp_path / "f.h5", config).cached == 3
    assert "GET /a.png" not in web.asked[asked:]
