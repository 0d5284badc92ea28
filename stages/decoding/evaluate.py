"""What a decoder is worth: captions decoded from cached features, scored against every reference."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from captionmill.data.annotations import Annotations, read_annotations, read_split_list
from captionmill.data.atomic import require_other_file, write_text
from captionmill.data.bundle import Bundle
from captionmill.data.errors import AnnotationError
from captionmill.data.feature_store import FeatureStore
from captionmill.stages.config import SearchConfig
from captionmill.stages.decoding.caption import Caption, Captioner
from captionmill.stages.runtime import Progress, no_progress
from captionmill.stages.scoring.metrics import Scores, score_captions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on some images, and what they were measured on."""

    scores: Scores
    captions: dict[str, Caption]
    """The decoded caption of each image scored, by key."""
    references: dict[str, tuple[str, ...]]
    """The captions that each was scored against."""
    chosen_by: str
    """Why these images: the list, the captions file's test split, or what the model has not seen."""
    missing: tuple[str, ...]
    """Images that were to be scored, but have no features or no references."""


def evaluate(
    features: Path,
    model: Path | Sequence[Path],
    captions: Path,
    *,
    image_list: Path | None = None,
    output: Path | None = None,
    search: SearchConfig = SearchConfig(),
    device: str = "auto",
    progress: Progress = no_progress,
) -> Evaluation:
    """Caption images of the store `features`, score them against `captions`, write the scores to `output` (JSON).

    Several folders in `model` are an ensemble. Its own test split is theirs without what any of them was trained on or
    chosen by.

    Scored are the images of `image_list`; without it those that the captions file puts in its test split; without that
    those of the model's own test split; without that all that the model was neither trained on nor chosen by.

    Raises AnnotationError if no such image has both features and references, SpecMismatchError if the features are not
    of the kind that the model was trained on.
    """
    if output:
        require_other_file(output, features, captions, image_list)
    captioner = Captioner.load(model, device=device)
    store = FeatureStore.open(features)
    annotations = read_annotations(captions)
    keys, chosen_by = _choose_keys(annotations, captioner.bundles, image_list)
    scored = [key for key in keys if key in store and key in annotations.captions]
    if not scored:
        raise AnnotationError(f"nothing to score: none of {len(keys)} images ({chosen_by}) has features and references")
    if trained_on := len({*scored} & _keys_of(captioner.bundles, "train").keys()):
        _log.warning("%d of the %d images scored are ones that the model was trained on", trained_on, len(scored))
    decoded = dict(captioner.captions(store, scored, search, progress=progress))
    references = {key: annotations.captions[key] for key in scored}
    evaluation = Evaluation(
        scores=score_captions({key: caption.text for key, caption in decoded.items()}, references),
        captions=decoded,
        references=references,
        chosen_by=chosen_by,
        missing=tuple(sorted(set(keys) - set(scored))),
    )
    if output:
        write_text(
            output, json.dumps(_to_json(evaluation, model, features, search), indent=1, ensure_ascii=False) + "\n"
        )
    return evaluation


def _choose_keys(annotations: Annotations, bundles: Sequence[Bundle], image_list: Path | None) -> tuple[list[str], str]:
    if image_list:
        return read_split_list(image_list), f"listed in {image_list.name}"
    if keys := annotations.keys_of("test"):
        return keys, "test split of the captions file"
    seen = _keys_of(bundles, "train", "val")
    if keys := [key for key in _keys_of(bundles, "test") if key not in seen]:
        return keys, "the model's own test split"
    return sorted(annotations.captions.keys() - seen), "images that the model has not seen"


def _keys_of(bundles: Sequence[Bundle], *splits: str) -> dict[str, None]:
    """The images that are in one of the `splits` of any of the models, each once, in their order."""
    return dict.fromkeys(key for bundle in bundles for split in splits for key in bundle.splits[split])


def _to_json(
    evaluation: Evaluation, model: Path | Sequence[Path], features: Path, search: SearchConfig
) -> Mapping[str, object]:
    names = [folder.name for folder in ([model] if isinstance(model, Path) else model)]
    return {
        "model": names[0] if len(names) == 1 else names,
        "features": features.name,
        "images": len(evaluation.captions),
        "images_chosen_by": evaluation.chosen_by,
        "missing": list(evaluation.missing),
        "beam_size": search.beam_size,
        "scores": {name: round(value, 6) for name, value in asdict(evaluation.scores).items()},
        "mean_confidence": _mean([caption.confidence for caption in evaluation.captions.values()]),
        "captions": {
            key: {"caption": caption.text, "references": evaluation.references[key]}
            for key, caption in evaluation.captions.items()
        },
    }


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 6)
