"""Evaluates a decoder: captions are decoded from cached features and scored against all references."""

import itertools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from captionmill.data.captions.files import Captions, as_caption_files
from captionmill.data.captions.references import read_annotations
from captionmill.data.csv_tables import Cell, require_own_table, write_table
from captionmill.data.errors import InputError
from captionmill.data.features.store import FeatureStore
from captionmill.data.files import write_text
from captionmill.data.models.bundle import model_paths
from captionmill.data.models.source import find_model, find_models
from captionmill.data.paths import AnyPath, AnyPaths, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.formats import require_other_output
from captionmill.stages.decoding.trained import read_models
from captionmill.stages.machine import require_device_name
from captionmill.stages.scoring.bootstrap import LEVEL, Estimate, compare, estimate
from captionmill.stages.scoring.collapse import describe_collapse
from captionmill.stages.scoring.java import JAVA_METRICS, measure_with_java
from captionmill.stages.scoring.metrics import Metric, Scores, measure_captions
from captionmill.stages.scoring.scored import (
    choose_complete,
    choose_keys,
    choose_word_rule,
    keys_of,
    splits_of,
    warn_of_training_images,
)
from captionmill.stages.scoring.settings import BootstrapConfig, EvaluateConfig
from captionmill.stages.scoring.statistics import (
    CaptionStatistics,
    CaptionTraits,
    describe_captions,
    find_traits,
)
from captionmill.stages.settings import SearchConfig

if TYPE_CHECKING:
    from captionmill.stages.decoding.captioner import Caption

_PER_IMAGE = ("key", "caption", "confidence")  # the first columns of the table with a row for each image
_TRAITS = ("copied", "repeated_word", "repeated_trigram")
_MEASURED = ("bleu_4", "rouge_l", "cider_d", "meteor", "spice", "words", *_TRAITS)  # the others, as far as measured
_YES_NO = {True: "yes", False: "no", None: ""}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelComparison:
    """Another model on the same images."""

    model: str
    """The name of its folder."""
    estimates: dict[str, Estimate]
    """Its score by each metric, with the 95 % interval."""
    differences: dict[str, Estimate]
    """The evaluated model's score minus this one's, with the 95 % interval of the paired bootstrap."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on some images, and what they were measured on."""

    estimates: dict[str, Estimate]
    """The score by each metric with its 95 % interval: the fields of `Scores`, then meteor and spice if available."""
    statistics: CaptionStatistics
    against: ModelComparison | None
    """The other model, if one was named."""
    left_out: tuple[str, ...]
    """The requested metrics that are not available here, with the reason."""
    captions: dict[str, "Caption"]
    """The decoded caption of each image scored, by key."""
    references: dict[str, tuple[str, ...]]
    """The reference captions of each image."""
    chosen_by: str
    """How the images were chosen: the list, the captions file's test split, or what the model has not seen."""
    missing: tuple[str, ...]
    """Images that should be scored, but have no features or no references."""
    damaged: tuple[str, ...]
    """Images that should be scored, but whose features are damaged: `extract` makes them again."""
    bootstrap: BootstrapConfig
    """How the intervals were computed."""

    @property
    def scores(self) -> Scores:
        """The scores that need no Java, without their intervals."""
        return Scores(**{field.name: self.estimates[field.name].value for field in fields(Scores)})


def evaluate(
    features: AnyPath,
    model: AnyPaths,
    captions: Captions,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    image_list: AnyPath | None = None,
    output: AnyPath | None = None,
    per_image: AnyPath | None = None,
    against: AnyPath | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Caption images of the store `features`, score them against `captions`, write the scores to `output` (JSON).

    Several folders in `model` form an ensemble. Its own test split is the union of theirs, without images that any of
    them was trained or validated on.

    The scored images are the first of these that exist: the images of `image_list`; the test split of the captions
    file; the model's own test split; all images that the model was neither trained nor validated on. `per_image` is a
    table (CSV) with one row per image; `against` is a second model that captions the same images.

    Raises AnnotationError if no such image has both features and references, SpecMismatchError if the features do not
    match those that a model was trained on, InputError if an output is an input or the other output.
    """
    features, models, captions = Path(features), find_models(model), as_caption_files(captions)
    require_device_name(config.device)
    image_list, output, per_image = map(as_path, (image_list, output, per_image))
    against = None if against is None else find_model(against)
    model_files = model_paths(*models, *([against] if against else []))
    _check_outputs(output, per_image, inputs=(features, *captions.paths, image_list, *model_files))
    trained = read_models(models)
    other = read_models(against) if against else None
    store = FeatureStore.open(features)
    trained.spec.require(store.spec, mine="the model", others=str(features))
    search = trained.fit_search(config.search)
    if other:
        other.spec.require(store.spec, mine=str(against), others=str(features))
        other.fit_search(config.search)  # what it cannot do shows before anything is captioned
    word_rule = choose_word_rule(trained, other)
    annotations = read_annotations(captions, known_keys=store.keys, word_rule=word_rule)
    splits = splits_of(trained, store)
    keys, chosen_by = choose_keys(annotations, splits, store, image_list)
    scored, damaged = choose_complete(keys, chosen_by, annotations, store)
    warn_of_training_images(splits, scored, "the model")
    if len(scored) == 1:
        _logger.warning(
            "one image: its CIDEr-D is 0 whatever its caption, since all words are equally rare in one image"
        )
    from captionmill.stages.decoding.captioner import Captioner  # takes time, after which errors would show

    captioner = Captioner.of(trained, device=config.device)
    other_captioner = Captioner.of(other, device=config.device) if other else None
    decoded = dict(captioner.captions(store, scored, search, progress=progress))
    references = {key: annotations.captions[key] for key in scored}
    texts = {key: caption.text for key, caption in decoded.items()}
    for line in describe_collapse(store, texts, references, captioner.vocabulary):
        _logger.warning("%s", line)
    metrics, left_out = _measure(texts, references, JAVA_METRICS if config.java_metrics else (), word_rule)
    comparison = None
    if against and other and other_captioner:
        warn_of_training_images(splits_of(other, store), scored, str(against))
        found = other_captioner.captions(store, scored, config.search, progress=progress)
        others = {key: caption.text for key, caption in found}
        had = [metric.name for metric in metrics if metric.name in JAVA_METRICS]
        other_metrics, other_left_out = _measure(others, references, had, word_rule)
        left_out += other_left_out
        differences = compare(metrics, other_metrics, config.bootstrap)
        comparison = ModelComparison(against.name, estimate(other_metrics, config.bootstrap), differences)
    trained_on = keys_of(splits, "train")
    training = [annotations.captions[key] for key in trained_on if key in annotations.captions]
    traits = find_traits(texts, itertools.chain.from_iterable(training), word_rule)
    evaluation = Evaluation(
        estimates=estimate(metrics, config.bootstrap),
        statistics=describe_captions(
            texts,
            traits,
            captioner.vocabulary,
            training_images=len(training),
            training_images_missing=len(trained_on) - len(training),
        ),
        against=comparison,
        left_out=left_out,
        captions=decoded,
        references=references,
        chosen_by=chosen_by,
        missing=tuple(sorted(set(keys).difference(scored, damaged))),
        damaged=tuple(damaged),
        bootstrap=config.bootstrap,
    )
    if per_image:
        _write_per_image(per_image, decoded, metrics, traits)
    if output:
        write_text(
            output,
            json.dumps(_to_json(evaluation, metrics, models, features, search), indent=1, ensure_ascii=False) + "\n",
        )
    return evaluation


def _check_outputs(output: Path | None, per_image: Path | None, *, inputs: Sequence[Path | None]) -> None:
    for path in (output, per_image):
        if path:
            require_other_output(path, *inputs)
    if per_image:
        require_own_table(per_image, _PER_IMAGE, _MEASURED)
    if output and per_image and output.resolve() == per_image.resolve():
        raise InputError(f"{output}: cannot hold both the scores (JSON) and a row for each image (CSV); name two files")


def _measure(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    java_names: Collection[str],
    word_rule: int,
) -> tuple[list[Metric], tuple[str, ...]]:
    """All metrics, rows in the order of `captions`, and a line for each that is not available here."""
    metrics = measure_captions(captions, references, word_rule)
    if not java_names:
        return metrics, ()
    with_java, left_out = measure_with_java(captions, references, java_names, word_rule)
    return [*metrics, *with_java], tuple(left_out)


def _write_per_image(
    path: Path, captions: Mapping[str, "Caption"], metrics: Sequence[Metric], traits: Mapping[str, CaptionTraits]
) -> None:
    """A row for each image, in the order of `captions`."""
    first: list[list[Cell]] = [
        list(captions),
        [caption.text for caption in captions.values()],
        [caption.confidence for caption in captions.values()],
    ]
    columns: dict[str, Sequence[Cell]] = dict(zip(_PER_IMAGE, first, strict=True))
    columns |= {
        metric.name: metric.each.tolist() for metric in metrics if metric.name not in ("bleu_1", "bleu_2", "bleu_3")
    }
    columns["words"] = [traits[key].words for key in captions]
    for name in _TRAITS:
        columns[name] = [_YES_NO[getattr(traits[key], name)] for key in captions]
    write_table(path, list(columns), zip(*columns.values(), strict=True))


def _to_json(
    evaluation: Evaluation,
    metrics: Sequence[Metric],
    models: Sequence[Path],
    features: Path,
    search: SearchConfig,
) -> Mapping[str, object]:
    cider_d = next(metric.each for metric in metrics if metric.name == "cider_d")
    names = [folder.name for folder in models]
    return {
        "model": names[0] if len(names) == 1 else names,
        "features": features.name,
        "images": len(evaluation.captions),
        "images_chosen_by": evaluation.chosen_by,
        "missing": list(evaluation.missing),
        **({"damaged": list(evaluation.damaged)} if evaluation.damaged else {}),
        "search": asdict(search),
        "scores": _values(evaluation.estimates),
        "intervals": _intervals(evaluation.estimates),
        "bootstrap": asdict(evaluation.bootstrap) | {"level": LEVEL},
        "left_out": list(evaluation.left_out),
        "against": _comparison_to_json(evaluation.against) if evaluation.against else None,
        "caption_statistics": {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(evaluation.statistics).items()
        },
        "mean_confidence": round(fmean(caption.confidence for caption in evaluation.captions.values()), 6),
        "captions": {
            key: {
                "caption": caption.text,
                "confidence": round(caption.confidence, 6),
                "cider_d": round(float(score), 6),
                "references": evaluation.references[key],
            }
            for (key, caption), score in zip(evaluation.captions.items(), cider_d, strict=True)
        },
    }


def _comparison_to_json(comparison: ModelComparison) -> Mapping[str, object]:
    return {
        "model": comparison.model,
        "scores": _values(comparison.estimates),
        "intervals": _intervals(comparison.estimates),
        "differences": _values(comparison.differences),
        "difference_intervals": _intervals(comparison.differences),
    }


def _values(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: round(estimate.value, 6) for name, estimate in estimates.items()}


def _intervals(estimates: Mapping[str, Estimate]) -> dict[str, list[float]]:
    return {name: [round(estimate.low, 6), round(estimate.high, 6)] for name, estimate in estimates.items()}
