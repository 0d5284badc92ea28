"""Nothing in a tar is left out without a word: links, tars inside it, and what its end mark hides."""

import io
import logging
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from captionmill.data.images.find import search_images
from captionmill.data.images.read import read_image

Member = tuple[str, bytes, bytes, str]
"""Name, content, type, and the target of a link."""


def encode(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[Member]) -> bytes:
    with tarfile.open(path, "w") as archive:
        for name, content, kind, target in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, target
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def contents_of(path: Path) -> dict[str, bytes]:
    return {image.key: read_image(image)[0] for image in search_images(path).found}


def test_hard_links_have_the_content_of_their_targets_in_any_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, path = encode(9), tmp_path / "f.tar"
    members = [
        ("train/early.png", b"", tarfile.LNKTYPE, "blobs/1.png"),
        ("train/far.png", b"", tarfile.LNKTYPE, "train/near.png"),
        ("train/near.png", b"", tarfile.LNKTYPE, "blobs/1.png"),
        ("blobs/1.png", image, tarfile.REGTYPE, ""),
        ("blobs/1.png", b"", tarfile.LNKTYPE, "blobs/1.png"),
        ("unknown.png", image, b"Q", ""),
        ("away.png", b"", tarfile.SYMTYPE, "/elsewhere/away.png"),
        ("round.png", b"", tarfile.LNKTYPE, "round2.png"),
        ("round2.png", b"", tarfile.LNKTYPE, "round.png"),
    ]
    write_tar(path, members)
    names = ("blobs/1.png", "train/early.png", "train/far.png", "train/near.png", "unknown.png")
    assert contents_of(path) == dict.fromkeys(names, image)
    assert caplog.messages == [f"{path}: 3 links left out, such as 'round.png'; pack what they point to"]


def test_a_hole_of_a_hundred_gigabytes_behind_a_tar_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, behind = tmp_path / "f.tar", write_tar(tmp_path / "g.tar", [("b.png", encode(2), tarfile.REGTYPE, "")])
    write_tar(path, [("a.png", encode(1), tarfile.REGTYPE, "")])
    os.truncate(path, 10**11 // 512 * 512)
    assert contents_of(path) == {"a.png": encode(1)}
    assert "bytes are zeros; if it was copied in part" in caplog.text
    with path.open("ab") as file:
        file.write(behind)
    assert contents_of(path) == {"a.png": encode(1), "b.png": encode(2)}


def test_tars_inside_a_tar_are_counted(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "n01.tar", [("a.png", encode(1), tarfile.REGTYPE, "")])
    names = ("n01.tar", "n02.tar", "n03.tar.gz")
    write_tar(
        tmp_path / "all.tar",
        [*((name, inner, tarfile.REGTYPE, "") for name in names), ("b.png", encode(2), tarfile.REGTYPE, "")],
    )
    search = search_images(tmp_path / "all.tar")
    assert [image.key for image in search.found] == ["b.png"]
    assert search.left_out.describe() == "3 tars inside a tar, which must be unpacked first"


def test_what_an_early_end_mark_hides_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "f.tar"
    content = write_tar(path, [(f"{number}.png", encode(number), tarfile.REGTYPE, "") for number in range(3)])
    second = content.index(b"1.png")
    assert len(contents_of(path)) == 3
    for end, what in (
        (content[second + 512 :], "what follows its end mark, at byte 1,024, is not a tar; left out"),
        (bytes(70_144), "the last 70,656 bytes are zeros; if it was copied in part, later members are missing"),
    ):
        caplog.clear()
        path.write_bytes(content[:second] + bytes(512) + end)
        with caplog.at_level(logging.WARNING):
            assert list(contents_of(path)) == ["0.png"]
        assert caplog.messages[:1] == [f"{path}: {what}"]
