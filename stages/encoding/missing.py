"""Compares the images found with the rows of a store: which have to be extracted, and which rows have no image."""

import logging
from collections.abc import Sequence

from captionmill.data.features.store import FeatureStore
from captionmill.data.images.read import ImageFile, ImageSource, is_unchanged

_logger = logging.getLogger(__name__)


def find_missing(found: Sequence[ImageFile], store: FeatureStore | None, *, warns: bool = True) -> list[ImageFile]:
    """The images of `found` that have no row in `store`, a damaged one, or have changed since theirs was made.

    One warning counts the damaged rows, unless not `warns`.
    """
    if store is None:
        return list(found)
    sources = store.sources()
    unchanged = {
        image.key
        for image in found
        if image.key in store and is_unchanged(image, ImageSource(*sources[store.position(image.key)].tolist()))
    }
    damaged = store.verify(unchanged)
    if damaged and warns:
        _logger.warning(
            "%s: %d of the rows there %s damaged and will be made again (%s%s)",
            store.path,
            len(damaged),
            "is" if len(damaged) == 1 else "are",
            damaged[0],
            ", ..." if len(damaged) > 1 else "",
        )
    sound = unchanged.difference(damaged)
    return [image for image in found if image.key not in sound]


def find_unlisted(keys: Sequence[str], found: Sequence[ImageFile]) -> set[str]:
    """Those of `keys` whose image is gone, without those in a folder or tar that cannot be read now."""
    closed = tuple(f"{image.key}/" for image in found if image.problem)
    return {key for key in set(keys).difference(image.key for image in found) if not key.startswith(closed)}
