"""Two tables of captions beside each other: what differs, by how much, and the page that shows it."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import draw_photos
from click.testing import CliRunner, Result

from captionmill.cli import main
from captionmill.data.tables.formats import write_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions
from captionmill.pipeline.compare import compare_tables
from captionmill.stages.scoring.bootstrap import compare
from captionmill.stages.scoring.metrics import measure_captions

REFERENCES = {
    "red_0.png": "a red square",
    "red_4.JPG": "a red wall",
    "more/green_1.png": "a green hill",
    "blue_2.png": "the blue sea",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    first = [CaptionRow(key, "a red square", 0.5) for key in sorted(REFERENCES)]
    first += [CaptionRow("gone.jpg", "a dog", 0.5), CaptionRow("bad.jpg", "", None, status="failed", error="damaged")]
    second = [CaptionRow(key, REFERENCES[key].replace("wall", "wall </p><script>"), 0.5) for key in sorted(REFERENCES)]
    second += [CaptionRow("bad.jpg", "", None, status="failed", error="damaged"), CaptionRow("new.jpg", "=1+1", 0.5)]
    write_captions(tmp_path / "first.csv", first, "csv", with_alternatives=False)
    write_captions(tmp_path / "second.jsonl", second, "jsonl", with_alternatives=False)
    return tmp_path / "first.csv", tmp_path / "second.jsonl"


def test_what_differs_is_listed_and_scored_in_pairs(tables: tuple[Path, Path], tmp_path: Path) -> None:
    with (tmp_path / "refs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *REFERENCES.items(), ("unknown.jpg", "a cat")])
    comparison = compare_tables(*map(str, tables), captions=tmp_path / "refs.csv", output=tmp_path / "out.csv")
    assert (comparison.equal, comparison.only_first, comparison.only_second) == (2, ("gone.jpg",), ("new.jpg",))
    references = {key: [text] for key, text in REFERENCES.items()}
    before = measure_captions(dict.fromkeys(sorted(REFERENCES), "a red square"), references)
    after = measure_captions(
        {key: REFERENCES[key].replace("wall", "wall </p><script>") for key in sorted(REFERENCES)}, references
    )
    assert comparison.scores is not None
    assert comparison.scores.image_count == 4
    assert comparison.scores.differences == compare(after, before)
    gains = [image.gain or 0 for image in comparison.different]
    assert gains == sorted(gains, reverse=True)
    cider = {key: (b - a) for key, a, b in zip(sorted(REFERENCES), before[-1].each, after[-1].each, strict=True)}
    assert {image.first.path: image.gain for image in comparison.different} == pytest.approx(
        {key: cider[key] for key in ("blue_2.png", "more/green_1.png", "red_4.JPG")}
    )
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["path"], row["first"], row["second"]) for row in written] == [
        (image.first.path, "a red square", image.second.caption) for image in comparison.different
    ]


def test_the_page_marks_the_words_that_changed_and_shows_the_pictures(
    tables: tuple[Path, Path], tmp_path: Path
) -> None:
    draw_photos(tmp_path / "photos")
    page = tmp_path / "page.html"
    result = run(*tables, "--page", page, "--images", tmp_path / "photos")
    assert result.stdout.splitlines() == [
        "2 captions equal, 3 different; 1 image only in first.csv, 1 only in second.jsonl",
        "  blue_2.png: 'a red square' -> 'the blue sea'",
        "  more/green_1.png: 'a red square' -> 'a green hill'",
        "  red_4.JPG: 'a red square' -> 'a red wall </p><script>'",
        f"{page}: the page, open it in a browser",
    ]
    text = page.read_text(encoding="utf-8")
    cards = text.split('<ul class="cards">')[1]
    assert cards.count('src="data:image/jpeg;base64,') == 3
    assert "<script>" not in text
    assert re.findall(r"<mark>(.*?)</mark>", cards)[-3:] == ["green hill", "square", "wall &lt;/p&gt;&lt;script&gt;"]


def test_captions_of_a_person_are_not_scored_and_come_last(tables: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [CaptionRow(key, f"a red square {key[:3]}", 0.5) for key in sorted(REFERENCES)]
    rows[0] = CaptionRow(rows[0].path, REFERENCES[rows[0].path], None, status="corrected")
    rows[1] = replace(rows[1], status="accepted")  # a model may be trained on it
    write_captions(tmp_path / "corrected.csv", rows, "csv", with_alternatives=False)
    with (tmp_path / "refs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *REFERENCES.items()])
    page = tmp_path / "page.html"
    result = run(tables[0], tmp_path / "corrected.csv", "--captions", tmp_path / "refs.csv", "--page", page)
    lines = result.stdout.splitlines()
    assert lines[1:3] == [
        "2 images not scored, with a caption that a person wrote or accepted",
        "2 images with references: first, second, difference (paired)",
    ]
    assert lines[-2] == "  blue_2.png: 'a red square' -> 'the blue sea'"
    cards = page.read_text(encoding="utf-8").split('<ul class="cards">')[1].split("</li>")
    assert ["<b>corrected</b>" in card for card in cards[:-1]] == [False, False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "."], "--images are shown on the page: name its file with --page"),
        (["--output", "first.csv"], "is an input of this command and would be overwritten"),
        (
            ["--output", "new", "--page", "{folder}/new"],
            "new: cannot be the table and the page at once; name another file as --page",
        ),
        (
            ["--captions", "refs.csv"],
            "refs.csv: nothing to score: no image has references and captions that nobody reviewed in both",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    options: list[str], message: str, tables: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tables[0].parent)
    Path("refs.csv").write_text("image,caption\nother.jpg,a dog\n")
    result = run("first.csv", "second.jsonl", *(option.format(folder=Path.cwd()) for option in options))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr


def test_what_a_person_has_just_changed_in_a_spreadsheet_is_not_scored(tmp_path: Path) -> None:
    keys = sorted(REFERENCES)
    wanted = WantedTable(keys, np.zeros(len(keys), np.uint32), {"model": "first"})
    table, other = tmp_path / "first.csv", tmp_path / "second.csv"
    for path in (table, other):
        update_captions(path, wanted, lambda keys: [CaptionRow(key, "a red square", 0.5) for key in keys])
    (tmp_path / "refs.csv").write_text("image,caption\n" + "".join(f"{key},a red square\n" for key in keys))
    edited = table.read_bytes().replace(b"red_0.png,a red square", b"red_0.png,a person's")
    table.write_bytes(edited)
    comparison = compare_tables(table, other, captions=tmp_path / "refs.csv")
    assert comparison.scores is not None
    assert (comparison.scores.image_count, comparison.scores.reviewed_count) == (3, 1)
    assert [image.is_corrected for image in comparison.different] == [True]
    assert table.read_bytes() == edited
