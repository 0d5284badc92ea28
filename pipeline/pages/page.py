"""What every page shares: the style sheet and small images inside the page."""

import base64
import io
from pathlib import Path

from PIL import Image

_PATH = Path(__file__).parent / "assets" / "page.css"
THUMBNAIL_SIDE = 320  # pixels: sharp on a phone, and a page of hundreds still opens at once


def page_style() -> str:
    """The style sheet that a page carries in its head; it is ours, and safe to stand in a `style` element."""
    return _PATH.read_text(encoding="utf-8")


def thumbnail_url(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """`image` (RGB) as a `data:` URL of a JPEG, neither side longer than `side`; the image itself is made smaller."""
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
