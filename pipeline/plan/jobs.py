"""The four kinds of jobs in a pipeline, with their inputs, settings and output. Imports no torch."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from captionmill.data.captions.files import CaptionFiles
from captionmill.data.features.spec import USUAL_PREPROCESS
from captionmill.data.features.store import cache_path_for
from captionmill.data.models.bundle import RERANKED_CIDER, read_bundle
from captionmill.data.paths import as_path
from captionmill.data.tables.formats import format_of
from captionmill.pipeline.plan.fingerprints import Images, Input, TextFiles
from captionmill.stages.settings import USUAL_LENGTH, ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.table_settings import TableConfig

Kind = Literal["extract", "train", "evaluate", "caption"]
Several = Literal["each", "best", "ensemble"]
"""How several models are used: one output each, only the model with the best validation CIDEr-D, or an ensemble."""

_BESIDE = ("gallery", "sidecar", "metadata_jsonl", "tars")
"""Settings of the files that are written with a table of captions."""
_WORDING = ("prefix", "suffix", "caption_template", "tar_suffix")
"""Settings of what is in them."""
_ROW_SETTINGS = ("backbone", "weights", "preprocess", "image_size", "views", "dtype")


@dataclass(frozen=True)
class ExtractJob:
    """Images into a feature store."""

    kind: ClassVar[Kind] = "extract"
    images: Path | str
    output: Path
    config: ExtractConfig

    def settings(self) -> dict[str, Any]:
        """The settings that change the rows, without those of the machine."""
        return _chosen(self.config, without_file=self.weights_path is not None)

    def default_settings(self) -> dict[str, Any]:
        """The settings of a job that sets none."""
        return _chosen(ExtractConfig(preprocess=USUAL_PREPROCESS), without_file=False)

    def inputs(self) -> dict[str, Input]:
        """The inputs of the job, by name."""
        images: dict[str, Input] = {"images": Images(self.images, self.output)}
        return images | ({"weights": self.weights_path} if self.weights_path else {})

    @property
    def weights_path(self) -> Path | None:
        """The weights file, or None for weights by name."""
        path = Path(self.config.weights)
        return path if path.is_file() else None


@dataclass(frozen=True)
class TrainJob:
    """A feature store and captions into a model."""

    kind: ClassVar[Kind] = "train"
    features: Path
    captions: CaptionFiles
    output: Path
    config: TrainConfig
    lists: SplitLists

    def settings(self) -> dict[str, Any]:
        """All settings that change the model."""
        return self._recorded(self.config) | {"restval": self.lists.restval} | self.captions.settings

    def default_settings(self) -> dict[str, Any]:
        """The settings of a job that sets none."""
        return self._recorded(TrainConfig()) | {"restval": "train"}

    def _recorded(self, config: TrainConfig) -> dict[str, Any]:
        values = {name: value for name, value in asdict(config).items() if name != "device"}
        values["init"] = None if isinstance(config.init, Path) else config.init  # the content of a path is an input
        values["teacher"] = [model for model in config.teacher if not isinstance(model, Path)]
        search = values["search"] | _length(config.search, self.config.search)
        return values | _length(config, self.config) | {"search": search}

    def inputs(self) -> dict[str, Input]:
        """The inputs of the job, by name."""
        lists = {"train_list": as_path(self.lists.train_list), "val_list": as_path(self.lists.val_list)}
        start = {"init": self.config.init if isinstance(self.config.init, Path) else None}
        teachers = {f"teacher {number}": model for number, model in enumerate(self.config.teacher, 1)}
        models = {name: model for name, model in teachers.items() if isinstance(model, Path)}
        return {"features": self.features} | _captions_inputs(self.captions) | _given_inputs(lists | start | models)


@dataclass(frozen=True)
class EvaluateJob:
    """A feature store, models and captions into scores."""

    kind: ClassVar[Kind] = "evaluate"
    features: Path
    models: tuple[Path, ...]
    captions: CaptionFiles
    output: Path
    search: SearchConfig
    several: Several = "each"
    image_list: Path | None = None
    device: str = "auto"

    def settings(self) -> dict[str, Any]:
        """All settings that change the scores."""
        return (
            asdict(self.search)
            | _length(self.search, self.search)
            | _several(self.models, self.several)
            | self.captions.settings
        )

    def default_settings(self) -> dict[str, Any]:
        """The settings of a job that sets none."""
        return asdict(SearchConfig()) | _length(SearchConfig(), self.search)

    def inputs(self) -> dict[str, Input]:
        """The inputs of the job, by name."""
        inputs: dict[str, Input] = {"features": self.features}
        return (
            inputs
            | _captions_inputs(self.captions)
            | _model_inputs(self.models)
            | _given_inputs({"list": self.image_list})
        )


@dataclass(frozen=True)
class CaptionJob:
    """A folder of images and models into a table of captions."""

    kind: ClassVar[Kind] = "caption"
    images: Path | str
    models: tuple[Path, ...]
    output: Path
    search: SearchConfig
    several: Several = "best"
    machine: ExtractConfig = field(default_factory=ExtractConfig)
    """Only its `MACHINE_SETTINGS` are used."""
    table: TableConfig = field(default_factory=TableConfig)

    def settings(self) -> dict[str, Any]:
        """All settings that change the captions, their table and the files beside it."""
        beside = {name: value for name in _BESIDE if (value := self._beside(name))}
        search = asdict(self.search) | _length(self.search, self.search)
        return search | _several(self.models, self.several) | self._rows(self.table) | beside

    def _beside(self, name: str) -> str | None:
        """A setting of the files beside the table; a path is relative to it, so that the folder of both may move."""
        value = getattr(self.table, name)
        if isinstance(value, Path):
            return Path(os.path.relpath(value, self.output.parent)).as_posix()
        return None if value is None else str(value)

    def default_settings(self) -> dict[str, Any]:
        """The settings of a job that sets none."""
        return (
            asdict(SearchConfig())
            | _length(SearchConfig(), self.search)
            | self._rows(TableConfig(format=self.table.format))
        )

    def _rows(self, table: TableConfig) -> dict[str, Any]:
        """The settings in `table` that change the rows, or the words around captions in files beside it."""
        wording = {name: getattr(table, name) for name in _WORDING}
        return {"format": format_of(self.output, table.format), "low_confidence": table.low_confidence} | wording

    def inputs(self) -> dict[str, Input]:
        """The inputs of the job, by name."""
        images: dict[str, Input] = {"images": Images(self.images, cache_path_for(self.output))}
        return images | _model_inputs(self.models)


Job = ExtractJob | TrainJob | EvaluateJob | CaptionJob


def with_chosen_models(job: Job) -> Job:
    """`job` with the models that it will use: all for an ensemble, else the one with the best validation scores.

    The models must exist. Raises ModelError if one cannot be read.
    """
    if not isinstance(job, EvaluateJob | CaptionJob) or job.several == "ensemble" or len(job.models) == 1:
        return job
    return replace(job, models=(max(job.models, key=_validation_rank),))


def _validation_rank(folder: Path) -> tuple[float, float]:
    """The validation CIDEr-D of the model, re-ranked if it can, then how low its validation loss is.

    The first may be 0 for all models.
    """
    scores = read_bundle(folder).scores
    return scores.get(RERANKED_CIDER, scores["val_cider_d"]), -scores.get("val_loss", math.inf)


def _chosen(config: ExtractConfig, *, without_file: bool) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in _ROW_SETTINGS}
    if without_file:  # its content is an input
        del values["weights"]
    if config.preprocess is None:  # as the store was made
        del values["preprocess"]
    return values


def _length(config: TrainConfig | SearchConfig, now: TrainConfig | SearchConfig) -> dict[str, Any]:
    """The maximum length of `config` as a number, and whether it follows the data in `now`, the job's own settings.

    Records of versions in which it never followed the data have only the number, and are compared by it.
    """
    return {"max_length": config.max_length or USUAL_LENGTH, "max_length_follows": now.max_length is None}


def _several(models: tuple[Path, ...], several: Several) -> dict[str, Any]:
    return {"several": several} if len(models) > 1 else {}


def _model_inputs(models: tuple[Path, ...]) -> dict[str, Input]:
    return {"model": models[0]} if len(models) == 1 else {f"model {model.name}": model for model in models}


def _captions_inputs(captions: CaptionFiles) -> dict[str, Input]:
    names = ["captions", *(f"captions {number}" for number in range(2, len(captions.paths) + 1))]
    return {name: TextFiles(path) if path.is_dir() else path for name, path in zip(names, captions.paths, strict=True)}


def _given_inputs(paths: Mapping[str, Path | None]) -> dict[str, Input]:
    return {name: path for name, path in paths.items() if path}
