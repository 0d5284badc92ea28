"""Small pictures that stand in a page itself, so that the page is one file."""

import base64
import io

from PIL import Image

THUMBNAIL_SIDE = 320  # pixels: sharp on a phone, and a page of hundreds still opens at once


def thumbnail_url(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """`image` (RGB) as a `data:` URL of a JPEG, neither side longer than `side`; the image itself is made smaller."""
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
