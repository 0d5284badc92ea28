"""Two tables of captions beside each other: what differs, and which is better where there are references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.captions.files import CaptionFiles
from captionmill.data.captions.references import read_annotations
from captionmill.data.errors import AnnotationError
from captionmill.data.tables.edits import read_edited
from captionmill.data.tables.review import is_decision
from captionmill.data.tables.rows import CaptionRow
from captionmill.stages.scoring.bootstrap import Estimate, compare, estimate
from captionmill.stages.scoring.metrics import measure_captions
from captionmill.stages.scoring.settings import BootstrapConfig


@dataclass(frozen=True)
class ComparedImage:
    """An image with its rows in two tables."""

    first: CaptionRow
    second: CaptionRow
    gain: float | None
    """The CIDEr-D of the second caption minus that of the first; None if they are not scored."""

    @property
    def is_corrected(self) -> bool:
        """Whether a person wrote one of the captions."""
        return "corrected" in (self.first.status, self.second.status)

    @property
    def is_reviewed(self) -> bool:
        """Whether a person wrote or accepted one of the captions: a model may be trained on it."""
        return is_decision(self.first.status) or is_decision(self.second.status)


@dataclass(frozen=True)
class ComparedScores:
    """The scores of two tables on the same images, and `second` minus `first`, each with its 95 % interval, by name."""

    image_count: int
    reviewed_count: int
    """Other images with references, which are not scored because a person wrote or accepted one of the captions."""
    first: Mapping[str, Estimate]
    second: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class TableComparison:
    """Two tables of captions beside each other."""

    first: Path
    second: Path
    equal: int
    """Images with the same caption in both."""
    different: tuple[ComparedImage, ...]
    """The others that have a row in both: by the change of CIDEr-D, the largest gain first, or else by path; at the end
    those with a caption that a person wrote."""
    only_first: tuple[str, ...]
    """Images that only the first table has."""
    only_second: tuple[str, ...]
    scores: ComparedScores | None
    """None without references."""


def compare_rows(
    first: Path, second: Path, captions: CaptionFiles | None, bootstrap: BootstrapConfig
) -> TableComparison:
    """Compare the tables `first` and `second`, and score both if there are reference `captions`.

    Captions that a person wrote say nothing about a model: their images are not scored.

    Raises InputError if a table cannot be read, AnnotationError if no image can be scored.
    """
    rows, others = ({row.path: row for row in read_edited(table)} for table in (first, second))
    shared = [key for key in rows if key in others]
    scores, gains = None, dict[str, float]()
    if captions is not None:
        scores, gains = _score(captions, rows, others, shared, bootstrap)
    differ = [key for key in shared if rows[key].caption != others[key].caption]
    different = [ComparedImage(rows[key], others[key], gains.get(key)) for key in differ]
    different.sort(key=lambda image: (image.is_corrected, -(image.gain or 0), image.first.path))
    return TableComparison(
        first,
        second,
        len(shared) - len(differ),
        tuple(different),
        tuple(key for key in rows if key not in others),
        tuple(key for key in others if key not in rows),
        scores,
    )


def _score(
    captions: CaptionFiles,
    rows: Mapping[str, CaptionRow],
    others: Mapping[str, CaptionRow],
    shared: Sequence[str],
    bootstrap: BootstrapConfig,
) -> tuple[ComparedScores, dict[str, float]]:
    """The scores of both tables, and by image how much more CIDEr-D the second has."""
    annotations = read_annotations(captions, known_keys=shared)
    wanted = set(annotations.keys_of("test") or annotations.captions)
    captioned = [key for key in shared if key in wanted and rows[key].is_captioned and others[key].is_captioned]
    keys = [key for key in captioned if not ComparedImage(rows[key], others[key], None).is_reviewed]
    if not keys:
        problem = "nothing to score: no image has references and captions that nobody reviewed in both tables"
        raise AnnotationError(f"{captions.name}: {problem}")
    references = {key: annotations.captions[key] for key in keys}
    metrics, other_metrics = (
        measure_captions({key: table[key].caption for key in keys}, references) for table in (rows, others)
    )
    scores = ComparedScores(
        len(keys),
        len(captioned) - len(keys),
        estimate(metrics, bootstrap),
        estimate(other_metrics, bootstrap),
        compare(other_metrics, metrics, bootstrap),
    )
    each, other_each = (
        next(metric.each for metric in found if metric.name == "cider_d") for found in (metrics, other_metrics)
    )
    return scores, dict(zip(keys, (other_each - each).tolist(), strict=True))
