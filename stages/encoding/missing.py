"""Compares settings and images with a store that is there: what differs, what must be made, what has no image."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from captionmill.data.errors import StoreError
from captionmill.data.features.spec import SPEC_SETTINGS, Preprocess
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.images.read import ImageFile, ImageSource, is_unchanged
from captionmill.stages.settings import ExtractConfig

_logger = logging.getLogger(__name__)


def as_made(path: Path, config: ExtractConfig, others: Sequence[Path] = ()) -> ExtractConfig:
    """`config` with the preprocessing of the store at `path`, or else of one of `others`, where it sets none.

    So shards are of one kind. Raises SpecMismatchError if another setting is not that of the store at `path`, before
    any weights are looked for.
    """
    made = next(filter(store_exists, (path, *others)), None)
    if made is None:
        return config
    try:
        spec = FeatureStore.open(made).spec
    except StoreError:  # raised again when it is opened to be written
        return config
    config = replace(config, preprocess=config.preprocess or cast(Preprocess, spec.preprocess))
    if made == path:
        spec.require_run(replace(spec, **{name: getattr(config, name) for name in SPEC_SETTINGS}), made)
    return config


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
