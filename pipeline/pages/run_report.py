"""A run as one page: what it found and how fast, how the model learned, how its captions score, what made it.

The page is one file that requests nothing: style, charts and images are part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from captionmill.data.captions.files import CaptionFiles, as_caption_files
from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.vocabulary import SPECIAL_WORDS
from captionmill.data.errors import CaptionmillError, ImageError, InputError
from captionmill.data.files import write_text
from captionmill.data.images.find import find_images
from captionmill.data.images.read import ImageFile
from captionmill.data.models.bundle import model_paths
from captionmill.data.models.source import find_models
from captionmill.data.paths import AnyPath, as_location
from captionmill.data.tables.formats import require_other_output
from captionmill.pipeline.pages import run_results as results
from captionmill.pipeline.pages import run_work as work
from captionmill.pipeline.pages.page import render_page, thumbnail_of
from captionmill.pipeline.pages.run_files import (
    ModelFiles,
    ScoreFile,
    StoreFiles,
    TableFiles,
    read_model_files,
    read_scores,
    read_store,
    read_table,
)
from captionmill.pipeline.words import show_duration
from captionmill.stages.machine import versions
from captionmill.stages.scoring.statistics import VocabularyStatistics, describe_vocabulary

_MOST_WORDS = 30


@dataclass(frozen=True)
class ReportSources:
    """Where the parts of a run lie; the report leaves out what is not named."""

    models: Sequence[AnyPath] = ()
    """Models that `train` wrote: folders, packed files or URLs."""
    features: Sequence[AnyPath] = ()
    """Feature stores."""
    scores: Sequence[AnyPath] = ()
    """Files that `evaluate` wrote."""
    tables: Sequence[AnyPath] = ()
    """Tables that `caption` wrote."""
    captions: Sequence[AnyPath | CaptionFiles] = ()
    """The reference captions that the models were trained on; each is read by itself."""
    images: Sequence[AnyPath] = ()
    """Where the scored images are; without any, where the last extraction into each store found them."""


@dataclass(frozen=True)
class _VocabularyRow:
    """The words of one model."""

    name: str
    size: int
    """Without the special words."""
    min_count: object
    trained: VocabularyStatistics | None
    """Counted in the training captions; None if they are not given."""
    unknown_in_references: float | None
    """Share of the words of the scored images' references; None if nothing was scored with this model."""
    first_words: Sequence[str]
    """The most frequent ones, by the order of the indices."""


@dataclass
class _ImagesByKey:
    """The images by key, looked for once and opened when one is wanted; a key of two different files names none."""

    files: dict[str, ImageFile] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, locations: Sequence[Path | str]) -> "_ImagesByKey":
        found = cls()
        ambiguous: set[str] = set()
        for location in dict.fromkeys(place if isinstance(place, str) else place.resolve() for place in locations):
            try:
                for image in find_images(location):
                    if found.files.setdefault(image.key, image) != image:
                        ambiguous.add(image.key)
            except (CaptionmillError, OSError) as exc:
                found.problems.append(str(exc))
        for key in ambiguous:
            del found.files[key]
        if ambiguous:
            found.problems.append("several of the images named have this key")
        return found

    def thumbnail(self, key: str) -> tuple[str, str]:
        """The image as a URL that holds it, and why there is none: one of the two is empty."""
        if key not in self.files:
            return "", "no image: " + ("; ".join(self.problems) or "it is not among the images named")
        try:
            return thumbnail_of(self.files[key]), ""
        except ImageError as exc:
            return "", f"no image: {exc}"


def write_run_report(output: AnyPath, sources: ReportSources, *, title: str = "") -> None:
    """Write the report of what `sources` names to `output` (HTML); `title` is the first model's name if it is empty.

    Raises InputError if `sources` names nothing or an output is an input, and what the readers of stores,
    models, scores, tables and captions raise for files that cannot be read. Missing images are no error.
    """
    output = Path(output)
    files = [Path(path) for path in (*sources.scores, *sources.tables, *sources.features)]
    if not files and not sources.models:
        raise InputError("nothing to report: name a model, a feature store, scores or a table of captions")
    folders = find_models(sources.models)
    references = (path for one in sources.captions for path in as_caption_files(one).paths)
    images_here = (place for place in map(as_location, sources.images) if isinstance(place, Path))
    require_other_output(output, *files, *model_paths(*folders), *references, *images_here)
    stores = [read_store(Path(path)) for path in sources.features]
    models = [read_model_files(path) for path in folders]
    scores = [read_scores(Path(path)) for path in sources.scores]
    tables = [read_table(Path(path)) for path in sources.tables]
    recorded = [store.records[-1].images for store in stores if store.records]
    images = _ImagesByKey.find([*map(as_location, sources.images or recorded)] if scores else ())
    paces = work.paces(stores, models, tables)
    values = {
        "title": title or _name_run(models, scores, stores, tables),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions(),
        "figures": _figures(stores, models, scores, tables),
        "funnels": [*map(work.store_funnel, stores), *map(work.table_funnel, tables)],
        "paces": paces,
        "stage_shares": work.stage_shares(paces),
        "curves": results.curves(models),
        "models": models,
        "columns": results.score_columns(scores),
        "score_rows": results.score_rows(scores),
        "scores": scores,
        "picks": [(file, results.pick_captions(file.captions)) for file in scores],
        "thumbnail": images.thumbnail,
        "confidences": [(file, results.confidence_against_score(file)) for file in scores],
        "vocabularies": _vocabularies(models, scores, sources.captions),
        "settings": results.settings_tables(stores, models, scores),
        "made_by": _made_by(stores, models),
    }
    write_text(output, render_page("run_report", values))


def _name_run(
    models: Sequence[ModelFiles],
    scores: Sequence[ScoreFile],
    stores: Sequence[StoreFiles],
    tables: Sequence[TableFiles],
) -> str:
    return next(files.name for kind in (models, scores, stores, tables) for files in kind)


def _figures(
    stores: Sequence[StoreFiles],
    models: Sequence[ModelFiles],
    scores: Sequence[ScoreFile],
    tables: Sequence[TableFiles],
) -> list[tuple[str, str]]:
    """The numbers that matter most, as (figure, what it is)."""
    found = []
    if stores:
        found.append((f"{sum(len(store.store) for store in stores):,}", "images with features"))
    if rated := [model for model in models if "val_cider_d" in model.bundle.scores]:
        best = max(rated, key=lambda model: model.bundle.scores["val_cider_d"])
        note = ", re-ranked" if best.bundle.reranks_validation else ""
        found.append((f"{best.bundle.scores['val_cider_d']:.2f}", f"best validation CIDEr-D{note}"))
    if rated_files := [file for file in scores if "cider_d" in file.values["scores"]]:
        file = max(rated_files, key=lambda file: file.values["scores"]["cider_d"])
        score = results.show_score(file.values["scores"]["cider_d"], *file.values["intervals"]["cider_d"])
        found.append((score, f"CIDEr-D on {len(file.captions):,} scored images"))
    if tables:
        found.append((f"{sum(table.captioned for table in tables):,}", "images captioned"))
    if trained := [epoch.duration_s for model in models for epoch in model.history]:
        found.append((show_duration(sum(trained)), "of training"))
    return found


def _vocabularies(
    models: Sequence[ModelFiles], scores: Sequence[ScoreFile], captions: Sequence[AnyPath | CaptionFiles]
) -> list[_VocabularyRow]:
    trained_on = {key for model in models for key in model.bundle.splits["train"]}
    annotations = [read_annotations(one, known_keys=trained_on) for one in captions]
    found = []
    for model in models:
        words = model.bundle.vocabulary
        training = [
            text
            for key in model.bundle.splits["train"]
            for known in annotations
            if key in known.captions
            for text in known.captions[key]
        ]
        references = [
            reference
            for file in scores
            if file.name == model.name
            for caption in file.captions
            for reference in caption.references
        ]
        found.append(
            _VocabularyRow(
                name=model.name,
                size=len(words) - len(SPECIAL_WORDS),
                min_count=model.bundle.training.get("min_count", work.NOT_RECORDED),
                trained=describe_vocabulary(words, training, most_frequent=_MOST_WORDS) if training else None,
                unknown_in_references=describe_vocabulary(words, references).unknown if references else None,
                first_words=words.words[len(SPECIAL_WORDS) :][:_MOST_WORDS],
            )
        )
    return found


def _made_by(stores: Sequence[StoreFiles], models: Sequence[ModelFiles]) -> Sequence[tuple[str, Mapping[str, str]]]:
    """The versions of the software that made each output, by its name."""
    return [(store.name, store.store.made_by) for store in stores] + [
        (model.name, model.bundle.versions) for model in models
    ]
