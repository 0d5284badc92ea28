"""Where a model comes from: a folder, a packed file, or a URL of either, which is fetched once.

`#sha256=...` behind a file or a URL is the SHA-256 of the packed file, or of the `bundle.json` of a folder, which holds
that of the weights: with it, a model that has changed is refused.

Packed and fetched models are kept unpacked in the cache, each under its SHA-256. What was fetched from a URL is noted
beside it, so that the URL is not asked again; deleting the folder makes captionmill fetch it again.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from captionmill.data.cache import folder_aside
from captionmill.data.errors import ImageError, InputError, ModelError
from captionmill.data.files import write_text
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.models.archive import unpack_model
from captionmill.data.models.bundle import BUNDLE_NAME, CARD_NAME, Model, model_digest, read_bundle, weights_names_of
from captionmill.data.paths import AnyPath, AnyPaths, cache_dir
from captionmill.data.regular import read_bytes, read_text
from captionmill.data.urls import is_url, read_url

_HASH = re.compile(r"(?P<place>.*)#sha256=(?P<digest>[0-9a-fA-F]{64})")


def find_models(models: AnyPaths) -> list[Path]:
    """The folders of one model or of several, as `find_model` finds each; InputError if one is named twice."""
    names = [models] if isinstance(models, Path | str) else list(models)
    return require_each_once([find_model(name) for name in names], names)


def require_each_once(folders: list[Path], names: Sequence[AnyPath]) -> list[Path]:
    """`folders`, the places of the models that `names` name; InputError if two are one, which would count twice."""
    places = [os.path.realpath(folder) for folder in folders]  # of links in a circle too, which are refused later
    for place, name in zip(places, names, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{name}: this model is named twice; name each model once")
    return folders


def read_model(model: AnyPath) -> Model:
    """The model in a folder, in a file that `pack_model` wrote, or at a URL of one of them.

    Raises ModelError if there is none, or its files are damaged or do not belong together; otherwise as `find_model`.
    """
    return read_bundle(find_model(model))


def find_model(model: AnyPath) -> Path:
    """The folder with `model`: a folder, a file that `pack_model` wrote, or a URL of one of them.

    A folder need not hold a model. Raises ModelError if a file or URL is not a model or has another SHA-256 than it
    names, InputError if a URL cannot be read.
    """
    match = _HASH.fullmatch(str(model))
    place, digest = (match["place"], match["digest"].lower()) if match else (str(model), None)
    if "#sha256=" in place or (match is None and "#sha256=" in str(model)):
        raise ModelError(f"{model}: #sha256= needs 64 hexadecimal digits")
    if is_url(place):
        return _fetch(place, digest)
    path = Path(place)
    if path.is_file():
        content = read_bytes(path)
        return _keep(place, content, digest, lambda folder: unpack_model(content, folder, place))
    if digest is not None and (path / BUNDLE_NAME).exists():
        _require_digest(place, model_digest(path), digest)
    return path


def _fetch(url: str, digest: str | None) -> Path:
    """The folder of the cache with the model at `url`, fetched unless it was before."""
    note = cache_dir("models") / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
    try:
        known = str(parse_json(read_text(note))["sha256"])
    except (OSError, *WRONG_VALUES):
        known = None
    if known is not None and digest in (None, known) and (kept := cache_dir("models") / known).is_dir():
        return kept
    if url.endswith(".tar"):
        content = _fetch_bytes(url)
        folder = _keep(url, content, digest, lambda folder: unpack_model(content, folder, url))
    else:
        bundle = _fetch_bytes(f"{url.rstrip('/')}/{BUNDLE_NAME}")
        folder = _keep(url, bundle, digest, lambda folder: _fetch_files(url.rstrip("/"), bundle, folder))
    write_text(note, json.dumps({"url": url, "sha256": folder.name}) + "\n")
    return folder


def _fetch_files(url: str, bundle: bytes, folder: Path) -> None:
    (folder / BUNDLE_NAME).write_bytes(bundle)
    names = weights_names_of(folder)
    if not names:
        raise ModelError(f"{url}/{BUNDLE_NAME}: not a captionmill model")
    for name in names:
        (folder / name).write_bytes(_fetch_bytes(f"{url}/{name}"))
    try:
        (folder / CARD_NAME).write_bytes(read_url(f"{url}/{CARD_NAME}", attempts=1))
    except ImageError:  # older models have no card
        return


def _fetch_bytes(url: str) -> bytes:
    try:
        return read_url(url)
    except ImageError as exc:
        raise InputError(f"{url}: {exc}") from exc


def _require_digest(place: str, found: str, wanted: str | None) -> None:
    if wanted not in (None, found):
        raise ModelError(f"{place}: is not the model that its #sha256 names; its SHA-256 is {found}")


def _keep(place: str, content: bytes, digest: str | None, fill: Callable[[Path], None]) -> Path:
    """The folder of the cache with the model at `place`, called by the SHA-256 of `content`; if it is new, filled."""
    found = hashlib.sha256(content).hexdigest()
    _require_digest(place, found, digest)
    kept = cache_dir("models") / found
    if not kept.is_dir():
        with folder_aside(kept) as folder:
            fill(folder)
            try:
                read_bundle(folder)
            except ModelError as exc:
                raise ModelError(str(exc).replace(str(folder), place)) from exc
    return kept
