"""One self-contained HTML page of pictures and their captions."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.files import write_text
from captionmill.data.images.read import load_image
from captionmill.pipeline.pages.page import page_style, thumbnail_url


@dataclass(frozen=True)
class PageEntry:
    """One picture of a page."""

    image_path: Path
    name: str
    caption: str
    confidence: float
    """0 to 1."""
    right: bool | None = None
    """Whether the caption is right, where that is known."""
    reference: str = ""
    """What the picture shows, in a person's words."""


def write_page(path: Path, title: str, summary: Sequence[tuple[str, str]], entries: Iterable[PageEntry]) -> None:
    """Write the page: `title`, the `summary` as (figure, what it is), then the pictures in the order given."""
    figures = "".join(f"<li><b>{html.escape(figure)}</b> {html.escape(what)}</li>" for figure, what in summary)
    cards = "\n".join(_card(entry) for entry in entries)
    write_text(path, _PAGE.format(title=html.escape(title), style=page_style(), figures=figures, cards=cards))


def _card(entry: PageEntry) -> str:
    verdict, note = "", ""
    if entry.right is not None:
        verdict = "right" if entry.right else "wrong"
        note = "" if entry.right else f'<p class="reference">drawn: {html.escape(entry.reference)}</p>'
    elif entry.reference:
        note = f'<p class="reference">{html.escape(entry.reference)}</p>'
    name = html.escape(entry.name)
    return (
        f'<figure class="{verdict}"><img loading="lazy" alt="{html.escape(entry.caption)}" '
        f'src="{thumbnail_url(load_image(entry.image_path))}">'
        f"<figcaption><p>{html.escape(entry.caption)}</p>{note}"
        f'<p class="facts"><span>{name}</span>'
        f"<span>{verdict and verdict + ', '}confidence {entry.confidence:.2f}</span></p>"
        f"</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<ul class="figures">{figures}</ul>
<main class="cards">
{cards}
</main>
</body>
</html>
"""
