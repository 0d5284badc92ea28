"""Lists of images that hold more than paths get one hint, not a failure per line."""

from pathlib import Path

import pytest
from builders import TESTS

from captionmill.data.errors import InputError
from captionmill.data.images.find import find_images
from captionmill.data.images.lists import find_misread
from captionmill.data.images.read import read_image

CASES = TESTS / "cases" / "lists"
ONLY = "a list has one path per line and nothing else"


def hint_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_images(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b c.jpg", "d 3.jpg", '"e".jpg', "#f.jpg", "g,1"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def make_list(folder: Path, text: str) -> Path:
    path = folder / "all.txt"
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cr-only.txt", r"'photos/a.jpg\rphotos/b c.jpg': lines that end in carriage returns only, which must be line"),
        ("labelled.txt", "'photos/a.jpg 3': a path and a label"),
        ("quoted.txt", "'\"photos/a.jpg\"': a path in quotes"),
    ],
)
def test_the_cases_get_one_hint(name: str, hint: str) -> None:
    assert hint_of(CASES / name).startswith(f"line 1 is {hint}")
    assert hint_of(CASES / name).endswith(ONLY)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a.jpg 3", "a path and a label"),
        ("a.jpg,3", "a path and a label"),
        ("b c.jpg;garden", "a path and a label"),
        ("'b c.jpg'", "a path in quotes"),
        ('"b c.jpg" 4', "a path in quotes and more"),
        ("a.jpg\ta dog", "a path, a tab and more, as in a file of captions"),
        ("a.jpg#0\ta dog", "a path, a tab and more, as in a file of captions"),
        ("SHA1 (a.jpg) = da39a3ee5e6b4b0d3255bfef95601890", "a checksum and a path, as md5sum writes them"),
        ("# the garden", "a comment"),
        ("# a.jpg", "a comment"),
        ('"https://host/a.jpg"', "a path in quotes"),
        ("“b c.jpg”", "a path in quotes"),
        ("„a.jpg“, 4", "a path in quotes and more"),
        ("`a.jpg`", "a path in quotes"),
        ('{"image": "a.jpg"}', "a JSON object"),
    ],
)
def test_one_line_with_more_than_an_image_that_is_there_is_enough(folder: Path, line: str, what: str) -> None:
    path = make_list(folder, f"a.jpg\n\nb c.jpg\nx.jpg\ny.jpg\n{line}\n")
    assert hint_of(path) == f"line 6 is {line!r}: {what}; {ONLY}"


@pytest.mark.parametrize("line", ["{}  x.jpg", "{} *a/b c.jpg", "MD5 (x.jpg) = {}", "\\{}  a\\nb.jpg"])
def test_a_file_of_checksums_gets_one_hint_wherever_its_images_are(folder: Path, line: str) -> None:
    line = line.format("d41d8cd98f00b204e9800998ecf8427e")
    hint = hint_of(make_list(folder, f"{line}\n{line}\n"))
    assert hint == f"line 1 is {line!r}: a checksum and a path, as md5sum writes them; {ONLY}"


def test_names_that_only_look_so_and_single_images_that_are_not_there_end_nothing(folder: Path) -> None:
    names = ["d 3.jpg", '"e".jpg', "#f.jpg", "g,1", "a.jpg (copy).jpg", "gone.jpg old", "a.jpg", "https://host/a.jpg"]
    assert {image.key for image in find_images(make_list(folder, "\n".join(names)))} == set(names)


@pytest.mark.parametrize("start", ["0 ", "- ", "1. ", "3, ", "12|"])
def test_numbers_and_bullets_in_front_get_the_hint_if_half_of_the_lines_have_them(folder: Path, start: str) -> None:
    line = f"{start}a.jpg"
    path = make_list(folder, f"{line}\n{start}b c.jpg\nx.jpg\n")
    assert hint_of(path) == f"line 1 is {line!r}: a number or a bullet and a path; {ONLY}"
    assert len(find_images(make_list(folder, "1 x.jpg\n2 y.jpg\n{3F25-04E0}.jpg\n"))) == 3  # of another folder


@pytest.mark.parametrize("line", ["a{}b", "1{}b", "- {}x.jp", "a.jpg#0{}\u00a0.b", "1 ,{},b", '"{}b'])
def test_a_line_of_very_many_spaces_is_read_at_once(line: str) -> None:
    """In time that grows as the line does: by a pattern that tries every length of the spaces it is hours."""
    assert find_misread([line.format(" " * 1_000_000)], lambda _: False) == ""
    assert find_misread([line.format("\u00a0" * 1_000_000)], lambda _: False) == ""


def test_a_list_at_a_url_gets_the_hint_if_half_of_its_lines_need_it(folder: Path) -> None:
    pytest.importorskip("fsspec")
    path = make_list(folder, "a.jpg 3\nb.jpg 4\nc.jpg\n")
    with pytest.raises(InputError, match=r"all.txt: line 1 is 'a.jpg 3': a path and a label"):
        find_images(f"file://{path}")


def test_percent_signs_in_a_file_url_are_decoded_unless_they_are_in_the_name(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "sp ace").mkdir()
    for name, content in (("a b.jpg", b"one"), ("c%20d.jpg", b"two"), ("ä.jpg", b"three")):
        (tmp_path / "sp ace" / name).write_bytes(content)
    start = f"file://{tmp_path}/sp%20ace"
    lines = [f"{start}/a%20b.jpg", f"file://{tmp_path}/sp ace/c%20d.jpg", f"{start}/c%2520d.jpg", f"{start}/%C3%A4.jpg"]
    found = {image.key: read_image(image)[0] for image in find_images(make_list(tmp_path, "\n".join(lines)))}
    assert found == dict(zip(lines, (b"one", b"two", b"two", b"three"), strict=True))
    place = f"{tmp_path}/sp%20ace/a%20b.jpg"
    same = [f"{start}{place}" for start in ("FILE://", "file://localhost", "file:", "File:", "file://LOCALHOST")]
    assert {read_image(image)[0] for image in find_images(make_list(tmp_path, "\n".join(same)))} == {b"one"}
    (tmp_path / "sp ace" / "c%20d.jpg").unlink()
    for folder in (start, start.replace("file://", "file:")):
        assert [image.key for image in find_images(folder)] == ["a b.jpg", "ä.jpg"]
    make_list(tmp_path, "sp ace/a b.jpg")
    assert [read_image(image)[0] for image in find_images(f"file:{tmp_path}/all.txt")] == [b"one"]
