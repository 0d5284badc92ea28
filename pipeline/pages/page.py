"""How every page is made: one environment for templates, one style sheet, one content security policy, small images.

A page is `assets/NAME.html`, with its own rules `NAME.css` after those of `page.css`, where these exist, and a script
that is joined from others. Everything that a template is filled with is escaped; only these assets enter a page as they
are. The policy names them by their hashes: a browser runs no other script, applies no other style and requests nothing.
"""

import base64
import functools
import hashlib
import importlib.metadata
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from captionmill.data.images.decode import decode_image
from captionmill.data.images.read import ImageFile, read_image

THUMBNAIL_SIDE = 320
"""The longer side of an image in a page, pixels: sharp on a phone, and a page of hundreds still opens at once."""

_ASSETS_DIR = Path(__file__).parent / "assets"


@functools.cache
def environment() -> Environment:
    """What renders the templates of all pages; a value that is missing is an error. `commas` shows 8091 as 8,091."""
    templates = Environment(
        loader=FileSystemLoader(_ASSETS_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["commas"] = "{:,}".format
    return templates


def page_pieces(
    name: str,
    values: Mapping[str, object],
    *,
    scripts: Sequence[str] = (),
    links_images: bool = False,
    sends: bool = False,
) -> Iterator[str]:
    """The page `name` filled with `values`, piece by piece, each made when it is asked for.

    `scripts` are the names of its scripts, which share their names in this order. `links_images`: the page shows images
    that are not part of it, from files and the web. `sends`: it sends data to the program that serves it.
    """
    style, script = _read_asset("page.css") + _read_asset(f"{name}.css"), join_scripts(scripts)
    return (
        environment()
        .get_template(f"{name}.html")
        .generate(
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script, links_images=links_images, sends=sends),
            version=importlib.metadata.version("captionmill"),
            **values,
        )
    )


def render_page(name: str, values: Mapping[str, object]) -> str:
    """The page `name` filled with `values`; it shows no image but those that are part of it."""
    return "".join(page_pieces(name, values))


def join_scripts(names: Sequence[str]) -> str:
    """The scripts NAME.js as one, which sees no other and leaves no names behind; "" for none."""
    text = "".join(_read_asset(f"{name}.js") for name in names)
    return f'"use strict";\n(() => {{\n{text}}})();\n' if text else ""


def colour(name: str) -> str:
    """The colour `name` of the style sheet, for what is drawn as pixels: "#rrggbb", the same on light and dark."""
    found = re.search(rf"--{name}: (#[0-9a-f]{{6}});", _read_asset("page.css"))
    if found is None:
        raise ValueError(f"page.css: no colour {name} that is the same on light and dark")
    return found[1]


def thumbnail_of(file: ImageFile) -> str:
    """A small image of `file` as a `data:` URL; ImageError if it cannot be read."""
    content = read_image(file)[0]
    return image_url(decode_image(content, at_least=lambda *_: (THUMBNAIL_SIDE,) * 2, name=file.key), THUMBNAIL_SIDE)


def image_url(image: Image.Image, side: int) -> str:
    """`image` (RGB) as a `data:` URL of a JPEG, neither side longer than `side` pixels; `image` is made smaller."""
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


@functools.cache
def _read_asset(name: str) -> str:
    path = _ASSETS_DIR / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _policy(style: str, script: str, *, links_images: bool, sends: bool) -> str:
    """A content security policy (W3C, CSP level 3) for a page with this style sheet and this script."""
    rules = [
        "default-src 'none'",
        "img-src data:" + (" file: http: https:" if links_images else ""),
        f"style-src '{_hash_of(style)}'",
        *([f"script-src '{_hash_of(script)}'"] if script else []),
        *(["connect-src 'self'"] if sends else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def _hash_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
