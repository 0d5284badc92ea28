"""A gallery: one HTML page of every picture and its caption that needs no other file and stays quick at 10,000.

The thumbnails are lines of text in blocks that a browser neither draws nor runs; the page's script makes pictures of
those near the place that is looked at. What a row says is data all the way: it is never parsed as HTML.
"""

import base64
import hashlib
import html
import io
import json
import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from urllib.parse import quote

from captionmill.data.captions.table import CaptionRow
from captionmill.data.errors import ImageError
from captionmill.data.files import replace_atomically
from captionmill.data.images.decode import decode_image
from captionmill.data.images.read import ImageFile, read_image
from captionmill.data.paths import AnyPath
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.machine import choose_workers

THUMBNAIL_SIDE = 192
"""The longer side, pixels: about as wide as a card."""
BLOCK_ROWS = 100
"""Thumbnails a block of text: the least that the page's script takes apart at once."""
MOST_ROWS = 20_000
"""More are worth a warning: a page of 160 MB and more."""

_ASSETS_DIR = Path(__file__).parent / "assets"
_WEBP_QUALITY = 70
_WEBP_METHOD = 2  # Pillow's default, 4, takes twice the time for 4 % fewer bytes
_AHEAD = 4  # thumbnails waiting for their turn, for each thread

_logger = logging.getLogger(__name__)


def write_gallery(
    page_path: AnyPath,
    title: str,
    images: Iterable[ImageFile],
    rows: Sequence[CaptionRow],
    *,
    workers: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Write the page over `rows`, all at once, with thumbnails of those `images` that have the key of a row.

    A row whose picture cannot be read (any more) has none, and says so. One block of thumbnails is in memory at a time.
    The page links to local pictures by their path relative to it. `workers` threads decode; 0 takes one for each core.
    """
    page_path = Path(page_path)
    if len(rows) > MOST_ROWS:
        _logger.warning("%s: a page of %d images is large, and slow to open", page_path, len(rows))
    by_key = {image.key: image for image in images}
    script = (_ASSETS_DIR / "gallery.js").read_text(encoding="utf-8")
    fillings: dict[str, Iterable[str]] = {
        "title": [html.escape(title)],
        "script_hash": [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()],
        "style": [(_ASSETS_DIR / "gallery.css").read_text(encoding="utf-8")],
        "figures": [_figures(rows)],
        "rows": _row_lines(rows, by_key, page_path.parent),
        "script": [script],
        "thumbnails": _blocks(rows, by_key, choose_workers(workers), progress),
    }
    template = (_ASSETS_DIR / "gallery.html").read_text(encoding="utf-8")
    with (
        replace_atomically(page_path) as partial_path,
        # what UTF-8 cannot hold becomes \udce9, an escape that JSON understands
        partial_path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        for index, part in enumerate(re.split(r"\{\{(\w+)\}\}", template)):  # text, name, text, name, ..., text
            file.writelines(fillings[part] if index % 2 else [part])


def _figures(rows: Sequence[CaptionRow]) -> str:
    failed = sum(row.status == "failed" for row in rows)
    flagged = sum(bool(row.flags) for row in rows)
    figures = [(len(rows), "images" if len(rows) != 1 else "image"), (len(rows) - failed, "captioned")]
    figures += [(count, what) for count, what in ((failed, "failed"), (flagged, "flagged")) if count]
    return "".join(f"<li><b>{count:,}</b> {what}</li>" for count, what in figures)


def _row_lines(rows: Sequence[CaptionRow], by_key: dict[str, ImageFile], folder: Path) -> Iterator[str]:
    """A JSON array of arrays, in the order that gallery.js takes them apart."""
    for number, row in enumerate(rows):
        image = by_key.get(row.path)
        confidence = None if row.confidence is None else round(row.confidence, 4)
        error = row.error or "failed" if row.status == "failed" else None
        link = _link(image, folder) if image else None
        values = [row.path, row.caption, confidence, row.flags, row.alternatives, error, link]
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        yield ("[" if number == 0 else ",\n") + line.replace("<", "\\u003c")  # or </script> would end the block
    yield "]" if rows else "[]"


def _link(image: ImageFile, folder: Path) -> str | None:
    """Where a browser that shows a page in `folder` finds the picture itself; None for what it cannot open."""
    if image.offset is not None:
        return None
    if isinstance(image.path, str):
        return image.path if image.path.lower().startswith(("http://", "https://")) else None
    try:
        relative = PurePath(os.path.relpath(image.path, folder))
    except ValueError:  # another drive of Windows
        return image.path.absolute().as_uri()
    return quote(os.fsencode(relative.as_posix()))


def _blocks(
    rows: Sequence[CaptionRow], by_key: dict[str, ImageFile], workers: int, progress: Progress
) -> Iterator[str]:
    """Script elements of a type that browsers leave alone: a line of base64 for each row, empty without a picture."""
    images = (by_key.get(row.path) if row.status == "ok" else None for row in rows)
    thumbnails = _thumbnails(images, workers)
    for start in range(0, len(rows), BLOCK_ROWS):
        yield f'<script type="text/plain" id="thumbnails-{start // BLOCK_ROWS}">'
        end = min(start + BLOCK_ROWS, len(rows))
        yield "\n".join(next(thumbnails) for _ in range(start, end))
        yield "</script>\n"
        progress("thumbnails", end, len(rows))


def _thumbnails(images: Iterable[ImageFile | None], workers: int) -> Iterator[str]:
    """A thumbnail for each of `images`, in that order, made on threads a little ahead of whoever takes them."""
    pending: deque[Future[str]] = deque()
    remaining = iter(images)
    with ThreadPoolExecutor(workers, thread_name_prefix="thumbnail") as pool:
        try:
            while True:
                while len(pending) < _AHEAD * workers:
                    try:
                        pending.append(pool.submit(_thumbnail, next(remaining)))
                    except StopIteration:
                        break
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _thumbnail(image: ImageFile | None) -> str:
    """WebP in base64; empty where there is no picture."""
    if image is None:
        return ""
    try:
        picture = decode_image(read_image(image)[0], at_least=_thumbnail_size)
    except ImageError:
        return ""
    content = io.BytesIO()
    picture.resize(_thumbnail_size(*picture.size)).save(content, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)
    return base64.b64encode(content.getvalue()).decode()


def _thumbnail_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1, THUMBNAIL_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
