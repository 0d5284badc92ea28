"""A copy of a tar with files behind its members: every other byte is that of the original."""

import io
import tarfile
from pathlib import Path

import pytest

from captionmill.data.errors import ImageError
from captionmill.data.images.tar_copy import AddedFile, copy_tar, name_beside

LONG = "long/" + "n" * 150 + ".jpg"


def pack(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format, pax_headers={"comment": "of the whole"}) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return path


def unpack(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        found = [(info.name, tar.extractfile(info)) for info in tar]
        return [(name, file.read()) for name, file in found if file is not None]


MEMBERS = [("./a.jpg", b"A" * 700), ("a.cls", b"1"), (LONG, b"B" * 512), ("é ü.png", b""), ("b.v2.jpg", b"C")]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_added_behind_those_that_they_belong_to(tar_format: int, tmp_path: Path) -> None:
    source = pack(tmp_path / "in.tar", MEMBERS, tar_format)
    before = source.read_bytes()
    added = {name: AddedFile(".txt", name.encode()) for name in ("a.jpg", LONG, "b.v2.jpg")}
    assert copy_tar(source, tmp_path / "out.tar", added) == 3
    assert source.read_bytes() == before
    names = dict(MEMBERS)
    assert unpack(tmp_path / "out.tar") == [
        ("./a.jpg", names["./a.jpg"]),
        ("./a.txt", b"a.jpg"),
        ("a.cls", b"1"),
        (LONG, names[LONG]),
        (LONG.replace(".jpg", ".txt"), LONG.encode()),
        ("é ü.png", b""),
        ("b.v2.jpg", b"C"),
        ("b.v2.txt", b"b.v2.jpg"),
    ]
    copy_tar(source, tmp_path / "plain.tar", {})
    assert (tmp_path / "plain.tar").read_bytes() == before


def test_tars_behind_each_other_become_one_without_their_end_marks(tmp_path: Path) -> None:
    first, second = pack(tmp_path / "1.tar", [("a.jpg", b"A")]), pack(tmp_path / "2.tar", [("b.jpg", b"B")])
    (tmp_path / "both.tar").write_bytes(first.read_bytes() + second.read_bytes())
    added = {name: AddedFile(".json", b"{}") for name in ("a.jpg", "b.jpg")}
    assert copy_tar(tmp_path / "both.tar", tmp_path / "out.tar", added) == 2
    assert unpack(tmp_path / "out.tar") == [("a.jpg", b"A"), ("a.json", b"{}"), ("b.jpg", b"B"), ("b.json", b"{}")]


def test_of_members_of_one_name_the_last_has_the_file_and_a_link_has_one(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for content in (b"old", b"new"):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    added = {name: AddedFile(".txt", name.encode()) for name in ("a.jpg", "b.jpg")}
    assert copy_tar(tmp_path / "in.tar", tmp_path / "out.tar", added) == 2
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["a.jpg", "a.jpg", "a.txt", "b.jpg", "b.txt"]


def test_a_tar_without_an_end_mark_is_copied_whole_and_a_cut_one_refused(tmp_path: Path) -> None:
    source = pack(tmp_path / "in.tar", [("a.jpg", b"A" * 600)], tarfile.GNU_FORMAT)
    content = source.read_bytes()
    source.write_bytes(content[: 512 + 1024])
    copy_tar(source, tmp_path / "out.tar", {"a.jpg": AddedFile(".txt", b"x")})
    assert unpack(tmp_path / "out.tar") == [("a.jpg", b"A" * 600), ("a.txt", b"x")]
    source.write_bytes(content[: 512 + 500])
    with pytest.raises(ImageError, match="unexpected end of data"):
        copy_tar(source, tmp_path / "out.tar", {})


@pytest.mark.parametrize(("name", "beside"), [("a.jpg", "a.txt"), ("a.b/c.d.png", "a.b/c.d.txt"), ("x/y", "x/y.txt")])
def test_a_file_beside_a_member_has_its_name(name: str, beside: str) -> None:
    assert name_beside(name, ".txt") == beside
