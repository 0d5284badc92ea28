"""A feature store and a model with a matcher that fit together: checked by their headers, before torch is imported."""

from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import Model, RankerParts, read_bundle
from captionmill.data.models.source import find_model
from captionmill.data.paths import AnyPath


@dataclass(frozen=True)
class MatchedStore:
    """Images as rows of a store, and the model that compares them with words."""

    store: FeatureStore
    model: Model
    folder: Path
    """The folder of the model."""
    ranker: RankerParts
    """What the model keeps of its matcher and more."""


def open_matched(features: AnyPath, model: AnyPath) -> MatchedStore:
    """The store `features` and the matcher of `model`: a folder, a packed file or a URL.

    Raises StoreError or ModelError if one cannot be opened, SpecMismatchError if the features are not of the model's
    kind, InputError if the model has no matcher.
    """
    folder = find_model(model)
    store, bundle = FeatureStore.open(features), read_bundle(folder)
    bundle.spec.require(store.spec, mine="the model", others=str(store.path))
    if bundle.ranker is None or "matcher" not in bundle.ranker.settings:
        raise InputError(
            f"{folder}: has no matcher, which compares images with words; train it again, with `matcher_epochs` above 0"
        )
    return MatchedStore(store, bundle, folder, bundle.ranker)
