"""The page of two tables of captions: the images whose captions differ, with the words that do."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from captionmill.data.errors import ImageError
from captionmill.data.images.read import ImageFile
from captionmill.data.progress import Progress
from captionmill.pipeline.pages.page import render_page, thumbnail_of
from captionmill.pipeline.summaries import SCORE_NAMES
from captionmill.stages.scoring.comparison import ComparedImage, TableComparison

MOST_SHOWN = 200
"""Images on the page: half of them those that gain most, half those that lose most; those with a caption that a person
wrote only if there is room."""


@dataclass(frozen=True)
class _RunOfWords:
    """Words of a caption that follow each other and are all changed, or none of them."""

    text: str
    are_changed: bool


@dataclass(frozen=True)
class _Card:
    path: str
    image_url: str
    first: Sequence[_RunOfWords]
    second: Sequence[_RunOfWords]
    gain: float | None
    is_corrected: bool


def render_comparison(comparison: TableComparison, images: Iterable[ImageFile], *, progress: Progress) -> str:
    """The page as one string of HTML; an image that is not among `images` or cannot be read is not shown."""
    by_key = {image.key: image for image in images}
    different = comparison.different
    models = [image for image in different if not image.is_corrected]
    if len(models) > MOST_SHOWN:
        models = models[: MOST_SHOWN // 2] + models[-MOST_SHOWN // 2 :]
    shown = (models + [image for image in different if image.is_corrected])[:MOST_SHOWN]
    cards = []
    for done, image in enumerate(shown, 1):
        cards.append(_card(image, by_key.get(image.first.path)))
        progress("images", done, len(shown))
    values = {"comparison": comparison, "cards": cards, "has_images": bool(by_key), "metric_names": SCORE_NAMES}
    return render_page("comparison", values)


def _card(image: ComparedImage, file: ImageFile | None) -> _Card:
    first, second = image.first.caption.split(), image.second.caption.split()
    steps = difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    return _Card(
        image.first.path,
        _thumbnail(file) if file else "",
        [_RunOfWords(" ".join(first[start:end]), step != "equal") for step, start, end, _, _ in steps if end > start],
        [_RunOfWords(" ".join(second[start:end]), step != "equal") for step, _, _, start, end in steps if end > start],
        image.gain,
        image.is_corrected,
    )


def _thumbnail(file: ImageFile) -> str:
    try:
        return thumbnail_of(file)
    except ImageError:
        return ""
