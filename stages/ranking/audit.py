"""Lists the captions that fit their image worst, for a person to look at: wrong pairs, shuffled rows, wrong files.

Images are read in blocks and only the worst captions so far are kept. All headers are read before torch is imported.
"""

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from captionmill.data.captions.files import Captions, as_caption_files
from captionmill.data.captions.near import describe_near
from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.vocabulary import WordCounts
from captionmill.data.csv_tables import require_own_table, require_records_name, write_records
from captionmill.data.errors import InputError
from captionmill.data.models.bundle import model_paths
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.formats import require_other_output
from captionmill.stages.fields import require_least
from captionmill.stages.machine import choose_device, require_device_name
from captionmill.stages.ranking.opened import open_matched
from captionmill.stages.settings import LISTED_CAPTIONS

if TYPE_CHECKING:
    from captionmill.stages.ranking.fit import CaptionFit

_COLUMNS = ("key", "caption", "fit")


@dataclass(frozen=True)
class CaptionAudit:
    """What an audit found."""

    worst: "tuple[CaptionFit, ...]"
    """The worst first; of equal ones the first by key."""
    captions: int
    """Number of captions that were compared."""
    images: int
    """Number of their images."""
    without_features: tuple[str, ...]
    """Images with captions that have no row, sorted."""
    damaged: tuple[str, ...]
    """Images whose rows are damaged, sorted: `extract` makes them again."""
    unknown_words: tuple[str, ...] = ()
    """Words that the model does not know, the most frequent first; all count as one and the same word."""
    unknown_share: float = 0.0
    """The share of all words of the captions, with repetitions, that these are, 0 to 1."""


def audit_captions(
    features: AnyPath,
    captions: Captions,
    model: AnyPath,
    *,
    output: AnyPath | None = None,
    top: int = LISTED_CAPTIONS,
    device: str = "auto",
    progress: Progress = no_progress,
) -> CaptionAudit:
    """The `top` captions that fit their image in the store `features` worst, by the matcher of `model`.

    Captions are in any format that `train` reads; the model may have been trained on them. `output` is a table of what
    was found (CSV, or JSON lines if it ends in .jsonl). What each caption is compared with is drawn with a fixed seed.

    Raises InputError if the model has no matcher or no image has captions and features; SpecMismatchError if the
    features are not of the model's kind; AnnotationError as `read_annotations`.
    """
    require_least("top", top, 1)
    require_device_name(device)
    files, output = as_caption_files(captions), as_path(output)
    opened = open_matched(features, model)
    if output is not None:
        require_records_name(output)
        require_other_output(output, opened.store.path, *files.paths, *model_paths(opened.folder))
        require_own_table(output, _COLUMNS)
    vocabulary = opened.model.vocabulary
    texts = read_annotations(files, known_keys=opened.store.keys, word_rule=vocabulary.word_rule).captions
    keys = sorted(key for key in texts if key in opened.store)
    missing = sorted(key for key in texts if key not in opened.store)
    if not keys:
        near = describe_near(missing, opened.store.keys) or "name the images by their keys in the store"
        raise InputError(f"{files.name}: no image with captions has features in {opened.store.path}; {near}")

    from captionmill.stages.ranking.fit import fit_captions  # torch takes seconds
    from captionmill.stages.ranking.retrieve import load_matcher

    matcher, chosen_device = load_matcher(opened), choose_device(device)
    worst: list[CaptionFit] = []
    damaged: list[str] = []
    captions_done = images_done = 0
    positions = np.array([opened.store.position(key) for key in keys])
    for found, lost in fit_captions(opened, matcher, texts, positions, chosen_device):
        worst = heapq.nsmallest(top, itertools.chain(worst, found), key=lambda caption: caption.fit)  # stable
        damaged += lost
        captions_done += len(found)
        images_done += len({caption.key for caption in found})
        progress("audit", images_done + len(damaged), len(keys))
    if output is not None:
        write_records(output, map(vars, worst), _COLUMNS)
    words = WordCounts.of((text for key in keys for text in texts[key]), vocabulary.word_rule)
    unknown = tuple(word for word, _ in words.words.most_common() if word not in vocabulary)
    share = 1 - words.covered(vocabulary)
    return CaptionAudit(tuple(worst), captions_done, images_done, tuple(missing), tuple(damaged), unknown, share)
