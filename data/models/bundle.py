"""A trained decoder on disk: a folder with `bundle.json` (everything but the weights) and its safetensors files.

One file holds the decoder's weights; another, which models of earlier versions lack, is what re-ranks its captions.
`bundle.json` names them and their SHA-256 and is written last, in one rename: a reader finds either the old model or
the new one, and the vocabulary always belongs to the weights. Loading a model never runs code from it.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.captions.words import FIRST_RULE
from captionmill.data.errors import InputError, ModelError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.files import write_bytes, write_text
from captionmill.data.foreign import WRONG_VALUES, finite_number, parse_json, text_of
from captionmill.data.images.keys import match_forms
from captionmill.data.regular import read_bytes, read_text

Tensors = Mapping[str, npt.NDArray[Any]]

BUNDLE_NAME = "bundle.json"
CARD_NAME = "README.md"
_WEIGHTS_NAME = re.compile(r"(decoder|ranker)-[0-9a-f]{12}\.safetensors")
FORMAT = "captionmill-bundle"
FORMAT_VERSION = 1
LOW_CONFIDENCE = "val_confidence_p10"
"""Key in `scores`: a tenth of the validation captions have a confidence below this value."""
RERANKED_LOW_CONFIDENCE = "val_confidence_p10_reranked"
"""The same, of the captions that the ranker chooses."""
RERANKED_CIDER = "val_cider_d_reranked"
"""Key in `scores`: CIDEr-D of the validation captions that the ranker chooses."""


@dataclass(frozen=True)
class RankerParts:
    """What re-ranks the captions of a search (`stages/ranking`)."""

    settings: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """Everything that captioning needs besides features."""

    decoder_config: dict[str, Any]
    """Sizes of the decoder, the fields of `DecoderConfig`."""
    vocabulary: Vocabulary
    spec: FeatureSpec
    """The network and the preprocessing that made the features of the training images."""
    training: dict[str, Any]
    """The settings of the training run."""
    splits: dict[str, list[str]] = field(repr=False)
    """Image keys: trained on ("train"), used to choose the best epoch ("val"), held out ("test")."""
    scores: dict[str, float]
    """Validation scores of the epoch that was kept."""
    versions: dict[str, str]
    """Versions of the software that made it."""
    tensors: Tensors = field(repr=False)
    """The weights by name."""
    notes: tuple[str, ...] = ()
    """What a person should know of the training, a line each, such as warnings and an unusual choice of the epoch."""
    ranker: RankerParts | None = field(default=None, repr=False)
    """What re-ranks its captions, if the training made it."""

    @property
    def reranks_validation(self) -> bool:
        """Whether the validation captions of every epoch were re-ranked, so that these chose the epoch."""
        search = self.training.get("search")
        return isinstance(search, dict) and search.get("rerank") in ("consensus", "matcher", "both")

    def splits_in(self, known_keys: Collection[str]) -> dict[str, list[str]]:
        """The splits; an image that differs from one of `known_keys` only in its Unicode form gets that key."""
        forms = match_forms(itertools.chain.from_iterable(self.splits.values()), known_keys)
        return {name: [forms.get(key, key) for key in keys] for name, keys in self.splits.items()}


def model_exists(folder: Path) -> bool:
    """Whether `folder` holds a model."""
    return (folder / BUNDLE_NAME).exists()


def require_no_model(output: Path, *, overwrite: bool) -> None:
    """Raise InputError unless a model may be written into the folder `output`."""
    if model_exists(output) and not overwrite:
        raise InputError(f"{output}: holds a model already; pass `overwrite` to replace it, or another `output`")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; `output` must be a folder")


def model_digest(folder: Path) -> str:
    """SHA-256, in hex, of the `bundle.json` in `folder`, which contains the hash of the weights."""
    return hashlib.sha256(read_bytes(folder / BUNDLE_NAME)).hexdigest()


def write_model(folder: Path, model: Model) -> None:
    """Write `model` into `folder`, replacing any model there, and weights that a killed process left beside it."""
    entries: dict[str, Any] = {"weights": _write_tensors(folder, "decoder", model.tensors)}
    if model.ranker is not None:
        entries["ranker"] = _write_tensors(folder, "ranker", model.ranker.tensors) | {"settings": model.ranker.settings}
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **entries,
        "decoder": model.decoder_config,
        "features": model.spec.to_json(),
        "training": model.training,
        "scores": model.scores,
        "versions": model.versions,
        "notes": list(model.notes),
        "word_rule": model.vocabulary.word_rule,
        "vocabulary": list(model.vocabulary.words),
        "splits": model.splits,
    }
    write_text(folder / BUNDLE_NAME, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    named = {entry["file"] for entry in entries.values()}
    for path in list(folder.iterdir()):
        if is_weights_name(path.name) and path.name not in named and path.is_file():
            path.unlink(missing_ok=True)


def _write_tensors(folder: Path, kind: str, tensors: Tensors) -> dict[str, Any]:
    """Write a file of `tensors`, named after its `kind` and content -> its name and SHA-256."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"{kind}-{digest[:12]}.safetensors"
    write_bytes(path, content)
    return {"file": path.name, "sha256": digest}


def _read_tensors(folder: Path, entry: Mapping[str, Any]) -> Tensors:
    if not is_weights_name(entry["file"]):
        raise ModelError(f"{folder / BUNDLE_NAME}: {entry['file']!r} is no name of a weights file")
    content = read_bytes(folder / entry["file"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ModelError(f"{folder}: {entry['file']} is not the file that {BUNDLE_NAME} was written with")
    tensors: Tensors = safetensors.numpy.load(content)
    return tensors


class _TensorsOfFile(Mapping[str, npt.NDArray[Any]]):
    """The tensors of one of a model's files, read and checked when they are first used."""

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self._folder, self._entry = folder, entry

    @cached_property
    def _tensors(self) -> Tensors:
        with _model_damage_named(self._folder):
            return _read_tensors(self._folder, self._entry)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def model_paths(*folders: Path) -> list[Path]:
    """The files of the models in `folders`, which need not exist; no output may overwrite them."""
    return [folder / name for folder in folders for name in (BUNDLE_NAME, *weights_names_of(folder))]


def _require_record(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:40]!r} is no record")
    return value


def _image_keys(values: object) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("a split is not a list of strings")
    return values


def weights_names_of(folder: Path) -> list[str]:
    """The names of the weights files of the model in `folder`, if there is one; only these may be removed."""
    try:
        values = parse_json(read_text(folder / BUNDLE_NAME))
        names = [values["weights"]["file"], *([values["ranker"]["file"]] if "ranker" in values else [])]
    except (OSError, *WRONG_VALUES):
        return []
    return [name for name in names if is_weights_name(name)]


def is_weights_name(name: object) -> bool:
    """Whether a model's weights may have this name: no other file of a folder can be meant."""
    return isinstance(name, str) and _WEIGHTS_NAME.fullmatch(name) is not None


def read_bundle(folder: Path, *, weights_later: bool = False) -> Model:
    """The model in `folder`; ModelError if there is none, or its files are damaged or do not belong together.

    `weights_later` reads and checks the tensors only when they are first used, for a run that may not need them.
    """
    path = folder / BUNDLE_NAME
    find_tensors = _TensorsOfFile if weights_later else _read_tensors
    with _model_damage_named(folder):
        values = parse_json(read_text(path))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ModelError(f"{path}: not a captionmill model")
        if values["format_version"] != FORMAT_VERSION:
            raise ModelError(
                f"{path}: format version {values['format_version']}, this captionmill reads {FORMAT_VERSION}"
            )
        tensors = find_tensors(folder, _require_record(values["weights"]))
        ranker = values.get("ranker")
        spec = FeatureSpec.from_json(values["features"])
        for name in ("embed_dim", "hidden_dim"):
            finite_number(values["decoder"][name])
        if values["decoder"]["feature_dim"] != spec.feature_dim:
            raise ModelError(
                f"{path}: its decoder takes {values['decoder']['feature_dim']} numbers per image, "
                f"and its features have {spec.feature_dim}; train it again"
            )
        return Model(
            decoder_config=_require_record(values["decoder"]),
            vocabulary=Vocabulary(values["vocabulary"], values.get("word_rule", FIRST_RULE)),
            spec=spec,
            training=_require_record(values["training"]),
            splits={name: _image_keys(values["splits"][name]) for name in ("train", "val", "test")},
            scores={name: finite_number(score) for name, score in values["scores"].items()},
            versions={name: text_of(version) for name, version in values["versions"].items()},
            tensors=tensors,
            notes=tuple(map(str, values.get("notes", ()))),
            ranker=RankerParts(_require_record(ranker["settings"]), find_tensors(folder, ranker)) if ranker else None,
        )


@contextmanager
def _model_damage_named(folder: Path) -> Iterator[None]:
    """Raise ModelError with the reason for whatever a damaged model in `folder` raises in the block."""
    try:
        yield
    except ModelError:
        raise
    except FileNotFoundError as exc:
        raise ModelError(
            f"{folder}: no trained model here ({exc.filename} is missing); make one with `captionmill train`"
        ) from exc
    except (OSError, SafetensorError, *WRONG_VALUES) as exc:
        problem = " ".join(repr(exc).split())[:200]
        raise ModelError(f"{folder / BUNDLE_NAME}: not a readable model ({problem}); train it again") from exc
