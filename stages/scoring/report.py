"""One self-contained HTML page of pictures and their captions."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captionmill.data.atomic import write_text
from captionmill.data.image_files import load_image

_THUMBNAIL_SIDE = 320  # pixels


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
    write_text(path, _PAGE.format(title=html.escape(title), style=_STYLE, figures=figures, cards=cards))


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
        f'src="{_data_url(load_image(entry.image_path))}">'
        f"<figcaption><p>{html.escape(entry.caption)}</p>{note}"
        f'<p class="facts"><span>{name}</span>'
        f"<span>{verdict and verdict + ', '}confidence {entry.confidence:.2f}</span></p>"
        f"</figcaption></figure>"
    )


def _data_url(image: Image.Image) -> str:
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2228, #e6e8ea); --paper: light-dark(#f6f5f1, #15181c);
  --card: light-dark(#fff, #1f242a); --quiet: light-dark(#666d75, #9aa3ac); --wrong: light-dark(#b3261e, #ff8a80); }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .75rem; }
ul { list-style: none; padding: 0; margin: 0 0 1.75rem; display: flex; flex-wrap: wrap; gap: .35rem 2rem;
  color: var(--quiet); }
ul b { color: var(--ink); font-size: 1.2rem; margin-right: .2rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; overflow: hidden; display: flex;
  flex-direction: column; border: 1px solid light-dark(#e2e0d8, #2c333b); break-inside: avoid; }
img { width: 100%; aspect-ratio: 4 / 3; object-fit: cover; display: block; }
figcaption { padding: .7rem .85rem; display: flex; flex-direction: column; flex: 1; }
figcaption p { margin: 0 0 .35rem; }
figure.wrong { border-color: var(--wrong); }
.reference { color: var(--wrong); font-size: .9rem; }
.facts { margin-top: auto !important; color: var(--quiet); font-size: .8rem; display: flex; flex-wrap: wrap;
  justify-content: space-between; gap: 0 1rem; }
"""

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
<ul>{figures}</ul>
<main>
{cards}
</main>
</body>
</html>
"""
