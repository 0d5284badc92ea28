"""The page that explains one image: every number on it is the network's own, put in order here for the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from captionmill.pipeline.pages.drawings import MAP_COLUMNS, HeatMap, draw_beam_tree, draw_heat_map
from captionmill.pipeline.pages.explain_words import (
    ImageExplanation,
    describe_computation,
    describe_scaling,
    describe_start,
    describe_total,
    show_number,
    show_probability,
)
from captionmill.pipeline.pages.page import image_url, render_page
from captionmill.stages.decoding.explain import Start
from captionmill.stages.decoding.folded import Numbers

_IMAGE_SIDE = 640  # pixels
_LARGEST, _FURTHEST = 10, 5
_PARTS = {"hidden": "Hidden state h0", "cell": "Cell state c0", "image": "Image vector, beside every word"}


@dataclass(frozen=True)
class _Row:
    """A row of numbers: what the page shows of it."""

    values: Numbers  # [D]
    heat_map: HeatMap
    lines: Sequence[str]
    """All numbers as text, eight in each line after the index of the first."""

    @property
    def mean_size(self) -> float:
        """The mean distance from zero."""
        return float(np.abs(self.values).mean())

    @property
    def root_mean_square(self) -> float:
        return float(np.sqrt(np.mean(self.values**2)))

    @property
    def zero_share(self) -> float:
        """The share of numbers that are exactly zero, 0 to 1."""
        return float(np.mean(self.values == 0))

    @property
    def furthest(self) -> list[tuple[int, float]]:
        """Index and number of those furthest from zero."""
        indices = np.argsort(-np.abs(self.values), kind="stable")[:_FURTHEST]
        return [(int(index), float(self.values[index])) for index in indices]


@dataclass(frozen=True)
class _FirstState:
    """What one decoder makes of the features."""

    model: str
    words: Sequence[str]
    """Sentences."""
    scaled: _Row
    parts: Sequence[tuple[str, _Row]]


def render_explanation(explained: ImageExplanation) -> str:
    """The page as one string of HTML; it holds everything that it shows."""
    explanation, bundle = explained.explanation, explained.bundles[0]
    features = explanation.features
    seen = None if explained.seen is None else Image.fromarray(explained.seen)
    largest = [int(index) for index in np.argsort(-features, kind="stable")[:_LARGEST]]
    values = {
        "explained": explained,
        "explanation": explanation,
        "choice": explanation.choice,
        "total": describe_total(explained).replace(" x ", " \N{MULTIPLICATION SIGN} "),
        "search": explained.wide_search,
        "is_widened": explained.wide_search.beam_size > explained.search.beam_size,
        "vocabulary_size": len(bundle.vocabulary),
        "file_name": _file_name(explained),
        "image_url": _url_or_empty(explained.image),
        "seen": seen,
        "seen_url": _url_or_empty(seen),
        "computation": describe_computation(explained),
        "spec": bundle.spec,
        "weights": Path(bundle.spec.weights).name,
        "features": _row(features),
        "map_columns": MAP_COLUMNS,
        "largest": [
            (index, features[index], [start.scaled[index] for start in explanation.starts]) for index in largest
        ],
        "first_states": _first_states(explained),
        "tree": draw_beam_tree(explained.branches),
        "references": explanation.references,
        "reference_mean": _reference_mean(explained),
        "smoothing": _number_of(bundle.training.get("label_smoothing")),
        "longest": _number_of(bundle.training.get("max_length")),
        "blind": math.log(len(bundle.vocabulary)),
        "check": _check_lines(explained),
        "versions": bundle.versions,
        "number": show_number,
        "probability": show_probability,
        "exp": math.exp,
    }
    return render_page("explanation", values)


def _row(values: Numbers, *, limit: float | None = None) -> _Row:
    lines = [
        f"{start:5}  " + " ".join(f"{value:9.5f}" for value in values[start : start + 8])
        for start in range(0, len(values), 8)
    ]
    return _Row(values, draw_heat_map(values, limit=limit), lines)


def _first_states(explained: ImageExplanation) -> list[_FirstState]:
    return [
        _FirstState(
            model=model,
            words=[_sentence(describe_scaling(config)), _sentence(describe_start(config))],
            scaled=_row(start.scaled),
            parts=_state_parts(start, config.layers),
        )
        for start, config, model in zip(explained.explanation.starts, explained.decoders, explained.models, strict=True)
    ]


def _state_parts(start: Start, layers: int) -> list[tuple[str, _Row]]:
    parts = []
    for part in start.parts:
        layer = f", layer {part.layer} of {layers}" if layers > 1 and part.name != "image" else ""
        limit = max(1.0, float(np.abs(part.values).max()))
        parts.append((_PARTS[part.name] + layer, _row(part.values, limit=limit)))
    return parts


def _reference_mean(explained: ImageExplanation) -> float:
    """The mean cross entropy of the words of all references, nats per word; 0 without references."""
    steps = [step for reference in explained.explanation.references for step in reference.walk.steps]
    return -math.fsum(step.chosen.log_probability for step in steps) / len(steps) if steps else 0.0


def _number_of(setting: object) -> float:
    """The value of a setting of the training; 0 if it is not known."""
    return setting if isinstance(setting, int | float) else 0


def _check_lines(explained: ImageExplanation) -> str:
    """Python that prints the tables of the caption again."""
    folders = ", ".join(f"Path({name!r})" for name in explained.shown_models)
    return f"""\
from pathlib import Path
import torch
from captionmill.data.features.store import FeatureStore
from captionmill.stages.decoding.captioner import Captioner

captioner = Captioner.load([{folders}], device="cpu")
row = FeatureStore.open(Path("features.h5"))[{explained.key or _file_name(explained)!r}]  # or the numbers above
with torch.inference_mode():
    state = captioner.decoder.start(torch.from_numpy(row)[None].float())
    for word in {[step.fed for step in explained.explanation.caption.steps]}:  # fed in
        logits, state = captioner.decoder.step(torch.tensor([word]), state)
        print(logits[0].topk(10), logits[0].softmax(0).topk(10).values)
"""


def _url_or_empty(image: Image.Image | None) -> str:
    return image_url(image.copy(), _IMAGE_SIDE) if image else ""


def _file_name(explained: ImageExplanation) -> str:
    """Without the folders, which are nobody's business on a page that is passed on."""
    return PurePosixPath(explained.name).name


def _sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
