"""The gallery: what is in the page, and what a browser makes of it where Chromium is installed."""

import base64
import html
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser import Browser
from builders import COLOURS
from PIL import Image

from captionmill.data.images.find import find_images
from captionmill.data.images.read import ImageFile
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.pages.gallery import BLOCK_ROWS, CARD_SIDE, Verdict, write_gallery

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


def dump(browser: Browser, page_path: Path, fragment: str = "") -> str:
    """The document after its script has run."""
    with browser.window(1200):
        browser.open(page_path.as_uri() + fragment)
        return browser.document()


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
    page_path, table = tmp_path / "out" / "page.html", tmp_path / "t.csv"
    write_gallery(page_path, "Holiday & home", find_images(photos), rows_of(photos), table=table)
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    rows = read_rows(page)
    assert [row[0] for row in rows] == [image.key for image in find_images(photos)]
    by_path = dict(zip((row[0] for row in rows), read_thumbnails(page)[0], strict=True))
    assert by_path.pop("broken.jpg") == ""
    assert decode(by_path["turned_9.jpg"]).size == (round(CARD_SIDE * 2 / 3), CARD_SIDE)
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
    save = Image.Image.save

    def count(picture: Image.Image, *arguments: Any, **options: Any) -> None:
        nonlocal made
        made += 1
        save(picture, *arguments, **options)

    def watch(label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        nonlocal taken, most
        assert (label, total) == ("thumbnails", len(rows))
        most, taken = max(most, made - taken), done

    monkeypatch.setattr(Image.Image, "save", count)
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
    """A page of 10,000 images; those that no test looks at have no thumbnail, which takes longest to make."""
    folder = tmp_path_factory.mktemp("large")
    Image.new("RGB", (12, 9), "teal").save(folder / "x.png")
    keys = [f"{number:05d}.png" for number in range(10_000)]
    rows = [
        CaptionRow(
            key,
            f"a {'dog' if number % 100 == 7 else 'woman'} number n{number}",
            (number + 1) / 10_001,
            (f"other of {number}",),
            ("cut",) if number % 1000 == 0 else (),
        )
        for number, key in enumerate(keys)
    ]
    for number in (3, 4):
        rows[number] = CaptionRow(keys[number], "", None, status="failed", error=f"the file is empty {NASTY}")
    images = [ImageFile(key, folder / "x.png") for key in [*keys[:200], *keys[1000::1000]]]
    write_gallery(folder / "page.html", "10,000 images", images, rows, table=folder / "t.csv")
    return folder / "page.html"


def test_a_page_of_10000_images_has_a_few_cards_in_the_document_the_least_sure_first(
    browser: Browser, large_page: Path
) -> None:
    document = dump(browser, large_page)
    assert status(document) == "10,000 images"
    shown = cards(document)
    assert 10 <= len(shown) <= 100
    numbers = [number for number in range(len(shown) + 2) if number not in (3, 4)]  # these failed
    assert shown == [f"a {'dog' if number % 100 == 7 else 'woman'} number n{number}" for number in numbers]
    assert document.split('id="cards"')[1].count('src="data:image/webp;base64,') == len(shown)
    assert ">all<span>10,000</span>" in document
    assert ">cut<span>10</span>" in document
    assert ">failed<span>2</span>" in document


@pytest.mark.parametrize(
    ("fragment", "found", "first"),
    [
        ("#q=dog&sort=confidence", "100 of 10,000 images", "a dog number n9907"),
        ("#q=man", "0 of 10,000 images", None),  # "woman" does not begin with it
        ("#q=n12+-dog", "110 of 10,000 images", "a woman number n12"),
        ("#q=%22number+n12%22", "1 of 10,000 images", "a woman number n12"),
        ("#show=failed", "2 of 10,000 images", f"the file is empty {NASTY}"),
        ("#q=00012.png&sort=path", "1 of 10,000 images", "a woman number n12"),
    ],
)
def test_the_address_filters_and_sorts(
    browser: Browser, large_page: Path, fragment: str, found: str, first: str | None
) -> None:
    document = dump(browser, large_page, fragment)
    assert status(document) == found
    shown = cards(document)
    assert len(shown) <= 100
    assert (shown[0] if shown else None) == first
    assert "<title>10,000 images</title>" in document  # no script of a row has run
    assert "<img src=" not in document


def test_the_filter_knows_vowel_signs_and_names_whose_accents_are_apart(browser: Browser, tmp_path: Path) -> None:
    Image.new("RGB", (12, 9), "teal").save(tmp_path / "x.png")
    captions = {unicodedata.normalize("NFD", "Bär.png"): "काला कुत्ता", "b.png": "किताब"}
    rows = [CaptionRow(key, caption, 0.5) for key, caption in captions.items()]
    write_gallery(tmp_path / "page.html", "x", [ImageFile(key, tmp_path / "x.png") for key in captions], rows)
    for query, shown in (("कि", "किताब"), ("Bär", "काला कुत्ता"), ("कुत्ता", "काला कुत्ता")):
        assert cards(dump(browser, tmp_path / "page.html", f"#q={quote(query)}")) == [shown]


def test_the_address_opens_the_large_view_with_the_other_captions(browser: Browser, large_page: Path) -> None:
    document = dump(browser, large_page, "#show=cut&image=05000.png")
    large = document.split('<dialog id="large"')[1].split("</dialog>")[0]
    assert ' open=""' in large.split(">")[0]
    assert '<p class="caption">a woman number n5000</p>' in large
    assert "<li>other of 5000</li>" in large
    assert '<span class="place">6 of 10</span>' in large
    assert 'href="x.png"' in large


LONG_NAME = "-".join(["a"] * 120) + "_the_end.png"  # 252 characters


@pytest.fixture
def hostile_gallery(tmp_path: Path) -> Path:
    """A page of files whose names try to be something else; their captions are short, but for one."""
    folder = tmp_path / "photos" / "<script>document.title='run'<"
    folder.mkdir(parents=True)
    names = [
        "script>.png",
        "\"quotes\" & 'such' =1+1.png",
        "\u05e9\u05dc\u05d5\u05dd \u202eabc.png",
        LONG_NAME,
        "5.png",
        "6.png",
    ]
    for name in names:
        Image.new("RGB", (40, 30), "teal").save(folder / name)
    images = find_images(tmp_path / "photos")
    rows = [CaptionRow(image.key, "<b>short</b>", number / 10) for number, image in enumerate(images)]
    rows[-1] = CaptionRow(
        images[-1].key, "a long caption " * 12, 0.9, flags=tuple(f"a-flag-{number}" for number in range(9))
    )
    write_gallery(tmp_path / "page.html", "<i>names</i>", images, rows, table=tmp_path / "t.csv")
    return tmp_path / "page.html"


def measure(browser: Browser, page_path: Path, width: int, expression: str) -> list[float]:
    """What the script `expression`, a list, finds of the page (`page`: its document) `width` pixels wide."""
    with browser.window(width):
        browser.open(page_path.as_uri())
        browser.settle()
        numbers: list[float] = browser.run(f"(page => {expression})(document)")
    return numbers


def test_a_long_name_is_cut_at_its_start(browser: Browser, hostile_gallery: Path) -> None:
    ends = measure(
        browser,
        hostile_gallery,
        390,
        "[...page.querySelectorAll('.name')].flatMap(name => { const box = name.getBoundingClientRect(),"
        " path = name.firstChild.getBoundingClientRect();"
        " return [path.left - box.left, path.right - box.right]; })",
    )
    assert len(ends) == 12
    assert max(ends[::2]) < -20  # all begin with the long name of their folder: it lies outside, at the left
    assert max(abs(end) for end in ends[1::2]) < 1  # and the end of the name is where the room ends


def test_names_that_are_markup_are_shown_as_they_are(browser: Browser, hostile_gallery: Path) -> None:
    document = dump(browser, hostile_gallery)
    shown = [html.unescape(name) for name in re.findall(r'<bdi dir="ltr">(.*?)</bdi>', document)]
    assert sorted(shown) == [str(row[0]) for row in read_rows(hostile_gallery.read_text(encoding="utf-8"))]
    assert any(name.endswith(LONG_NAME) for name in shown)
    assert "<title>&lt;i&gt;names&lt;/i&gt;</title>" in document
    assert cards(document)[0] == "<b>short</b>"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_card_is_as_high_as_the_words_of_its_line_need(browser: Browser, hostile_gallery: Path, width: int) -> None:
    gaps = measure(
        browser,
        hostile_gallery,
        width,
        "[...page.querySelectorAll('.card')].map(card => { const find = name =>"
        " card.querySelector(name).getBoundingClientRect(); return find('.facts').top - find('.caption').bottom; })",
    )
    assert len(gaps) == 6
    assert all(0 <= gap < 8 for gap in gaps)  # no empty band, and the long caption is not cut off


def test_the_row_of_filters_fades_where_it_goes_on_and_nothing_is_wider_than_a_phone(
    browser: Browser, hostile_gallery: Path
) -> None:
    seen = (
        "[page.documentElement.scrollWidth, shows.scrollWidth - shows.clientWidth,"
        " Number(shows.classList.contains('before')), Number(shows.classList.contains('after')),"
        " Number(getComputedStyle(shows).maskImage.includes('gradient')),"
        " Math.min(...[...shows.children].map(chip => chip.offsetWidth))]"
    )
    width, hidden, before, after, masked, least = measure(
        browser, hostile_gallery, 390, f"(shows => {seen})(page.querySelector('#shows'))"
    )
    assert width == 390
    assert hidden > 100
    assert (before, after, masked) == (0, 1, 1)
    assert least > 40
    width, hidden, *_ = measure(browser, hostile_gallery, 1280, f"(shows => {seen})(page.querySelector('#shows'))")
    assert (width, hidden) == (1280, 0)


def test_captions_known_to_be_wrong_come_first_with_what_the_image_shows(
    browser: Browser, photos: Path, tmp_path: Path
) -> None:
    rows = rows_of(photos)
    verdicts = {row.path: Verdict("red" in row.path, f"a {row.path} shape") for row in rows if row.status == "ok"}
    verdicts["more/green_1.png"] = Verdict(is_right=True, truth="green")
    figures = [("0.5", "of something")]
    images, table = find_images(photos), tmp_path / "t.csv"
    write_gallery(tmp_path / "page.html", "judged", images, rows, table=table, verdicts=verdicts, figures=figures)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<li><b>3</b> right</li><li><b>5</b> wrong</li><li><b>0.5</b> of something</li></ul>" in page
    document = dump(browser, tmp_path / "page.html")
    notes = re.findall(r'<span class="note">(.*?)</span>', document)
    wrong = [
        row.path
        for row in sorted(rows, key=lambda row: row.confidence or 0)
        if not verdicts.get(row.path, Verdict(True, "")).is_right
    ]
    assert notes == [f"shows: a {path} shape" for path in wrong]
    kinds = re.findall(r'<button class="card ?(\w*)"', document)
    assert kinds == ["wrong"] * 5 + ["right"] * 3 + ["failed"]
    assert status(dump(browser, tmp_path / "page.html", "#show=right")) == "3 of 9 images"
    large = dump(browser, tmp_path / "page.html", f"#image={wrong[0]}").split('<dialog id="large"')[1]
    assert f'<p class="verdict wrong">wrong: the image shows a {wrong[0]} shape</p>' in large


def test_rows_of_no_table_are_shown_in_their_order_and_not_reviewed(browser: Browser, tmp_path: Path) -> None:
    rows = [
        CaptionRow(f"{name}.png", f"cosine {cosine}", None) for name, cosine in (("b", 0.9), ("c", 0.8), ("a", 0.7))
    ]
    write_gallery(tmp_path / "page.html", "dog", [], rows)
    document = dump(browser, tmp_path / "page.html")
    assert cards(document) == ["cosine 0.9", "cosine 0.8", "cosine 0.7"]
    assert cards(dump(browser, tmp_path / "page.html", "#sort=path")) == ["cosine 0.7", "cosine 0.9", "cosine 0.8"]
    assert '<ul class="figures"><li><b>3</b> images</li></ul>' in document
    for part in ('id="review"', 'class="decide"'):
        assert re.search(rf"<div [^>]*{part}[^>]* hidden", document)
    assert "reviewed" not in document.partition("<script")[0]
    assert "captioned" not in document.partition("<script")[0]
