"""Every page is made in one way: one style sheet, one policy, and nothing of what it shows is read as HTML."""

import ast
import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from builders import ROOT, draw_photos, make_model, make_rows, make_spec, make_store

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary
from captionmill.data.images.find import find_images
from captionmill.data.models.bundle import read_bundle, write_model
from captionmill.data.tables.formats import write_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.compare import compare_tables
from captionmill.pipeline.explain import explain_image
from captionmill.pipeline.pages.gallery import Verdict, write_gallery
from captionmill.pipeline.pages.page import colour, environment
from captionmill.pipeline.pages.run_report import ReportSources, write_run_report

ASSETS = ROOT / "pipeline" / "pages" / "assets"
HOSTILE = "<b>&\"'=\u202eabc\u05d0"
NAMES = {"comparison", "explanation", "gallery", "run_report"}


class Reader(HTMLParser):
    """The tags of a page with their attributes, and all that a reader sees or a script is given."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each page by the name of its template, made of files whose names and contents are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    photos = draw_photos(folder / "photos")
    (photos / "red_0.png").rename(photos / f"{HOSTILE}.png")
    images = find_images(photos)
    rows = [CaptionRow(image.key, HOSTILE, 0.5, (HOSTILE,), (HOSTILE,)) for image in images]
    rows[0] = CaptionRow(rows[0].path, "", None, status="failed", error=HOSTILE)
    verdicts = {row.path: Verdict(is_right=False, truth=HOSTILE) for row in rows[1:]}
    made = {name: folder / f"{name}.html" for name in NAMES}
    write_gallery(made["gallery"], HOSTILE, images, rows, verdicts=verdicts, figures=[(HOSTILE, HOSTILE)])

    tables = [folder / f"{HOSTILE}-{number}.csv" for number in range(2)]
    write_captions(tables[0], rows, "csv", with_alternatives=False)
    changed = [replace(row, caption=f"{HOSTILE} {HOSTILE}") for row in rows]
    write_captions(tables[1], changed, "csv", with_alternatives=False)
    compare_tables(*tables, page=made["comparison"], images=photos)

    key = f"{HOSTILE}.png"
    store_path = make_store(folder / f"{HOSTILE}.h5", [key], make_rows(1))
    model = make_model(folder / "model", make_spec(), splits={"train": [key], "val": [], "test": []})
    stored = read_bundle(model)
    vocabulary = Vocabulary([*SPECIAL_WORDS, *(f"{HOSTILE}{number}" for number in range(8))])
    settings = {"label_smoothing": HOSTILE, "max_length": HOSTILE, HOSTILE: HOSTILE}
    hostile = replace(stored, vocabulary=vocabulary, training=settings, versions={HOSTILE: HOSTILE})
    named = folder / HOSTILE
    write_model(named, hostile)
    (named / "history.csv").write_text(
        'epoch,phase,loss,val_cider,captions_per_s,duration_s\n1,"<b>&""\'",2,0.2,3,4\n2,cross entropy,1,0.3,3,4\n'
    )
    (folder / "references.csv").write_text(
        f'image,caption\n"{key.replace(chr(34), chr(34) * 2)}",red &lt;b&gt; <b>dog\n'
    )
    explain_image(
        photos / key,
        named,
        output=made["explanation"],
        features=store_path,
        captions=folder / "references.csv",
        key=key,
    )

    scores = {"cider_d": 0.5}
    intervals = {"cider_d": [0.25, 0.75]}
    caption = {"caption": HOSTILE, "references": [HOSTILE], "confidence": 0.5, "cider_d": 0.5}
    against = {"model": HOSTILE, "scores": scores, "intervals": intervals}
    against |= {"differences": scores, "difference_intervals": intervals}
    values = {"model": HOSTILE, "scores": scores, "intervals": intervals, "captions": {key: caption}}
    values |= {"images_chosen_by": HOSTILE, "left_out": [HOSTILE], "against": against, "search": {HOSTILE: HOSTILE}}
    (folder / "scores.json").write_text(json.dumps(values))
    (folder / "captions.csv").write_text("path,caption,confidence,status,error\n<b>&'=,,,failed,<b>&'=\n")
    sources = ReportSources([named], [store_path], [folder / "scores.json"], [folder / "captions.csv"], images=[photos])
    write_run_report(made["run_report"], sources, title=HOSTILE)
    return made


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_a_page_shows_is_never_read_as_html(pages: dict[str, Path], name: str) -> None:
    source = pages[name].read_text(encoding="utf-8")
    assert '<b>&"' not in source
    page = Reader(source)
    shown = page.text + " ".join(texts_in(rows_of(source)))
    assert shown.count(HOSTILE) >= 10
    assert {attribute for _, attributes in page.tags for attribute in attributes if attribute.startswith("on")} == set()
    assert "style" not in {attribute for _, attributes in page.tags for attribute in attributes}


def rows_of(source: str) -> object:
    """The data of a gallery's rows."""
    found = re.search(r'id="rows">(.*?)</script>', source, re.DOTALL)
    return json.loads(found[1]) if found else []


def texts_in(value: object) -> list[str]:
    """All strings of nested lists."""
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_page_has_the_one_style_sheet_and_a_policy_that_allows_nothing_else(
    pages: dict[str, Path], name: str
) -> None:
    source = pages[name].read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style == (ASSETS / "page.css").read_text() + (ASSETS / f"{name}.css").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    joined = "".join((ASSETS / f"{part}.js").read_text() for part in ("decisions", "gallery", "review"))
    assert scripts == ([f'"use strict";\n(() => {{\n{joined}}})();\n'] if name == "gallery" else [])
    hashes = {
        kind: [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
        for kind, texts in {"style-src": [style], "script-src": scripts}.items()
        if texts
    }
    (policy,) = [
        str(attributes["content"])
        for tag, attributes in Reader(source).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    linked = ["file:", "http:", "https:"] if name == "gallery" else []
    fixed = {"default-src": ["'none'"], "base-uri": ["'none'"], "form-action": ["'none'"]}
    assert rules == {**fixed, "img-src": ["data:", *linked], **hashes}
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", sorted(NAMES))
def test_chromium_has_nothing_to_complain_about(pages: dict[str, Path], name: str, browser: Browser) -> None:
    browser.complaints()
    browser.open(pages[name].as_uri())
    browser.settle()
    assert browser.complaints() == []
    assert HOSTILE in browser.text("body")


def test_every_template_escapes_and_holds_no_style_and_no_script() -> None:
    templates = sorted(path.name for path in ASSETS.glob("*.html"))
    assert {name.removesuffix(".html") for name in templates} == NAMES | {"page", "drawings"}
    assert environment().autoescape is True
    for name in templates:
        source = (ASSETS / name).read_text(encoding="utf-8")
        assert not re.search(
            r"\|\s*safe|autoescape|Markup|\bstyle=|\bon\w+=|<style>(?!{{ style }})|javascript:", source
        )
        assert ('{% extends "page.html" %}' in source) == (name.removesuffix(".html") in NAMES)


def test_colours_are_defined_once() -> None:
    sheets = {path.name: path.read_text(encoding="utf-8") for path in [*ASSETS.glob("*.css"), *ASSETS.glob("*.html")]}
    literal = re.compile(r"(?<!&)#[0-9a-f]{3,8}\b|\brgba?\(|\bhsl|light-dark\(", re.IGNORECASE)
    assert [name for name, text in sheets.items() if literal.search(text)] == ["page.css"]
    defined = re.findall(r"(--[\w-]+):", sheets["page.css"])
    assert len(defined) == len(set(defined))
    assert re.fullmatch("#[0-9a-f]{6}", colour("up"))
    with pytest.raises(ValueError, match="no colour ink that is the same on light and dark"):
        colour("ink")


def test_no_module_of_the_package_holds_html() -> None:
    modules = [path for room in ("data", "stages", "pipeline") for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 50
    texts = {path: path.read_text(encoding="utf-8") for path in modules}
    trees = {path: ast.parse(text) for path, text in texts.items() if re.search(r"</?[a-z]", text)}
    strings = {
        path.name: node.value
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(
            r"</?(div|p|span|table|t[rdh]|section|svg|path|text|img|style|script|h[1-6]|li|ul|b)\b", node.value
        )
    }
    assert strings == {}
    marked = [path.name for path, text in texts.items() if "Markup(" in text]
    assert marked == ["page.py"]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_tables_of_an_explanation_fit_their_panels(pages: dict[str, Path], width: int, browser: Browser) -> None:
    longest = """for (const row of document.querySelectorAll(".steps tr:has(td.share)")) {
        const mark = document.createElement("em");
        mark.textContent = "never chosen";
        row.querySelector(".word").replaceChildren("<unk> ", mark);
        row.classList.add("chosen");
        row.querySelector(".share").previousElementSibling.textContent = "10.9223"; }"""
    with browser.window(width):
        browser.open(pages["explanation"].as_uri())
        browser.run(longest)
        tables = "[...document.querySelectorAll('.steps:not(.wide) .scroll')]"
        assert set(browser.run(f"{tables}.map(table => table.scrollWidth - table.clientWidth)")) == {0}
