"""Quotes in CSV and TSV: a genuine quoted cell is read whole, and an opening quote swallows no row."""

import csv
import io
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
from builders import TESTS

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.words import FIRST_RULE
from captionmill.data.errors import AnnotationError

CASES = TESTS / "cases" / "captions"
LINE = re.compile(r"(line|row) \d+ ")


def captions_of(path: Path) -> dict[str, list[str]]:
    """The captions by key; also those without words, which a training leaves out."""
    captions = read_annotations(path, word_rule=FIRST_RULE).captions
    return {key: list(texts) for key, texts in captions.items()}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    return str(caught.value).removeprefix(f"{path}: ")


def read_or_refuse(path: Path) -> dict[str, list[str]] | str:
    """The captions, or the reason why they are refused."""
    try:
        return captions_of(path)
    except AnnotationError as exc:
        return str(exc).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "fourth"), [("F1a_open_quote.tsv", 'red bus says "Bus"'), ("F1c_open_quote.csv", '"Go" sign')]
)
def test_an_opening_quote_is_text_if_nothing_closes_it(name: str, fourth: str) -> None:
    assert captions_of(CASES / name) == {
        "x1.jpg": ['"Stop sign on a corner'],
        "x2.jpg": ["a man walks"],
        "x3.jpg": ["a cat sleeps"],
        "x4.jpg": [fourth],
        "x5.jpg": ["a dog"],
    }


def test_opening_quotes_that_pair_up_over_rows_lose_no_image_and_no_split() -> None:
    annotations = read_annotations(CASES / "F1e_quotes_60.tsv")
    assert list(annotations.captions) == [f"{number:06d}.jpg" for number in range(60)]
    counts = {name: len(annotations.keys_of(name)) for name in ("train", "val", "test")}
    assert counts == {"train": 40, "val": 10, "test": 10}
    assert annotations.captions["000005.jpg"] == ('"a cat sits on a red chair',)
    assert {len(captions) for captions in annotations.captions.values()} == {1}


@pytest.mark.parametrize("mark", ",;\t")
def test_a_quote_that_may_be_closed_in_another_row_is_refused_with_its_line(tmp_path: Path, mark: str) -> None:
    rows = ['x1.jpg,"Stop sign', "x2.jpg,a man", 'x3.jpg,a TV of 32"', "x4.jpg,a dog"]
    path = write(tmp_path / "c", "\n".join(["image,caption", *rows, ""]).replace(",", mark))
    assert error_of(path) == (
        "line 2 opens a quote that line 4 closes, but line 3 by itself is a row: remove the quotes, or double those "
        "that belong to a caption and quote it whole"
    )


def test_the_same_holds_where_the_caption_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "c", 'caption,image\n"Stop sign,x1.jpg\na man,x2.jpg\na TV of 32",x3.jpg\n')
    assert error_of(path).startswith("line 2 opens a quote that line 4 closes, but line 2 by itself is a row")
    path = write(tmp_path / "c", 'caption,image\n"a dog\nruns, happily\nin grass",x1.jpg\na man,x2.jpg\n')
    assert captions_of(path) == {"x1.jpg": ["a dog\nruns, happily\nin grass"], "x2.jpg": ["a man"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"x1.jpg,a dog\nx2.jpg,a cat\n', "line 2 has an image name that begins with a quote; remove the quote"),
        ('"x1.jpg,a dog"\nx2.jpg,a cat\n', "line 2 has quotes around ',' and one cell too few: remove the quotes, or"),
        ('x1.jpg,"a "red" dog\nruns\nx2.jpg,a cat\n', "line 2 opens a quote that is not closed, and line 3 does not"),
        (
            'x1.jpg,"Stop, go\nx2.jpg,a man, of 32"\n',
            "line 2 opens a quote that line 3 closes, but line 3 by itself is",
        ),
        ('x1.jpg,a dog\nx2.jpg,"a cat\n', "line 3 opens a quote that nothing closes: remove it, or complete the"),
        ('x1.jpg,a dog\nx2.jpg,"a cat\n\n', "line 3 opens a quote that nothing closes: remove it, or complete the"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(write(tmp_path / "c", f"image,caption\n{text}")).startswith(message)


def test_a_row_with_commas_in_a_caption_whose_quotes_are_gone_is_a_row_where_names_have_no_suffix(
    tmp_path: Path,
) -> None:
    rows = ['photo 1,"a red, big dog', 'photo 2,5,6 men ""say hi"""', "photo 3,x"]
    path = write(tmp_path / "c", "\n".join(["image,caption", *rows, ""]))
    assert error_of(path).startswith("line 2 opens a quote that line 3 closes, but line 3 by itself is a row")


def test_a_quote_in_the_header_swallows_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "c", 'image,caption,"notes\nx1.jpg,a dog,x\nx2.jpg,a cat,y"\nx3.jpg,a cow,z\n')
    assert error_of(path).startswith("line 1 opens a quote that line 3 closes, but line 2 by itself is a row")
    path = write(tmp_path / "c", 'image,caption,"notes\nof mine"\nx1.jpg,a dog,x\n')
    assert captions_of(path) == {"x1.jpg": ["a dog"]}


def test_quotes_around_a_split_are_not_taken_for_a_part_of_the_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "c", 'image,caption,notes\nx1.jpg,"a dog,new"\nx2.jpg,a cat,\n')
    assert error_of(path).startswith("line 2 has quotes around ',' and one cell too few")


def test_lines_of_a_caption_may_have_as_many_separators_as_a_row(tmp_path: Path) -> None:
    text = 'image,caption\nimg1,"A dog\nruns, happily\nand barks, too"\nimg2,"a ""red"" bus"\nimg3,"x"  \n'
    want = {"img1": ["A dog\nruns, happily\nand barks, too"], "img2": ['a "red" bus'], "img3": ["x"]}
    assert captions_of(write(tmp_path / "c", text)) == want
    assert captions_of(write(tmp_path / "c", text.replace("\n", "\r\n"))) == want


WORDS = ["a", "dog", "runs", ",", ";", "|", "\t", '"', 'says "hi"', '32"', "\n", "\n\n", "\r\n", "'", "red, big", "=1"]
NAMES = ["{}.jpg", "d/{}.PNG", "img{}", "{:012d}"]
COLUMNS = [("image", "caption"), ("caption", "image"), ("image", "caption", "split"), ("id", "image", "caption", "x")]
QUOTING: list[Literal[0, 1, 2]] = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]


def draw_rows(drawn: random.Random, words: Sequence[str], name: str) -> list[dict[str, str]]:
    return [
        {
            "image": name.format(number * 7),
            "caption": " ".join(drawn.choices(words, k=drawn.randint(1, 8))).strip() or "a",
            "split": "train",
            "id": str(number),
            "x": drawn.choice(["", *words]),
        }
        for number in range(drawn.randint(1, 10))
    ]


@pytest.mark.parametrize("mark", ",;\t|")
@pytest.mark.parametrize("quoting", QUOTING)
def test_what_pythons_csv_writes_is_read_back_equal(tmp_path: Path, mark: str, quoting: Literal[0, 1, 2]) -> None:
    refused = 0
    for seed in range(16):
        drawn = random.Random(seed)
        columns = drawn.choice(COLUMNS)
        rows = draw_rows(drawn, WORDS, drawn.choice(NAMES))
        text = io.StringIO()
        writer = csv.writer(text, delimiter=mark, quoting=quoting, lineterminator=drawn.choice(["\n", "\r\n"]))
        writer.writerows([columns, *([row[column] for column in columns] for row in rows)])
        path = write(tmp_path / "c", text.getvalue())
        found = read_or_refuse(path)
        if isinstance(found, str):
            assert LINE.match(found), seed
            refused += 1
            continue
        assert found == {row["image"]: [row["caption"].replace("\r\n", "\n").strip()] for row in rows}, seed
    assert refused <= 1


@pytest.mark.parametrize("mark", ",;\t|")
def test_unquoted_tables_without_separators_in_captions_are_read_back_equal(tmp_path: Path, mark: str) -> None:
    for seed in range(20):
        rows = draw_rows(random.Random(seed), ["a", "dog", 'says "hi"', "it's", '32" TV'], "{}.jpg")
        text = io.StringIO()
        writer = csv.writer(text, delimiter=mark, quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerows([("image", "caption"), *((row["image"], row["caption"]) for row in rows)])
        assert captions_of(write(tmp_path / "c", text.getvalue())) == {row["image"]: [row["caption"]] for row in rows}


def plant(drawn: random.Random, cells: Mapping[str, str], *, is_quoted: bool) -> dict[str, str]:
    """The cells with a quote more, or less, in one of them."""
    column = drawn.choice(["caption", "caption", "caption", "image"])
    cell = cells[column]
    return {**cells, column: cell[:-1] if is_quoted and drawn.random() < 0.5 else f'"{cell}'}


@pytest.mark.parametrize("mark", ",;\t|")
@pytest.mark.parametrize("is_quoted", [False, True])
def test_with_planted_quotes_all_rows_are_read_or_the_line_is_named(tmp_path: Path, mark: str, is_quoted: bool) -> None:
    read = 0
    for seed in range(24):
        drawn = random.Random(seed)
        columns = drawn.choice(COLUMNS)
        words = ["a", "dog", "cat"] if is_quoted else ["a dog", 'says "Bus"', 'of 32"', '"Go" sign', "x"]
        rows = [row | {"x": "y"} for row in draw_rows(drawn, words, drawn.choice(NAMES)) * 3]
        for number, row in enumerate(rows):
            row["image"] = f"{number}-{row['image']}"
        quoted = [{name: f'"{cell}"' if is_quoted else cell for name, cell in row.items()} for row in rows]
        planted = [plant(drawn, row, is_quoted=is_quoted) if drawn.random() < 0.1 else row for row in quoted]
        lines = [mark.join(columns), *(mark.join(row[column] for column in columns) for row in planted)]
        path = write(tmp_path / "c", "\n".join([*lines, ""]))
        found = read_or_refuse(path)
        if isinstance(found, str):
            assert LINE.match(found), seed
            continue
        read += 1
        bare = {key: [caption.replace('"', "").strip() for caption in captions] for key, captions in found.items()}
        assert bare == {row["image"]: [row["caption"].replace('"', "").strip()] for row in rows}, seed
    assert read >= 3
