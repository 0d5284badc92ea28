"""The gallery: what is in the page, and what a browser makes of it where Chromium is installed."""

import base64
import html
import io
import json
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from builders import COLOURS, OpenPage
from PIL import Image

from captionmill.data.captions.table import CaptionRow
from captionmill.data.images.find import find_images
from captionmill.data.images.read import ImageFile
from captionmill.pipeline.pages import gallery
from captionmill.pipeline.pages.gallery import BLOCK_ROWS, THUMBNAIL_SIDE, write_gallery

NASTY = '</script><img src=x onerror="document.title=1">'


def read_rows(page: str) -> list[list[object]]:
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    rows: list[list[object]] = json.loads(found[1])
    return rows


def read_thumbnails(page: str) -> list[list[str]]:
    """The lines of each block."""
    blocks = re.findall(r'<script type="text/plain" id="thumbnails-(\d+)">(.*?)</script>', page, re.DOTALL)
    assert [int(number) for number, _ in blocks] == list(range(len(blocks)))
    return [text.split("\n") for _, text in blocks]


def decode(line: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(line)))


def dump(chromium: OpenPage, page_path: Path, fragment: str = "") -> str:
    """The document after its script has run."""
    options = ["--window-size=1200,800", "--virtual-time-budget=2000", "--dump-dom"]
    return chromium(page_path.as_uri() + fragment, *options).stdout


def cards(document: str) -> list[str]:
    """The texts of the cards in the document, in order, as a reader sees them."""
    listed = document.split('id="cards"')[1].split("</ul>", maxsplit=1)[0]
    texts = re.findall(r'<span class="caption">(.*?)</span>', listed, re.DOTALL)
    return [html.unescape(text) for text in texts]


def status(document: str) -> str:
    found = re.search(r'<p id="status"[^>]*>(.*?)</p>', document)
    assert found is not None
    return found[1]


def rows_of(photos: Path) -> list[CaptionRow]:
    """A row for each picture of `draw_photos`; broken.jpg failed."""
    return [
        CaptionRow(image.key, "", None, status="failed", error="not an image")
        if image.key == "broken.jpg"
        else CaptionRow(image.key, f"a {Path(image.key).stem.split('_')[0]} picture", 0.9 - int(image.key[-5]) / 10)
        for image in find_images(photos)
    ]


def test_the_page_has_every_row_and_an_upright_thumbnail_of_every_picture(photos: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (900, 600), "red").save(photos / "turned_9.jpg", exif=exif)
    write_gallery(tmp_path / "out" / "page.html", "Holiday & home", find_images(photos), rows_of(photos))
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    rows = read_rows(page)
    assert [row[0] for row in rows] == [image.key for image in find_images(photos)]
    by_path = dict(zip((row[0] for row in rows), read_thumbnails(page)[0], strict=True))
    assert by_path.pop("broken.jpg") == ""
    assert decode(by_path["turned_9.jpg"]).size == (round(THUMBNAIL_SIDE * 2 / 3), THUMBNAIL_SIDE)
    assert decode(by_path["red_0.png"]).size == (40, 30)  # small ones are not enlarged
    low, high = zip(*decode(by_path["red_0.png"]).convert("RGB").getextrema(), strict=True)
    assert np.abs(np.array([low, high]) - COLOURS["red"]).max() <= 8
    assert rows[2] == ["broken.jpg", "", None, [], [], "not an image", "../photos/broken.jpg"]
    assert "<h1>Holiday &amp; home</h1>" in page
    assert "<li><b>10</b> images</li><li><b>9</b> captioned</li><li><b>1</b> failed</li></ul>" in page
    assert "{{" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_nothing_that_a_row_says_can_leave_its_block(photos: Path, tmp_path: Path) -> None:
    row = CaptionRow(NASTY, NASTY, 0.5, (NASTY,), (NASTY,), error="")
    failed = CaptionRow("x\ud800", "", None, status="failed", error=NASTY)
    write_gallery(tmp_path / "page.html", NASTY, [], [row, failed])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert NASTY not in page
    assert page.count("</script>") == 3
    assert read_rows(page) == [
        [NASTY, NASTY, 0.5, [NASTY], [NASTY], None, None],
        ["x\ud800", "", None, [], [], NASTY, None],
    ]


def test_the_thumbnails_are_written_block_by_block_in_the_order_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, rows = [], []
    for number in range(2 * BLOCK_ROWS + 5):
        path = tmp_path / f"{number % 50}.png"
        if number < 50:
            Image.new("RGB", (number + 1, 1)).save(path)
        images.append(ImageFile(f"{number:04d}", path))
        rows.append(CaptionRow(f"{number:04d}", "a line", 0.5))
    made = taken = most = 0
    encode = gallery._thumbnail

    def count(image: ImageFile | None) -> str:
        nonlocal made
        made += 1
        return encode(image)

    def watch(label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        nonlocal taken, most
        assert (label, total) == ("thumbnails", len(rows))
        most, taken = max(most, made - taken), done

    monkeypatch.setattr(gallery, "_thumbnail", count)
    write_gallery(tmp_path / "page.html", "lines", images, rows, workers=2, progress=watch)
    assert taken == made == len(rows)
    assert most <= BLOCK_ROWS + 10  # a block, and what the threads are ahead
    blocks = read_thumbnails((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [len(block) for block in blocks] == [BLOCK_ROWS, BLOCK_ROWS, 5]
    widths = [decode(line).width for block in blocks for line in block]
    assert widths == [number % 50 + 1 for number in range(len(rows))]


def test_a_picture_that_is_gone_or_not_known_leaves_an_empty_line(photos: Path, tmp_path: Path) -> None:
    images = find_images(photos)
    (photos / "red_0.png").unlink()
    rows = [CaptionRow("red_0.png", "a red picture", 0.9), CaptionRow("elsewhere.png", "a picture", 0.8)]
    write_gallery(tmp_path / "page.html", "two", images, rows)
    assert read_thumbnails((tmp_path / "page.html").read_text(encoding="utf-8")) == [["", ""]]


def test_links_are_relative_quoted_and_only_to_what_a_browser_opens(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    images = [
        ImageFile("1", folder / "javascript:1#50%.jpg"),
        ImageFile("2", "https://example.org/x.jpg"),
        ImageFile("3", "s3://bucket/x.jpg"),
        ImageFile("4", tmp_path / "shard.tar", 512, 10),
    ]
    rows = [CaptionRow(image.key, "", None, status="failed", error="gone") for image in images]
    write_gallery(folder / "page.html", "links", images, rows)
    links = [row[6] for row in read_rows((folder / "page.html").read_text(encoding="utf-8"))]
    assert links == ["javascript%3A1%2350%25.jpg", "https://example.org/x.jpg", None, None]


def test_an_interrupted_page_leaves_the_old_one(photos: Path, tmp_path: Path) -> None:
    page_path = tmp_path / "page.html"
    page_path.write_text("old")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gallery(page_path, "new", find_images(photos), rows_of(photos), progress=interrupt)
    assert page_path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["page.html"]


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 10,000 images."""
    folder = tmp_path_factory.mktemp("large")
    Image.new("RGB", (12, 9), "teal").save(folder / "x.png")
    images = [ImageFile(f"{number:05d}.png", folder / "x.png") for number in range(10_000)]
    rows = [
        CaptionRow(
            image.key,
            f"a {'dog' if number % 100 == 7 else 'woman'} number n{number}",
            (number + 1) / 10_001,
            (f"other of {number}",),
            ("cut",) if number % 1000 == 0 else (),
        )
        for number, image in enumerate(images)
    ]
    for number in (3, 4):
        rows[number] = CaptionRow(images[number].key, "", None, status="failed", error=f"the file is empty {NASTY}")
    write_gallery(folder / "page.html", "10,000 images", images, rows)
    return folder / "page.html"


def test_a_page_of_10000_images_has_a_few_cards_in_the_document_the_surest_first(
    chromium: OpenPage, large_page: Path
) -> None:
    document = dump(chromium, large_page)
    assert status(document) == "10,000 images"
    shown = cards(document)
    assert 10 <= len(shown) <= 100
    assert shown == [f"a woman number n{9999 - place}" for place in range(len(shown))]
    assert document.split('id="cards"')[1].count('src="data:image/webp;base64,') == len(shown)
    assert ">all<span>10,000</span>" in document
    assert ">cut<span>10</span>" in document
    assert ">failed<span>2</span>" in document


@pytest.mark.parametrize(
    ("fragment", "found", "first"),
    [
        ("#q=dog&sort=doubt", "100 of 10,000 images", "a dog number n7"),
        ("#q=man", "0 of 10,000 images", None),  # "woman" does not begin with it
        ("#q=n12+-dog", "110 of 10,000 images", "a woman number n1299"),
        ("#q=%22number+n12%22", "1 of 10,000 images", "a woman number n12"),
        ("#show=failed", "2 of 10,000 images", f"the file is empty {NASTY}"),
        ("#q=00012.png&sort=path", "1 of 10,000 images", "a woman number n12"),
    ],
)
def test_the_address_filters_and_sorts(
    chromium: OpenPage, large_page: Path, fragment: str, found: str, first: str | None
) -> None:
    document = dump(chromium, large_page, fragment)
    assert status(document) == found
    shown = cards(document)
    assert len(shown) <= 100
    assert (shown[0] if shown else None) == first
    assert "<title>10,000 images</title>" in document  # no script of a row has run
    assert "<img src=" not in document


def test_the_filter_knows_vowel_signs_and_names_whose_accents_are_apart(chromium: OpenPage, tmp_path: Path) -> None:
    Image.new("RGB", (12, 9), "teal").save(tmp_path / "x.png")
    captions = {unicodedata.normalize("NFD", "Bär.png"): "काला कुत्ता", "b.png": "किताब"}
    rows = [CaptionRow(key, caption, 0.5) for key, caption in captions.items()]
    write_gallery(tmp_path / "page.html", "x", [ImageFile(key, tmp_path / "x.png") for key in captions], rows)
    for query, shown in (("कि", "किताब"), ("Bär", "काला कुत्ता"), ("कुत्ता", "काला कुत्ता")):
        assert cards(dump(chromium, tmp_path / "page.html", f"#q={quote(query)}")) == [shown]


def test_the_address_opens_the_large_view_with_the_other_captions(chromium: OpenPage, large_page: Path) -> None:
    document = dump(chromium, large_page, "#show=cut&image=05000.png")
    large = document.split('<dialog id="large"')[1].split("</dialog>")[0]
    assert ' open=""' in large.split(">")[0]
    assert '<p class="caption">a woman number n5000</p>' in large
    assert "<li>other of 5000</li>" in large
    assert '<span class="place">5 of 10</span>' in large
    assert 'href="x.png"' in large
