"""Explain one picture: image -> features -> initial state -> words, with every number on the way."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from captionmill.data.annotations import read_annotations
from captionmill.data.atomic import require_other_file, write_text
from captionmill.data.bundle import Bundle
from captionmill.data.errors import BundleError, ImageError, InputError
from captionmill.data.feature_store import FeatureStore
from captionmill.data.image_files import ImageFile, image_key, is_unchanged, load_image
from captionmill.data.image_source import UNKNOWN_SOURCE
from captionmill.data.store_file import Features
from captionmill.data.vocabulary import SPECIAL_WORDS
from captionmill.pipeline.folder import build_model_encoder
from captionmill.stages.config import ExtractConfig, SearchConfig
from captionmill.stages.decoding.caption import Captioner
from captionmill.stages.decoding.decoder import DecoderConfig
from captionmill.stages.decoding.explain import Explanation, explain_features
from captionmill.stages.encoding.encoder import Encoder, Pixels, prepare_image
from captionmill.stages.encoding.engine import build_engine, encode_batches
from captionmill.stages.encoding.loader import load_batches

_ROLES = {
    "train": "{model} was trained on it",
    "val": "the best epoch of {model} was chosen with it",
    "test": "{model} has not seen it, it is in its test split",
}


@dataclass(frozen=True)
class PictureExplanation:
    """One picture's way to its caption, and where each part comes from."""

    name: str
    """The picture as the user named it."""
    key: str
    """What the store or the captions file calls it; "" if neither was asked."""
    picture: Image.Image | None
    """Upright RGB; None if only its row in a store is here."""
    seen: Pixels | None
    """What the network sees of it, [H, W, 3]; None without the picture."""
    origin: str
    """Where the features come from."""
    role: str
    """What the picture was to the model, as far as its key tells; "" without any sign."""
    references_from: str
    """Which captions the references are; "" without any."""
    models: tuple[str, ...]
    """Names of the models' folders."""
    bundles: tuple[Bundle, ...]
    search: SearchConfig
    explanation: Explanation

    @property
    def caption(self) -> str:
        """What the captioner says."""
        return self.bundles[0].vocabulary.decode(self.explanation.beam.words)

    @property
    def greedy_caption(self) -> str:
        """What the highest logit at each step says."""
        return self.bundles[0].vocabulary.decode(self.explanation.greedy.words)

    @property
    def decoders(self) -> tuple[DecoderConfig, ...]:
        """What each model's decoder was built from."""
        return tuple(DecoderConfig(**bundle.decoder_config) for bundle in self.bundles)


def explain_picture(
    image: Path,
    model: Path | Sequence[Path],
    *,
    output: Path | None = None,
    features: Path | None = None,
    captions: Path | None = None,
    key: str | None = None,
    search: SearchConfig = SearchConfig(),
    machine: ExtractConfig = ExtractConfig(),
    weights: Path | None = None,
) -> PictureExplanation:
    """The way of the picture `image` to its caption by `model`; several folders are an ensemble.

    The features are made as `caption` makes them, or taken from the store `features` without opening the network; then
    the picture need not be there. `captions` holds references in any format that `train` reads. In both, the picture is
    found under `key`, or else under the end of its path that is a key. `output` is a page (HTML) to write.

    Raises InputError if the picture cannot be read, is not in the store or the captions file, or is not the one that
    the store's row was made from; WeightsError and SpecMismatchError as `caption_folder`.
    """
    if output:
        require_other_file(output, image, features, captions)
    captioner = Captioner.load(model, device=machine.device)
    if len(captioner.vocabulary) == len(SPECIAL_WORDS):
        raise BundleError("the model's vocabulary has no words: train it with a smaller --min-count")
    picture = _load_picture(image, needed=features is None)
    is_sure = key is not None
    if features:
        store = FeatureStore.open(features)
        captioner.spec.require(store.spec, mine="the model", others=str(features))
        key = _require_key(image, key, store.keys, str(features))
        row, origin = store[key], f"the row {key} of {features.name}, stored as {store.dtype}"
        is_sure = is_sure or picture is None or store.source(key) != UNKNOWN_SOURCE
        if picture and not is_unchanged(ImageFile(key, image), store.source(key)):
            raise InputError(f"{image}: not what the row {key} of {features} was made from; leave out --features")
    else:
        row, origin = _encode(image, build_model_encoder(captioner.spec, machine, weights), machine)
    references: tuple[str, ...] = ()
    references_from = ""
    if captions:
        annotations = read_annotations(captions)
        found = _require_key(image, key, annotations.captions.keys(), str(captions))
        references, references_from = annotations.captions[found], f"{found} in {captions.name}"
        key = key or found
    folders = [model] if isinstance(model, Path) else model
    names = tuple(image_key(folder.name or str(folder)) for folder in folders)
    explained = PictureExplanation(
        name=image_key(str(image)),
        key=key or "",
        picture=picture,
        seen=prepare_image(picture, captioner.spec) if picture else None,
        origin=origin,
        role=_tell_role(image, key, names, captioner.bundles, is_sure=is_sure),
        references_from=references_from,
        models=names,
        bundles=captioner.bundles,
        search=search,
        explanation=explain_features(captioner.decoder, row, captioner.vocabulary, search, references),
    )
    if output:
        from captionmill.pipeline.explain_page import render_page

        write_text(output, render_page(explained))
    return explained


def _load_picture(image: Path, *, needed: bool) -> Image.Image | None:
    if not needed and not image.exists():
        return None
    try:
        return load_image(image)
    except ImageError as exc:
        raise InputError(f"{image}: {exc}") from exc


def _encode(image: Path, encoder: Encoder, machine: ExtractConfig) -> tuple[Features, str]:
    """The row that a store would hold of the picture, [D], and what made it."""
    engine = build_engine(encoder, machine)
    batches = load_batches(
        [ImageFile(image.name, image)],
        encoder.prepare,
        least_size=encoder.least_size,
        batch_size=machine.batch_size,
        workers=1,
    )
    for batch, rows in encode_batches(engine, batches):
        for failure in batch.failures:
            raise InputError(f"{image}: {failure.reason}")
        row: Features = rows[0].astype(np.dtype(machine.dtype))
        return row, f"made now by {engine.description}, rounded to {machine.dtype} as in a store"
    raise InputError(f"{image}: cannot be read")


def _require_key(image: Path, key: str | None, keys: Collection[str], where: str) -> str:
    """The key of `image` among `keys`; InputError if there is none, or several fit equally."""
    if key is not None:
        if key not in keys:
            raise InputError(f"{key}: not in {where}; pass another --key")
        return key
    found = _find_keys(image, keys)
    if len(found) > 1:
        raise InputError(
            f"{image}: {len(found)} keys of {where} end like this, {found[0]} first; choose one with --key"
        )
    if not found:
        raise InputError(f"{image}: not in {where}, by its path or its name; say what it is called there with --key")
    return found[0]


def _find_keys(image: Path, keys: Collection[str]) -> list[str]:
    """The keys that `image` may have: the longest end of its path that is one, else all of its file name, sorted."""
    for path in (image, image.absolute()):
        parts = PurePosixPath(image_key(str(path))).parts
        for start in range(len(parts)):
            if (tail := str(PurePosixPath(*parts[start:]))) in keys:
                return [tail]
    name = image_key(image.name)
    return sorted(key for key in keys if key.endswith(f"/{name}"))


def _tell_role(image: Path, key: str | None, models: Sequence[str], bundles: Sequence[Bundle], *, is_sure: bool) -> str:
    """What the picture was to each model; carefully, if the name is all that tells."""
    roles: dict[str, list[str]] = {}
    for name, bundle in zip(models, bundles, strict=True):
        splits = {split_key: split for split, keys in bundle.splits.items() for split_key in keys}
        model = "the model" if len(bundles) == 1 else f"model {name}"
        for found in [key] if key else _find_keys(image, splits):
            role = _ROLES[splits[found]] if found in splits else "{model} does not know it"
            roles.setdefault(found, []).append(role.format(model=model))
    which = "this is {}" if is_sure else "the model knows a picture called {}, perhaps this one"
    return "; ".join(f"{which.format(found)}: {', '.join(told)}" for found, told in roles.items())
