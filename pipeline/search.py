"""Search a store of features: by words, or by an image that others should be like.

torch is imported only to make the features of an image that is not in the store.
"""

from dataclasses import dataclass
from pathlib import Path

from captionmill.data.csv_tables import RecordLayout, require_own_table, require_records_name, write_records
from captionmill.data.errors import InputError
from captionmill.data.files import require_two_files
from captionmill.data.images.find import find_images
from captionmill.data.images.keys import match_forms
from captionmill.data.models.bundle import model_paths
from captionmill.data.paths import AnyPath, as_location, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.formats import require_other_output
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.urls import is_url
from captionmill.stages.fields import require_least
from captionmill.stages.machine import require_device_name
from captionmill.stages.ranking.opened import MatchedStore, open_matched
from captionmill.stages.ranking.retrieve import find_closest, load_matcher
from captionmill.stages.settings import LISTED_IMAGES, ExtractConfig

FOUND_COLUMNS = ("key", "cosine")


@dataclass(frozen=True)
class FoundImage:
    """An image that a search found."""

    key: str
    cosine: float
    """Of its vector and that of the query, -1 to 1."""


@dataclass(frozen=True)
class Retrieval:
    """What a search found."""

    images: tuple[FoundImage, ...]
    """The closest first; of equal ones the first by key."""
    searched: int
    """Number of images that were compared."""
    damaged: tuple[str, ...]
    """Keys of images whose features are damaged, which are left out; `extract` makes them again."""
    unknown_words: tuple[str, ...]
    """Words of the query that the model does not know, which are left out."""


@dataclass(frozen=True)
class RetrievalFiles:
    """What a search writes."""

    output: AnyPath | None = None
    """Table of what was found: columns key and cosine."""
    layout: RecordLayout | None = None
    """Layout of the table: csv or jsonl; by default that of its suffix."""
    gallery: AnyPath | None = None
    """Page with what was found (HTML)."""
    images: AnyPath | None = None
    """The images to show on the page, as `extract` takes them."""


def search_store(
    features: AnyPath,
    model: AnyPath,
    words: str | None = None,
    *,
    like: AnyPath | None = None,
    top: int = LISTED_IMAGES,
    files: RetrievalFiles = RetrievalFiles(),
    machine: ExtractConfig = ExtractConfig(),
    weights: AnyPath | None = None,
    progress: Progress = no_progress,
) -> Retrieval:
    """The `top` images of the store `features` that fit `words` best, or that are most like the image `like`.

    Both are compared as vectors of the matcher of `model`, which `train` makes. `like` is a key of the store, whose own
    row is then left out, or an image file or its URL; its features are made by the backbone with `weights`, as
    `explain` makes them. Only the best are kept in memory, not the rows.

    Raises InputError if the model has no matcher, knows none of the words, or `like` is neither; SpecMismatchError if
    the features are not of the model's kind; other errors as `FeatureStore.open` and `read_bundle`.
    """
    if (words is None) == (like is None):
        raise InputError("a search needs words, or an image as `like`, and not both")
    require_least("top", top, 1)
    require_device_name(machine.device)
    opened = open_matched(features, model)
    _check(files, opened)
    known, unknown = _read_words(words, opened) if words is not None else ([], [])
    key = None if like is None else _find_key(like, opened)

    matcher = load_matcher(opened)
    if like is None:
        query = matcher.embed_captions([known])[0]
    else:
        if key is None:
            from captionmill.pipeline.explain import features_of_image

            row = features_of_image(as_location(like), opened.model.spec, machine, as_path(weights))
        else:
            row = opened.store[key]
        query = matcher.embed_images(row[None])[0]
    left_out = None if key is None else opened.store.position(key)
    found = find_closest(opened.store, matcher, query, top, left_out=left_out, progress=progress)
    images = zip(found.positions.tolist(), found.cosines.tolist(), strict=True)
    search = Retrieval(
        tuple(FoundImage(opened.store.keys[position], cosine) for position, cosine in images),
        len(opened.store) - len(found.damaged) - (left_out is not None),
        found.damaged,
        tuple(unknown),
    )
    _write(files, search, words if words is not None else f"like {like}", progress)
    return search


def _check(files: RetrievalFiles, opened: MatchedStore) -> None:
    """Raise InputError if a file would replace an input or the other file, or images have no page."""
    for path in (as_path(files.output), as_path(files.gallery)):
        if path is not None:
            require_other_output(path, opened.store.path, as_path(files.images), *model_paths(opened.folder))
    require_two_files(as_path(files.output), as_path(files.gallery), "gallery")
    if files.layout not in (None, "csv", "jsonl"):
        raise InputError(f"`layout` {files.layout}: use csv or jsonl")
    if files.output is not None:
        require_records_name(Path(files.output), files.layout)
        require_own_table(Path(files.output), FOUND_COLUMNS)
    if files.images is not None and files.gallery is None:
        raise InputError("`images` are shown on a page: name its file with `gallery`")


def _read_words(words: str, opened: MatchedStore) -> tuple[list[int], list[str]]:
    """The indices of the known words, and the unknown words; InputError if none is known."""
    vocabulary = opened.model.vocabulary
    found = vocabulary.tokenize(words)
    if not found:
        raise InputError(f"a search needs words, and there are none in {words!r}")
    known = [vocabulary.index(word) for word in found if word in vocabulary]
    if not known:
        raise InputError(
            f"{words!r}: {opened.folder} knows none of these words; `captionmill vocabulary` lists those that it knows"
        )
    return known, list(dict.fromkeys(word for word in found if word not in vocabulary))


def _find_key(like: AnyPath, opened: MatchedStore) -> str | None:
    """The key of the store that `like` is; None for a file or a URL."""
    name = str(like)
    key = match_forms([name], opened.store.keys).get(name, name)
    if key in opened.store:
        return key
    if not is_url(name) and not Path(like).is_file():
        raise InputError(f"{like}: neither a key of {opened.store.path} nor an image file; check how it is written")
    return None


def _write(files: RetrievalFiles, search: Retrieval, title: str, progress: Progress) -> None:
    if files.output is not None:
        write_records(Path(files.output), map(vars, search.images), FOUND_COLUMNS, files.layout)
    if files.gallery is not None:
        from captionmill.pipeline.pages.gallery import write_gallery

        shown = find_images(as_location(files.images)) if files.images is not None else []
        rows = [CaptionRow(image.key, f"cosine {image.cosine:.4f}", None) for image in search.images]
        write_gallery(files.gallery, title, shown, rows, progress=progress)
