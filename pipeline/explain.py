"""Explain one image: pixels -> features -> initial state -> words, with every number on the way."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from captionmill.data.captions.files import CaptionFiles, Captions, as_caption_files
from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.vocabulary import SPECIAL_WORDS
from captionmill.data.errors import ImageError, InputError, ModelError
from captionmill.data.features.file import Features
from captionmill.data.features.rows import mean_views
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.files import write_text
from captionmill.data.images.decode import Pixels
from captionmill.data.images.keys import FileFinder, image_key, match_forms
from captionmill.data.images.read import UNKNOWN_SOURCE, ImageFile, is_unchanged, load_image
from captionmill.data.models.bundle import Model, model_paths
from captionmill.data.models.source import find_models
from captionmill.data.paths import AnyPath, AnyPaths, as_location, as_path
from captionmill.data.tables.formats import require_other_output
from captionmill.stages.decoding.trained import read_models
from captionmill.stages.encoding.encoder import Encoder, encoder_for_spec, prepare_image
from captionmill.stages.encoding.engine import build_engine, encode_batches
from captionmill.stages.encoding.loader import load_batches
from captionmill.stages.machine import require_machine
from captionmill.stages.settings import ExtractConfig, SearchConfig

if TYPE_CHECKING:
    from captionmill.pipeline.pages.explain_words import ImageExplanation

_ROLES = {
    "train": "{model} was trained on it",
    "val": "the best epoch of {model} was chosen with it",
    "test": "{model} has not seen it, it is in its test split",
}


def explain_image(
    image: AnyPath,
    model: AnyPaths,
    *,
    output: AnyPath | None = None,
    features: AnyPath | None = None,
    captions: Captions | None = None,
    key: str | None = None,
    search: SearchConfig = SearchConfig(),
    machine: ExtractConfig = ExtractConfig(),
    weights: AnyPath | None = None,
) -> "ImageExplanation":
    """How `model` captions `image`, a file or its URL, step by step; several folders in `model` are an ensemble.

    The caption is that of `caption_folder` by the same `search`. The features are made as it makes them, or taken from
    the store `features` without opening the network; then the image need not be there. `captions` holds references in
    any format that `train` reads. In both, the image is found under `key`, or else under the end of its path that is a
    key. Captions are sampled for that key, or else for the name of the file. `output` is a page (HTML) to write.

    Raises InputError if the image cannot be read, is not in the store or the captions file, or is not the one that the
    store's row was made from; WeightsError and SpecMismatchError as `caption_folder`.
    """
    require_machine(machine)
    image, folders = _locate(image), find_models(model)
    output, features, weights = map(as_path, (output, features, weights))
    captions = None if captions is None else as_caption_files(captions)
    if output:
        local = image if isinstance(image, Path) else None
        require_other_output(
            output, local, features, weights, *(captions.paths if captions else ()), *model_paths(*folders)
        )
    models = read_models(folders)
    if len(models.vocabulary) == len(SPECIAL_WORDS):
        raise ModelError(f"{folders[0]}: its vocabulary has no words; train it with a smaller `min_count`")
    search = models.fit_search(search)
    pixels = _load_pixels(image, needed=features is None)
    is_sure = key is not None
    store = FeatureStore.open(features) if features else None
    if store is not None:
        key = _stored_key(image, key, store, pixels, models.spec)
        is_sure = is_sure or pixels is None or store.source(key) != UNKNOWN_SOURCE
    references = _read_references(image, key, captions, models.vocabulary.word_rule) if captions else _References()
    key = key or references.key
    from captionmill.pipeline.pages.explain_words import ImageExplanation
    from captionmill.stages.decoding.captioner import Captioner  # takes time, after which errors would show
    from captionmill.stages.decoding.explain import explain_features

    captioner = Captioner.of(models, device=machine.device)
    if store is not None and key:
        row = _stored_row(store, key, pixels, models.spec)
    else:
        row = _made_row(image, encoder_for_spec(models.spec, machine, weights), machine)
    names = tuple(image_key(folder.name or str(folder)) for folder in folders)
    explained = ImageExplanation(
        name=image_key(str(image)),
        key=key or "",
        image=pixels,
        seen=row.seen,
        origin=row.origin,
        role=_describe_role(image, key, names, models.bundles, is_sure=is_sure),
        references_from=references.origin,
        models=names,
        bundles=models.bundles,
        search=search,
        explanation=explain_features(
            captioner.steps,
            row.values,
            captioner.vocabulary,
            search,
            references.texts,
            key=key or _key_of_name(image),
            rankers=captioner.rankers,
        ),
    )
    if output:
        from captionmill.pipeline.pages.explanation import render_explanation

        write_text(output, render_explanation(explained))
    return explained


def features_of_image(image: AnyPath, spec: FeatureSpec, machine: ExtractConfig, weights: Path | None) -> Features:
    """The row [D] that a store with this spec would hold of an image file or its URL; errors as `explain_image`."""
    return _made_row(image, encoder_for_spec(spec, machine, weights), machine).values


@dataclass(frozen=True)
class _ExplainedRow:
    """The features of the image, and where they come from."""

    values: Features  # [D]
    seen: Pixels | None
    """What the network saw or would see of the image, [H, W, 3]."""
    origin: str


@dataclass(frozen=True)
class _References:
    """The captions by people, none by default."""

    key: str | None = None
    texts: tuple[str, ...] = ()
    origin: str = ""


def _locate(image: AnyPath) -> AnyPath:
    """A URL as it is; a file as a path, also if its key in a table of captions is given."""
    location = as_location(image)
    return location if isinstance(location, str) else FileFinder(Path()).find(str(location))


def _key_of_name(image: AnyPath) -> str:
    """The key of the image under its file name only."""
    return image_key(image.name if isinstance(image, Path) else PurePosixPath(image).name)


def _load_pixels(image: AnyPath, *, needed: bool) -> Image.Image | None:
    if not needed and isinstance(image, Path) and not image.exists():
        return None
    try:
        return load_image(image)
    except ImageError as exc:
        if not needed and isinstance(image, str):  # out of reach now
            return None
        raise InputError(f"{image}: {exc}") from exc


def _stored_key(
    image: AnyPath, key: str | None, store: FeatureStore, pixels: Image.Image | None, spec: FeatureSpec
) -> str:
    """The key of `image` in `store`; raises an error if the row is of another image or of other features."""
    spec.require(store.spec, mine="the model", others=str(store.path))
    found = _require_key(image, key, store.keys, str(store.path))
    if pixels and not is_unchanged(ImageFile(found, image), store.source(found)):
        raise InputError(f"{image}: not what the row {found} of {store.path} was made from; leave out `features`")
    return found


def _stored_row(store: FeatureStore, key: str, pixels: Image.Image | None, spec: FeatureSpec) -> _ExplainedRow:
    seen = prepare_image(np.asarray(pixels), spec) if pixels else None
    return _ExplainedRow(store[key], seen, f"the row {key} of {store.path.name}, stored as {store.dtype}")


def _read_references(image: AnyPath, key: str | None, captions: CaptionFiles, word_rule: int) -> _References:
    annotations = read_annotations(captions, word_rule=word_rule)
    found = _require_key(image, key, annotations.captions.keys(), captions.name)
    return _References(
        found, annotations.captions[found], f"{found} in {', '.join(path.name for path in captions.paths)}"
    )


def _made_row(image: AnyPath, encoder: Encoder, machine: ExtractConfig) -> _ExplainedRow:
    """The row that a store would hold of the image."""
    engine = build_engine(encoder, machine)
    batches = load_batches(
        [ImageFile(str(image), image)],
        encoder.prepare,
        least_size=encoder.least_size,
        batch_size=engine.batch_size,
        workers=1,
    )
    [(batch, rows)] = encode_batches(engine, batches)
    for failure in batch.failures:
        raise InputError(f"{image}: {failure.reason}")
    row: Features = mean_views(rows.astype(np.dtype(machine.dtype)), encoder.spec.view_count)[0]
    origin = f"made now by {engine.description}, rounded to {machine.dtype} as in a store"
    return _ExplainedRow(row, np.split(batch.images[0], encoder.crop_count)[0], origin)


def _require_key(image: AnyPath, key: str | None, keys: Collection[str], where: str) -> str:
    """The key of `image` among `keys`; InputError if there is none, or several fit equally."""
    if key is not None:
        key = match_forms([key], keys).get(key, key)
        if key not in keys:
            raise InputError(f"{key}: not in {where}; pass another `key`")
        return key
    found = _find_keys(image, keys)
    if len(found) > 1:
        raise InputError(
            f"{image}: {len(found)} keys of {where} end like this, {found[0]} first; choose one with `key`"
        )
    if not found:
        raise InputError(f"{image}: not in {where}, by its path or its name; give its name there as `key`")
    return found[0]


def _find_keys(image: AnyPath, keys: Collection[str]) -> list[str]:
    """The keys that `image` may have: the longest end of its path that is one, else all of its file name, sorted."""
    for path in (image, image.absolute()) if isinstance(image, Path) else (image,):
        if isinstance(path, str) and path in keys:
            return [path]
        parts = PurePosixPath(image_key(str(path))).parts
        tails = [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]
        forms = match_forms(tails, keys)
        for tail in tails:
            if (known := forms.get(tail, tail)) in keys:
                return [known]
    name = _key_of_name(image)
    return sorted(key for key in keys if key.endswith(f"/{name}"))


def _describe_role(
    image: AnyPath, key: str | None, models: Sequence[str], bundles: Sequence[Model], *, is_sure: bool
) -> str:
    """What the image was to each model; carefully, if only its name is known."""
    roles: dict[str, list[str]] = {}
    for name, bundle in zip(models, bundles, strict=True):
        splits = {split_key: split for split, keys in bundle.splits.items() for split_key in keys}
        model = "the model" if len(bundles) == 1 else f"model {name}"
        known = [key] if key else _find_keys(image, splits)
        for found in known if len(known) == 1 else []:  # a name that many have proves nothing
            role = _ROLES[splits[found]] if found in splits else "{model} does not know it"
            roles.setdefault(found, []).append(role.format(model=model))
    which = "this is {}" if is_sure else "by its name, this may be {}"
    return "; ".join(f"{which.format(found)}: {', '.join(known_roles)}" for found, known_roles in roles.items())
