"""A gallery: one HTML page of every image and its caption that needs no other file and stays quick at 10,000.

Captions are reviewed in it: what a person decides is saved as a file of decisions. The thumbnails are lines of text in
blocks that a browser neither draws nor runs; the page's script makes images of those near the place that is looked at.
What a row holds is data all the way: it is never parsed as HTML.
"""

import base64
import hashlib
import io
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import quote

from captionmill.data.errors import ImageError
from captionmill.data.files import replace_atomically
from captionmill.data.images.decode import decode_image
from captionmill.data.images.read import ImageFile, read_image
from captionmill.data.paths import AnyPath
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.review import LATER, is_decision
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.pages.page import page_pieces
from captionmill.stages.ahead import map_ahead
from captionmill.stages.machine import choose_workers

CARD_SIDE = 192
"""The longer side of a thumbnail, pixels: about as wide as a card."""
BLOCK_ROWS = 100
"""Thumbnails in each block of text: the least that the page's script takes apart at once."""
MOST_ROWS = 20_000
"""More are worth a warning: a page of 160 MB and more."""

_SCRIPTS = ("decisions", "gallery", "review")
_WEBP_QUALITY = 70
_WEBP_METHOD = 2  # Pillow's default, 4, takes twice the time for 4 % fewer bytes
_AHEAD = 4  # thumbnails waiting for their turn, for each thread

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """Whether a caption is right, where that is known."""

    is_right: bool
    truth: str
    """What the image shows."""


def write_gallery(
    page_path: AnyPath,
    title: str,
    images: Iterable[ImageFile],
    rows: Sequence[CaptionRow],
    *,
    table: AnyPath | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
    figures: Sequence[tuple[str, str]] = (),
    workers: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Write the page over `rows`, all at once, with thumbnails of those `images` that have the key of a row.

    A row whose image cannot be read (any more) shows that instead. One block of thumbnails is in memory at a time.
    The page links to local images by their path relative to it. `table` is the table of captions that has the rows:
    they are reviewed on the page, and a browser keeps decisions also for a page that is made again. Without a table the
    page only shows the rows, in their order. `verdicts` marks captions, by key, as right or wrong; then the wrong ones
    come first, else of a table the least sure. `figures` are shown above, as (figure, what it is), after the counts.
    `workers` threads decode; 0 takes one for each core.
    """
    page_path = Path(page_path)
    if len(rows) > MOST_ROWS:
        _logger.warning("%s: a page of %d images is large, and slow to open", page_path, len(rows))
    by_key = {image.key: image for image in images}
    links = (_link(by_key[row.path], page_path.parent) if row.path in by_key else None for row in rows)
    values = {
        "title": title,
        "figures": [*_counts_shown(rows, verdicts or {}, is_table=table is not None), *figures],
        "rows": _row_values(rows, links, verdicts or {}),
        "has_verdicts": bool(verdicts),
        "blocks": _thumbnail_blocks(rows, by_key, choose_workers(workers), progress),
        "review": None if table is None else _review_values(Path(table), served=False),
    }
    with (
        replace_atomically(page_path) as partial_path,
        # what UTF-8 cannot hold, as in the name of a file, becomes an escape
        partial_path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.writelines(page_pieces("gallery", values, scripts=_SCRIPTS, links_images=True))


def served_gallery(title: str, rows: Sequence[CaptionRow], keys: Collection[str], table: Path) -> Iterator[str]:
    """The page over `rows`, piece by piece, for a program that serves it and merges its decisions into `table`.

    The page asks for an image with one of the `keys` at `images/KEY`, quoted, and for its thumbnail at
    `images/KEY?small`, when it is looked at; it sends decisions to `decisions`.
    """
    links = (f"images/{quote(row.path, safe='')}" if row.path in keys else None for row in rows)
    values = {
        "title": title,
        "figures": _counts_shown(rows, {}, is_table=True),
        "rows": _row_values(rows, links, {}),
        "has_verdicts": False,
        "blocks": (),
        "review": _review_values(table, served=True),
    }
    return page_pieces("gallery", values, scripts=_SCRIPTS, links_images=True, sends=True)


def _review_values(table: Path, *, served: bool) -> dict[str, object]:
    """What the page needs for decisions; a browser keeps those about this table, apart from others, under `id`."""
    table_id = hashlib.sha256(os.fsencode(table.absolute())).hexdigest()[:16]
    return {"id": table_id, "table": table.name, "served": served}


def _counts_shown(
    rows: Sequence[CaptionRow], verdicts: Mapping[str, Verdict], *, is_table: bool
) -> list[tuple[str, str]]:
    failed = sum(row.status == "failed" for row in rows)
    judged = [verdicts[row.path] for row in rows if row.path in verdicts]
    right = sum(verdict.is_right for verdict in judged)
    wanted = [
        (failed, "failed"),
        (right, "right"),
        (len(judged) - right, "wrong"),
    ]
    if not is_table:  # else the filters count them, less those that are reviewed meanwhile
        wanted.append((sum(any(flag != LATER for flag in row.flags) for row in rows), "flagged"))
    figures = [(len(rows), "images" if len(rows) != 1 else "image")]
    if is_table:
        figures.append((len(rows) - failed, "captioned"))
    figures += [(count, what) for count, what in wanted if count]
    return [(f"{count:,}", what) for count, what in figures]


def _row_values(
    rows: Iterable[CaptionRow], links: Iterable[str | None], verdicts: Mapping[str, Verdict]
) -> Iterator[list[object]]:
    """What the page's script knows of each row, in the order in which gallery.js takes it apart."""
    for row, link in zip(rows, links, strict=True):
        verdict = verdicts.get(row.path)
        confidence = None if row.confidence is None else round(row.confidence, 4)
        error = row.error or "failed" if row.status == "failed" else None
        more: list[object] = [verdict.is_right, verdict.truth] if verdict else []
        if is_decision(row.status):
            more = [*(more or (None, "")), row.status]
        yield [row.path, row.caption, confidence, row.flags, row.alternatives, error, link, *more]


def _link(image: ImageFile, folder: Path) -> str | None:
    """Where a browser that shows a page in `folder` finds the image itself; None for what it cannot open."""
    if image.offset is not None:
        return None
    if isinstance(image.path, str):
        return image.path if image.path.lower().startswith(("http://", "https://")) else None
    try:
        relative = PurePath(os.path.relpath(image.path, folder))
    except ValueError:  # another drive of Windows
        return image.path.absolute().as_uri()
    return quote(os.fsencode(relative.as_posix()))


def _thumbnail_blocks(
    rows: Sequence[CaptionRow], by_key: Mapping[str, ImageFile], workers: int, progress: Progress
) -> Iterator[str]:
    """The thumbnails of `BLOCK_ROWS` rows at a time: a line of base64 for each, empty without an image."""
    images = (by_key.get(row.path) if row.is_captioned else None for row in rows)
    thumbnails = _thumbnails(images, workers)
    for start in range(0, len(rows), BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, len(rows))
        yield "\n".join(next(thumbnails) for _ in range(start, end))
        progress("thumbnails", end, len(rows))


def _thumbnails(images: Iterable[ImageFile | None], workers: int) -> Iterator[str]:
    """A thumbnail for each of `images`, in that order, made on threads a little ahead of whoever takes them."""
    with ThreadPoolExecutor(workers, thread_name_prefix="thumbnail") as pool:
        yield from map_ahead(_encoded_thumbnail, images, pool, _AHEAD * workers)


def _encoded_thumbnail(image: ImageFile | None) -> str:
    """WebP in base64; empty where there is no image."""
    if image is None:
        return ""
    try:
        return base64.b64encode(render_thumbnail(image)).decode()
    except ImageError:
        return ""


def render_thumbnail(image: ImageFile) -> bytes:
    """A small `image` as WebP; ImageError if it cannot be read."""
    pixels = decode_image(read_image(image)[0], at_least=_thumbnail_size, name=image.key)
    content = io.BytesIO()
    pixels.resize(_thumbnail_size(*pixels.size)).save(content, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)
    return content.getvalue()


def _thumbnail_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1, CARD_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
